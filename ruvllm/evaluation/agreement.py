"""How far two raters agree: rank correlation, Cohen's kappa, bootstrap intervals. Knows nothing of judges; numpy only.

    spearman   Pearson's correlation of average ranks (Spearman 1904); 0 where one side is constant: it orders nothing
    kappa      1 - observed / expected disagreement (Cohen 1960); with linear weights |i - j| for ordered levels
               (Cohen 1968); 0 where chance alone leaves no disagreement
Chance is 0 for both. Answers to one question are not independent, so the bootstrap draws whole groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]
Levels = NDArray[np.int64]
Names = NDArray[np.str_]
Places = NDArray[np.intp]

CHANCE = 0.0
RESAMPLES = 1000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @property
    def beyond_chance(self) -> bool:
        """Whether the whole interval lies above what chance gives."""
        return self.low > CHANCE


def ranks(values: Values) -> Values:
    """(n,) -> (n,): 1 for the smallest; equal values share the mean of their places."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    means: Values = (last - (count - 1) / 2)[place]
    return means


def spearman(one: Values, other: Values) -> float:
    """Rank correlation of (n,) and (n,), in [-1, 1].

    Raises:
        LearningError: no row, or arrays of different length.
    """
    _check(one, other)
    a, b = ranks(one), ranks(other)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / spread, -1.0, 1.0)) if spread else CHANCE


def spearman_within(one: Values, other: Values, strata: Levels) -> float:
    """Mean of the strata's rank correlations, weighted by their rows: what is left where the stratum is equal."""
    _check(one, other)
    each = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    return float(sum(len(rows) * spearman(one[rows], other[rows]) for rows in each) / len(one))


def cohen_kappa(one: Levels, other: Levels, n_levels: int, linear: bool = False) -> float:
    """Agreement of two ratings (n,) in 0 ... n_levels - 1 beyond chance, at most 1.

    Raises:
        LearningError: no row, arrays of different length, or a rating out of range.
    """
    _check(one, other)
    if min(one.min(), other.min()) < 0 or max(one.max(), other.max()) >= n_levels:
        raise LearningError(f"kappa: a rating is out of range, want 0 to {n_levels - 1}")
    seen = np.bincount(one * n_levels + other, minlength=n_levels**2).reshape(n_levels, n_levels) / len(one)
    by_chance = np.outer(seen.sum(axis=1), seen.sum(axis=0))
    apart = np.abs(np.subtract.outer(np.arange(n_levels), np.arange(n_levels)))  # (levels, levels)
    weights = apart if linear else apart > 0
    expected = float((weights * by_chance).sum())
    return 1.0 - float((weights * seen).sum()) / expected if expected > 0 else CHANCE


def ordered_share(score: Values, gold: Values, groups: Names) -> float | None:
    """Of the pairs within a group whose gold differs, the share that `score` orders alike; a tie counts half.

    0.5 is chance; None where no group has such a pair.
    """
    _check(score, gold)
    alike = [
        _alike(score[i] - score[j], gold[i] - gold[j])
        for rows in _members(groups)
        for i, j in combinations(rows, 2)
        if gold[i] != gold[j]
    ]
    return float(np.mean(alike)) if alike else None


def _alike(scores: float, golds: float) -> float:
    return 0.5 if scores == 0 else float((scores > 0) == (golds > 0))


class Resampler:
    """Draws of whole groups with replacement, the same for every figure, so that their intervals compare."""

    def __init__(self, groups: Names, resamples: int = RESAMPLES, seed: int = 0) -> None:
        """Raises LearningError where there is no row."""
        if not len(groups):
            raise LearningError("agreement: got no row with gold, want at least one")
        self._n = len(groups)
        self._draws = list(_draws(groups, resamples, seed))

    def estimate(self, figure: Callable[[Places], float]) -> Estimate:
        """`figure` of all rows (their places are its argument), and between which values it lies 95 % of the time."""
        low, high = np.quantile([figure(draw) for draw in self._draws], _TAILS)
        return Estimate(figure(np.arange(self._n)), float(low), float(high))


def _draws(groups: Names, resamples: int, seed: int) -> Iterator[Places]:
    members, rng = _members(groups), np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def _members(groups: Names) -> list[Places]:
    """The places of each group's rows."""
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")
    return np.split(order, np.cumsum(np.bincount(member))[:-1])


def _check(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if one.shape != other.shape or one.ndim != 1 or not one.size:
        raise LearningError(f"agreement: shapes {one.shape} and {other.shape}, want the same (n,) and not empty")
