"""A judge held against gold: agreement, calibration, bias, and whether its word may count. Knows nothing of Postgres.

Refused is a judge whose agreement with gold is not above chance: where the interval of Spearman's correlation or of
Cohen's kappa reaches 0, or its calibrated scores predict gold no better than the mean does. Kappa is of levels after
calibration out of fold, so that a judge is not blamed for a shifted scale, nor praised for one fitted to the same rows;
`kappa_raw` takes the scores as they are said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.agreement import (
    RESAMPLES,
    Estimate,
    Levels,
    Names,
    Resampler,
    Values,
    cohen_kappa,
    ordered_share,
    spearman,
    spearman_within,
)
from ruvllm.evaluation.calibration import expected_calibration_error
from ruvllm.inference.judge.calibration import OutOfFold, cross_validated
from ruvllm.inference.judge.records import SCALE, Judged, to_quality

LEAST_GROUPS = 50  # questions; fewer cannot speak for a judge
HALF_MASS = 0.5


@dataclass(frozen=True)
class Agreement:
    """One judge on one data set. Intervals are 95 %, over whole questions."""

    name: str
    n: int  # with gold and a score
    groups: int  # questions
    unscored: int
    levels: int  # of gold: 2 is plain kappa, more is linearly weighted
    spearman: Estimate
    kappa: Estimate
    kappa_raw: Estimate
    skill: Estimate  # 1 - squared error / squared error of the mean, both out of fold
    error: float  # mean absolute, of the calibrated quality out of fold
    ece: float | None  # expected calibration error out of fold, where gold is yes or no
    ordered: float | None  # pairs of one question that it orders as gold does; 0.5 is chance
    length: Estimate  # rank correlation of score and words of the answer, at equal gold
    mass: float  # median probability that a score of 1 to 5 comes next at all
    mass_low: float  # share of items where that is below a half

    @property
    def refusals(self) -> list[str]:
        """Why a judge with this agreement may not label; empty: it may."""
        found = [
            (self.groups < LEAST_GROUPS, f"{self.groups} questions, want at least {LEAST_GROUPS}"),
            (not self.spearman.beyond_chance, f"Spearman's correlation {_shown(self.spearman)} is not above chance"),
            (not self.kappa.beyond_chance, f"Cohen's kappa {_shown(self.kappa)} is not above chance"),
            (not self.skill.beyond_chance, f"calibrated it predicts gold no better than the mean {_shown(self.skill)}"),
        ]
        return [f"{self.name}: {why}" for wrong, why in found if wrong]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(name: str, judged: Sequence[Judged], resamples: int = RESAMPLES, seed: int = 0) -> Agreement:
    """How far `judged` agrees with the gold of its items; items without gold are left out.

    Raises:
        LearningError: too few items have gold and a score.
    """
    with_gold = [each for each in judged if each.item.gold is not None]
    scored = [each for each in with_gold if each.verdict.score is not None]
    if not scored:
        raise LearningError(f"judge on {name}: no item of {len(with_gold)} with gold got a score")
    columns = columns_of(scored)
    oof = cross_validated(columns.score, columns.gold, columns.group, seed=seed)
    draw = Resampler(columns.group, resamples, seed)
    mass = np.array([each.verdict.mass for each in with_gold])
    return Agreement(
        name=name,
        n=len(scored),
        groups=len(np.unique(columns.group)),
        unscored=len(with_gold) - len(scored),
        mass=float(np.median(mass)),
        mass_low=float((mass < HALF_MASS).mean()),
        **_figures(columns, oof, draw),
    )


@dataclass(frozen=True, eq=False)
class Columns:
    """Items with gold and a score, as arrays (n,)."""

    score: Values
    gold: Values
    words: Values  # of the answer
    group: Names

    @property
    def binary(self) -> bool:
        return bool(np.isin(self.gold, (0.0, 1.0)).all())


def columns_of(scored: Sequence[Judged]) -> Columns:
    return Columns(
        score=np.array([each.verdict.score for each in scored], dtype=np.float64),
        gold=np.array([each.item.gold for each in scored], dtype=np.float64),
        words=np.array([len(each.item.answer.split()) for each in scored], dtype=np.float64),
        group=np.array([each.item.group for each in scored]),
    )


def _figures(c: Columns, oof: OutOfFold, draw: Resampler) -> dict[str, Any]:
    levels = 2 if c.binary else len(SCALE)
    wanted, raw, fitted = (to_levels(v, levels) for v in (c.gold, _plain(c.score), oof.curve))
    linear = levels > 2
    return {
        "levels": levels,
        "spearman": draw.estimate(lambda rows: spearman(c.score[rows], c.gold[rows])),
        "kappa": draw.estimate(lambda rows: cohen_kappa(fitted[rows], wanted[rows], levels, linear)),
        "kappa_raw": draw.estimate(lambda rows: cohen_kappa(raw[rows], wanted[rows], levels, linear)),
        "skill": draw.estimate(lambda rows: _skill(oof, c.gold, rows)),
        "length": draw.estimate(lambda rows: spearman_within(c.score[rows], c.words[rows], wanted[rows])),
        "error": float(np.abs(oof.curve - c.gold).mean()),
        "ece": expected_calibration_error(oof.curve, c.gold > 0) if c.binary else None,
        "ordered": ordered_share(c.score, c.gold, c.group),
    }


def to_levels(quality: Values, levels: int) -> Levels:
    """(n,) in [0, 1] -> (n,) in 0 ... levels - 1, the nearest; a half goes up."""
    return np.floor(quality * (levels - 1) + 0.5).astype(np.int64)


def _plain(scores: Values) -> Values:
    """(n,) on 1 to 5 -> [0, 1], uncalibrated."""
    return np.array([to_quality(score) for score in scores])


def _skill(oof: OutOfFold, gold: Values, rows: NDArray[np.intp]) -> float:
    """1: perfect; 0: as good as the mean of the other folds; below: worse."""
    error = ((oof.curve[rows] - gold[rows]) ** 2).sum()
    constant = ((oof.mean[rows] - gold[rows]) ** 2).sum()
    return float(1 - error / constant) if constant > 0 else 0.0


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


@dataclass(frozen=True)
class Change:
    """The same answers asked in two ways: second minus first, in points of the scale."""

    n: int
    mean: Estimate
    size: float  # mean absolute change
    flips: float  # share whose nearest whole score changes


def change(first: Sequence[Judged], second: Sequence[Judged], resamples: int = RESAMPLES, seed: int = 0) -> Change:
    """Bias by position or length: `second[i]` is `first[i]` with its passages turned, or its answer padded.

    Raises:
        LearningError: no pair has two scores.
    """
    pairs = [
        (a.item.group, a.verdict.score, b.verdict.score)
        for a, b in zip(first, second, strict=True)
        if a.verdict.score is not None and b.verdict.score is not None
    ]
    if not pairs:
        raise LearningError("judge's bias: no item has a score both ways")
    one, other = (np.array([pair[place] for pair in pairs], dtype=np.float64) for place in (1, 2))
    draw = Resampler(np.array([pair[0] for pair in pairs]), resamples, seed)
    return Change(
        n=len(pairs),
        mean=draw.estimate(lambda rows: float((other - one)[rows].mean())),
        size=float(np.abs(other - one).mean()),
        flips=float((np.floor(one + 0.5) != np.floor(other + 0.5)).mean()),
    )
