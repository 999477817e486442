"""Calibration of a probability: does 0.7 come true seven times in ten? numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError


def expected_calibration_error(confidence: NDArray[np.float64], came_true: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean over equal bins of |share that came true - mean confidence|, weighted by their rows (Naeini et al.).

    With few rows it is biased upwards: a perfectly calibrated confidence over 20 rows shows about 0.1.

    Raises:
        LearningError: no row, or arrays of different length.
    """
    if confidence.shape != came_true.shape or not confidence.size:
        raise LearningError(
            f"calibration: shapes {confidence.shape} and {came_true.shape}, want the same and not empty"
        )
    return calibration_error(confidence, came_true.astype(np.float64), bins)


def calibration_error(expected: NDArray[np.float64], found: NDArray[np.float64], bins: int = 10) -> float:
    """The same of expected scores in [0, 1] against scores that need not be 0 or 1.

    Raises:
        LearningError: no row, arrays of different length, or a value outside [0, 1].
    """
    if expected.shape != found.shape or expected.ndim != 1 or not expected.size:
        raise LearningError(f"calibration: shapes {expected.shape} and {found.shape}, want (n,) twice and not empty")
    if not (expected.min() >= 0 and expected.max() <= 1):  # NaN is neither
        raise LearningError("calibration: an expected score is outside [0, 1], want probabilities")
    place = np.minimum((expected * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=found - expected, minlength=bins)  # sums within each bin
    return float(np.abs(gaps).sum() / expected.size)


def calibrated_error(expected: NDArray[np.float64], bins: int = 10, draws: int = 200, seed: int = 0) -> float:
    """The 95th percentile of `calibration_error` were `expected` (n,) exactly right: the least that n rows can show.

    Scores are drawn as successes, so for scores between 0 and 1 it is an upper bound. After Broecker and Smith 2007.

    Raises:
        LearningError: as `calibration_error`.
    """
    rng = np.random.default_rng(seed)
    came = (rng.random((draws, len(expected))) < expected).astype(np.float64)
    drawn = [calibration_error(expected, row, bins) for row in came]
    return float(np.quantile(drawn, 0.95))
