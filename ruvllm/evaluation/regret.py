"""Regret of routing decisions, specification 8.3, with bootstrap intervals. Knows nothing of routers; numpy only.

    quality regret = E[Q_baseline - Q_routed]   on 1 to 5, the baseline is always-big: what a user without a router has
    latency regret = E[L_routed - L_oracle]     seconds
    cost regret    = E[C_routed - C_oracle]     normalised token cost
    utility regret = E[U_oracle - U_routed]     U = Q - lambda L - mu C; the oracle maximises it: never negative
Questions of one group (a country) share facts and are not independent, so the bootstrap draws whole groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]
Names = NDArray[np.str_]

_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What the decisions of one policy brought, question by question (n,). Quality on 1 to 5."""

    utility: Values
    quality: Values
    latency_s: Values
    cost: Values

    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in vars(self).items()}


@dataclass(frozen=True)
class Bootstrap:
    """Draws for one set of questions; the same for every policy, so that their intervals compare."""

    shares: Values  # (resamples, n): weight of each question in each draw, rows sum to 1

    def interval(self, values: Values) -> Interval:
        """Mean of (n,) and its percentile interval."""
        low, high = np.quantile(self.shares @ values, _TAILS)
        return Interval(float(values.mean()), float(low), float(high))


def make_bootstrap(groups: Names, resamples: int, seed: int) -> Bootstrap:
    """Draw as many groups as there are, with replacement, `resamples` times.

    Raises:
        LearningError: there is no question.
    """
    if not len(groups):
        raise LearningError("regret: no held-out question, want at least one; collect more (ruvllm cycle)")
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=resamples)
    weights = times[:, member].astype(np.float64)  # (resamples, n)
    return Bootstrap(weights / weights.sum(axis=1, keepdims=True))


def regret(routed: Outcomes, oracle: Outcomes, baseline: Outcomes, bootstrap: Bootstrap) -> dict[str, Interval]:
    """The four regrets of the module's docstring."""
    return {name: bootstrap.interval(values) for name, values in losses(routed, oracle, baseline).items()}


def losses(routed: Outcomes, oracle: Outcomes, baseline: Outcomes) -> dict[str, Values]:
    """The same, question by question (n,)."""
    return {
        "utility": oracle.utility - routed.utility,
        "quality": baseline.quality - routed.quality,
        "latency_s": routed.latency_s - oracle.latency_s,
        "cost": routed.cost - oracle.cost,
    }


def paired(routed: Outcomes, other: Outcomes, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Regret of the one minus regret of the other, taken question by question: positive means `routed` is worse."""
    signs: Mapping[str, int] = {"utility": -1, "quality": -1, "latency_s": 1, "cost": 1}
    return {
        name: bootstrap.interval(sign * (getattr(routed, name) - getattr(other, name))) for name, sign in signs.items()
    }
