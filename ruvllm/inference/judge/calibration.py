"""From a judge's score to the quality that gold would say: isotonic regression. Knows nothing of models or Postgres.

The curve never falls: a higher score is never worth less (Zadrozny and Elkan 2002). A curve is never scored on what it
was fitted on: `cross_validated` predicts each group from a curve fitted on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.agreement import Names, Values
from ruvllm.inference.judge.records import SCALE, Judged

FOLDS = 5
LEAST_ROWS = 20  # fewer say nothing


@dataclass(frozen=True)
class Curve:
    """Quality in [0, 1] over scores in 1 to 5: straight lines between knots, level outside them."""

    scores: tuple[float, ...]  # rising
    qualities: tuple[float, ...]  # never falling

    def quality(self, score: float) -> float:
        return float(np.interp(score, self.scores, self.qualities))

    def qualities_of(self, scores: Values) -> Values:
        """(n,) -> (n,)."""
        return np.interp(scores, self.scores, self.qualities)


def fit(scores: Values, gold: Values) -> Curve:
    """The curve with the least squares among those that never fall.

    Args:
        scores: (n,) in 1 to 5.
        gold: (n,) quality in [0, 1].

    Raises:
        LearningError: fewer than 20 rows, or a value out of range.
    """
    _check(scores, gold)
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, gold)
    return Curve(tuple(map(float, fitted.X_thresholds_)), tuple(map(float, fitted.y_thresholds_)))


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions (n,) by curves that did not see the row's group, and by the mean alone."""

    curve: Values
    mean: Values


def cross_validated(scores: Values, gold: Values, groups: Names, folds: int = FOLDS, seed: int = 0) -> OutOfFold:
    """Each row's quality as predicted from the other folds; a group is in one fold.

    Raises:
        LearningError: too few rows or groups.
    """
    fold = _folds(groups, folds, seed)
    curve, mean = np.empty(len(scores)), np.empty(len(scores))
    for each in range(folds):
        held = fold == each
        curve[held] = fit(scores[~held], gold[~held]).qualities_of(scores[held])
        mean[held] = gold[~held].mean()
    return OutOfFold(curve, mean)


def _folds(groups: Names, folds: int, seed: int) -> NDArray[np.int64]:
    """(n,): the fold of each row, groups dealt out evenly."""
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2 * folds:
        raise LearningError(f"judge calibration: got {len(names)} questions with gold, want at least {2 * folds}")
    place = np.random.default_rng(seed).permutation(len(names))
    dealt: NDArray[np.int64] = place[member] % folds
    return dealt


def data_digest(judged: Sequence[Judged]) -> str:
    """sha256 over what was judged and its gold, whatever the order: which data a calibration comes from."""
    rows = sorted(f"{each.item.key}:{each.item.gold}" for each in judged)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _check(scores: Values, gold: Values) -> None:
    if scores.shape != gold.shape or len(scores) < LEAST_ROWS:
        raise LearningError(f"judge calibration: got {len(scores)} rows with gold, want at least {LEAST_ROWS}")
    # a NaN is in no range
    if not (np.all((scores >= SCALE[0]) & (scores <= SCALE[-1])) and np.all((gold >= 0) & (gold <= 1))):
        raise LearningError("judge calibration: a value is out of range, want scores from 1 to 5 and gold from 0 to 1")
