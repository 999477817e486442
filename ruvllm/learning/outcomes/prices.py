"""What a query will cost on each tier, before it is asked. Knows nothing of quality or of decisions.

A decision that weighs quality against cost has to know the cost beforehand: log costs are regressed on the query's
features and scaled so that the mean over the training rows is right (Duan's smearing, 1983). Tiers whose cost is the
same for every query get that cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.predictors import Array, Scaling, Wide, make_scaling

_STRENGTH = 200.0  # ridge penalty: inputs have unit variance, and there are hundreds of them


@dataclass(frozen=True, eq=False)
class Prices:
    """Fitted on training rows."""

    scaling: Scaling
    weights: Wide  # (d, m)
    level: Wide  # (m,) mean log cost
    smear: Wide  # (m,)
    highest: Wide  # (m,) largest cost seen: no guess is above it

    def predict(self, x: Array) -> Wide:
        """(k, d) -> (k, m) expected costs, in the unit of the training costs."""
        guess = np.exp(self.scaling.apply(x).astype(np.float64) @ self.weights + self.level) * self.smear
        return np.asarray(np.minimum(guess, self.highest), dtype=np.float64)


def fit_prices(x: Array, cost: Wide) -> Prices:
    """From training rows (n, d) and their costs (n, m), NaN where a tier was not run.

    Raises:
        LearningError: a tier has no cost at all.
    """
    known = np.isfinite(cost)
    if not known.any(axis=0).all():
        raise LearningError(f"prices: tier {int(known.any(axis=0).argmin())} has no cost in {len(cost)} rows, want one")
    scaling = make_scaling(x)
    scaled = scaling.apply(x).astype(np.float64)
    fitted = [_one(scaled[known[:, tier]], cost[known[:, tier], tier]) for tier in range(cost.shape[1])]
    weights, level, smear, highest = zip(*fitted, strict=True)
    return Prices(scaling, np.stack(weights, axis=1), np.array(level), np.array(smear), np.array(highest))


def _one(x: Wide, cost: Wide) -> tuple[Wide, float, float, float]:
    least = cost[cost > 0].min() if (cost > 0).any() else 1.0
    logs = np.log(np.maximum(cost, least))  # a free call counts as the cheapest one that was paid
    level = float(logs.mean())
    penalty = _STRENGTH * np.eye(x.shape[1])
    weights = np.asarray(np.linalg.solve(x.T @ x + penalty, x.T @ (logs - level)), dtype=np.float64)
    guess = np.exp(x @ weights + level)
    return weights, level, float(cost.mean() / guess.mean()), float(cost.max())
