"""Answering only where it is safe: a threshold on the confidence with a guarantee. Knows nothing of what is decided.

Learn then test (Angelopoulos et al. 2021) with fixed-sequence testing: thresholds of a grid set beforehand are tried
from the strictest down; each is kept if the chance of so few errors, were the risk over `risk`, is at most `delta`;
the first that fails ends it. With probability 1 - delta over the calibration rows the error rate among accepted rows is
then at most `risk`. For one threshold the count of errors is binomial, so its tail is exact (Geifman and El-Yaniv
2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]

_GRID = np.linspace(0.99, 0.0, 100)  # set beforehand: it depends on no row


@dataclass(frozen=True)
class Selective:
    """`threshold` 1 and coverage 0: no threshold is shown to be safe, nothing is accepted on this ground."""

    threshold: float
    coverage: float  # share of the calibration rows at or over it
    errors: int  # among them
    risk: float  # that is promised
    delta: float  # chance that the promise is broken


def selective_threshold(confidence: Values, wrong: NDArray[np.bool_], risk: float, delta: float) -> Selective:
    """The lowest threshold that is shown to keep `risk`, from calibration rows (n,).

    Raises:
        LearningError: no row, shapes differ, a confidence is not in [0, 1], or risk or delta is not between 0 and 1.
    """
    _check(confidence, wrong, risk, delta)
    least = math.ceil(math.log(delta) / math.log1p(-risk))  # accepted rows below which no count of errors can convince
    found = Selective(1.0, 0.0, 0, risk, delta)
    for threshold in _GRID:
        accepted = confidence >= threshold
        count, errors = int(accepted.sum()), int(wrong[accepted].sum())
        if count < least:
            continue
        if binomial_tail(errors, count, risk) > delta:
            break
        found = Selective(float(threshold), count / len(wrong), errors, risk, delta)
    return found


def binomial_tail(most: int, n: int, p: float) -> float:
    """P(X <= most) for X binomial of n trials with chance p in (0, 1)."""
    if most >= n:
        return 1.0
    k = np.arange(most + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k.tolist()])
    return float(min(1.0, np.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p)).sum()))


def _check(confidence: Values, wrong: NDArray[np.bool_], risk: float, delta: float) -> None:
    if confidence.shape != wrong.shape or confidence.ndim != 1 or not confidence.size:
        raise LearningError(f"selective: shapes {confidence.shape} and {wrong.shape}, want (n,) twice and not empty")
    if not (np.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() <= 1):
        raise LearningError("selective: a confidence is outside [0, 1], want a probability")
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise LearningError(f"selective: {name} is {value}, want between 0 and 1")
