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
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=came_true - confidence, minlength=bins)  # sums within each bin
    return float(np.abs(gaps).sum() / confidence.size)
