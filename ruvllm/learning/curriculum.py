"""Competence-based curriculum (Platanios et al. 2019): which questions a step may draw. Knows nothing of networks.

A question's difficulty d is its place, in (0, 1], in the order from easy to hard; competence grows as

    c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2))

and step t draws from the questions with d <= c(t): those weigh 1, the others 0, as `fit` takes weights of rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]


def competence(step: int, duration: int, start: float = 0.1) -> float:
    """c(t) in (0, 1]: the share of questions that may be drawn at `step`; 1 from step `duration` on.

    Raises:
        LearningError: step below 0, duration below 1, or start not in (0, 1].
    """
    if step < 0 or duration < 1 or not 0 < start <= 1:
        raise LearningError(
            f"curriculum: step {step}, duration {duration}, start {start:g}; want >= 0, >= 1 and above 0 up to 1"
        )
    return min(1.0, math.sqrt(step * (1 - start**2) / duration + start**2))


def difficulty(margin: Values, length: Values, hops: Values) -> Values:
    """(n,) in (0, 1]: the mean rank of a small label margin, a long question and many hops, ranked itself.

    margin: expected utility of the best choice minus that of the second; length: in tokens; hops: of its search. Ranks,
    not values, as in the paper: the units do not compare. Ties are as hard as each other.

    Raises:
        LearningError: lengths differ, there are no questions, or a value is not finite.
    """
    signs = _checked(-margin, length, hops)
    ranks = np.stack([_ranks(sign) for sign in signs])
    return _ranks(np.asarray(ranks.mean(axis=0).round(12), dtype=np.float64))


def row_weights(difficulty: Values, reached: float) -> Values:
    """(n,) of 1 and 0: the questions within the competence reached; the easiest are always in.

    Raises:
        LearningError: there are no questions.
    """
    if not len(difficulty):
        raise LearningError("curriculum: no questions, want one or more")
    return np.asarray(difficulty <= max(reached, float(difficulty.min())), dtype=np.float64)


def _checked(*signs: Values) -> tuple[Values, ...]:
    shapes = [sign.shape for sign in signs]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise LearningError(f"curriculum: margin, length and hops are {shapes}, want (n,) each with the same n >= 1")
    if not all(np.isfinite(sign).all() for sign in signs):
        raise LearningError("curriculum: a margin, length or hop count is not finite; want numbers; leave the row out")
    return signs


def _ranks(values: Values) -> Values:
    """Share of values that are not above each: the cumulative distribution, as in the paper."""
    return np.searchsorted(np.sort(values), values, side="right") / len(values)
