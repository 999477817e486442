"""What every contender does: from features to the expected quality of each tier. Knows nothing of any contender.

A prediction is quality only, so that the price of cost (lambda) moves when the decision is made, not when it is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

_LEAST_ROWS = 4  # of a tier: fewer than this say nothing about it
_LEAST_SPREAD = 1e-6


class QualityPredictor(Protocol):
    """Fitted: answers for queries it never saw."""

    def predict(self, x: Array) -> Wide:
        """(k, d) -> (k, m): expected score of every tier, finite; it may leave [0, 1] a little."""
        ...


class Learner(Protocol):
    """Not fitted yet; holds its settings and may be fitted many times."""

    @property
    def name(self) -> str: ...

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        """Learn from rows (n, d) and scores (n, m) in [0, 1], NaN where a tier was not run.

        Raises:
            LearningError: the rows cannot be learnt from; the message says why.
        """
        ...


@dataclass(frozen=True, eq=False)
class Scaling:
    """x -> (x - mean) / scale, constant columns 0."""

    mean: Array  # (d,)
    scale: Array  # (d,), infinite for a constant column

    def apply(self, x: Array) -> Array:
        return np.asarray((x - self.mean) / self.scale, dtype=np.float32)


def make_scaling(x: Array) -> Scaling:
    """From training rows (n, d)."""
    spread = x.std(axis=0)
    scale = np.where(spread > _LEAST_SPREAD, spread, np.inf)
    return Scaling(x.mean(axis=0).astype(np.float32), scale.astype(np.float32))


def check_lesson(x: Array, score: Wide) -> None:
    """Refuse rows that nothing can be learnt from.

    Raises:
        LearningError: shapes do not fit, a feature is not finite, a score is outside [0, 1], or a tier has next to no
            outcomes.
    """
    if x.ndim != 2 or score.ndim != 2 or len(x) != len(score):
        raise LearningError(f"lesson: features {x.shape} and scores {score.shape}, want (n, d) and (n, m)")
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise LearningError(f"lesson: features of row {row} are not finite, want numbers")
    known = np.isfinite(score)
    if known.any() and (score[known].min() < 0 or score[known].max() > 1):
        raise LearningError(f"lesson: scores {score[known].min():g} to {score[known].max():g}, want 0 to 1")
    counts = known.sum(axis=0)
    if counts.min() < _LEAST_ROWS:
        raise LearningError(
            f"lesson: tier {int(counts.argmin())} has {counts.min()} outcomes in {len(x)} rows, want at least"
            f" {_LEAST_ROWS}; leave the tier out or collect more"
        )
