"""How well a ranking finds what is needed, with intervals. Depends on nothing but numpy.

    recall@k   share of the gold passages among the first k
    whole@k    1 where every gold passage is among the first k: an answer over several passages needs all of them
    ndcg@k     discounted gain over the best possible (Järvelin & Kekäläinen 2002), equal grades

A question without gold says nothing and is refused. Intervals are percentile bootstraps over questions (Efron &
Tibshirani 1993, chapter 13); two rankings of the same questions are compared question by question.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]

RESAMPLES = 2000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, over `n` questions."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def recall_at(ranking: Sequence[int], gold: Collection[int], k: int) -> float:
    """In [0, 1]; an id that the ranking repeats counts once."""
    wanted = _wanted(gold)
    return len(wanted & set(ranking[:k])) / len(wanted)


def whole_at(ranking: Sequence[int], gold: Collection[int], k: int) -> float:
    return float(_wanted(gold) <= set(ranking[:k]))


def ndcg_at(ranking: Sequence[int], gold: Collection[int], k: int) -> float:
    wanted = _wanted(gold)
    gain = sum(1.0 / np.log2(place + 2) for place, id in enumerate(ranking[:k]) if id in wanted)
    best = sum(1.0 / np.log2(place + 2) for place in range(min(k, len(wanted))))
    return float(gain / best)


def _wanted(gold: Collection[int]) -> set[int]:
    if not gold:
        raise LearningError("retrieval: a question without gold says nothing; leave it out")
    return set(gold)


def interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Of the mean of one figure per question.

    Raises:
        LearningError: no question, or a figure that is not finite.
    """
    figures = _figures(values)
    low, high = np.quantile(figures[_draws(len(figures), seed, resamples)].mean(axis=1), _TAILS)
    return Interval(float(figures.mean()), float(low), float(high), len(figures))


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Of the mean of ours - theirs, question by question; over 0 as a whole: ours is better.

    Raises:
        LearningError: figures of different questions.
    """
    if len(ours) != len(theirs):
        raise LearningError(f"retrieval: got {len(ours)} and {len(theirs)} figures, want one of each question")
    return interval((_figures(ours) - _figures(theirs)).tolist(), seed)


def _figures(values: Sequence[float]) -> Values:
    figures = np.asarray(values, dtype=np.float64)
    if not figures.size or not np.isfinite(figures).all():
        raise LearningError(f"retrieval: got {figures.size} figures, want at least one and all of them finite")
    return figures


def _draws(n: int, seed: int, resamples: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).integers(n, size=(resamples, n))
