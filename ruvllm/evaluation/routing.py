"""How well a score decides between a weak and a strong model (Ong et al. 2024, RouteLLM). Knows nothing of costs.

    PGR(c)  = (Q_c - Q_weak) / (Q_strong - Q_weak)   share of the gap recovered with a share c of strong calls
    APGR    = area under PGR over c in [0, 1], from points at each tenth of the calls (trapezoids)
    CPT(p)  = the least share of strong calls that recovers p of the gap
Equal scores are called in random order, and the expectation over that order is taken: a constant score has APGR 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]

POINTS = 10  # the curve has one more


@dataclass(frozen=True, eq=False)
class CallCurve:
    """Mean quality by the share of strong calls; both (points + 1,), the shares from 0 to 1."""

    calls: Values
    quality: Values

    @property
    def recovered(self) -> Values:
        """PGR (points + 1,): 0 with no strong call, 1 with all."""
        weak, strong = self.quality[0], self.quality[-1]
        return np.asarray((self.quality - weak) / (strong - weak), dtype=np.float64)

    @property
    def apgr(self) -> float:
        return float(np.trapezoid(self.recovered, self.calls))

    def cpt(self, share: float) -> float:
        """CPT(share) between 0 and 1, straight lines between the points; 1.0 where only all calls reach it."""
        recovered = self.recovered
        place = int(np.argmax(recovered >= share - 1e-12))
        if place == 0:
            return 0.0
        low, high = recovered[place - 1], recovered[place]
        step = (share - low) / (high - low)
        return float(self.calls[place - 1] + step * (self.calls[place] - self.calls[place - 1]))


def call_curve(preference: Values, strong: Values, weak: Values, points: int = POINTS) -> CallCurve:
    """The curve of calling the strong model where `preference` (n,) is highest; qualities (n,).

    Raises:
        LearningError: no row, shapes differ, a value is not finite, or the strong model is not the better one.
    """
    _check(preference, strong, weak)
    gain = _expected_gain(preference, strong - weak)
    n = len(gain)
    reached = np.concatenate([[0.0], np.cumsum(gain)]) / n
    calls = np.linspace(0.0, 1.0, points + 1)
    return CallCurve(calls, weak.mean() + np.interp(calls, np.arange(n + 1) / n, reached))


def win_rate(ours: Values, theirs: Values) -> float:
    """Share of rows where ours is better, equal ones counted half."""
    if ours.shape != theirs.shape or not ours.size:
        raise LearningError(f"win rate: shapes {ours.shape} and {theirs.shape}, want the same and not empty")
    return float(np.mean((ours > theirs) + 0.5 * (ours == theirs)))


def _expected_gain(preference: Values, gain: Values) -> Values:
    """(n,) in the order of calling, the most preferred first; rows of equal preference have their mean."""
    _, block = np.unique(-preference, return_inverse=True)
    sizes = np.bincount(block)
    means = np.bincount(block, weights=gain) / sizes
    return np.asarray(np.repeat(means, sizes), dtype=np.float64)


def _check(preference: Values, strong: Values, weak: Values) -> None:
    if not preference.size or not (preference.shape == strong.shape == weak.shape) or preference.ndim != 1:
        raise LearningError(
            f"routing: shapes {preference.shape}, {strong.shape}, {weak.shape}, want three times (n,), not empty"
        )
    if not all(np.isfinite(values).all() for values in (preference, strong, weak)):
        raise LearningError("routing: a value is not finite; leave out rows with a tier missing")
    if strong.mean() <= weak.mean():
        raise LearningError(
            f"routing: the strong model has {strong.mean():.4f}, the weak one {weak.mean():.4f}; there is no gap to"
            " recover, name them the other way round"
        )
