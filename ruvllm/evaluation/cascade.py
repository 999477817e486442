"""What a cascade would have brought, by its floor. Knows nothing of models: scores, costs and certainties only.

The first tier answers every question; where its certainty is below the floor the next one answers as well, its score
counts and both costs are paid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    floor: float
    escalated: float  # share
    quality: float
    cost: float  # of both answers


def cascade_points(small: Values, big: Values, cost: Values, certainty: Values, floors: Values) -> list[Point]:
    """One point a floor; scores of the two tiers (n,), their costs (n, 2), certainty of the small one's answers (n,).

    Raises:
        LearningError: no row, shapes differ, or a value is not finite.
    """
    if not small.size or not (small.shape == big.shape == certainty.shape) or cost.shape != (len(small), 2):
        raise LearningError(
            f"cascade: shapes {small.shape}, {big.shape}, {certainty.shape}, {cost.shape}; want (n,) thrice and (n, 2)"
        )
    if not all(np.isfinite(values).all() for values in (small, big, cost, certainty)):
        raise LearningError("cascade: a value is not finite; leave out rows that a tier did not answer")
    return [_point(small, big, cost, certainty < floor, float(floor)) for floor in floors]


def _point(small: Values, big: Values, cost: Values, goes_on: NDArray[np.bool_], floor: float) -> Point:
    quality = np.where(goes_on, big, small)
    spent = cost[:, 0] + np.where(goes_on, cost[:, 1], 0.0)
    return Point(floor, float(goes_on.mean()), float(quality.mean()), float(spent.mean()))
