"""The best few of many, ties broken by id. Knows nothing of what is ranked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def best_first(scores: NDArray[Any], ids: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Places of the `most` highest scores (n,), the highest first; of equals the lower id."""
    if most <= 0:
        return np.zeros(0, dtype=np.intp)
    if len(scores) <= 2 * most:
        return np.lexsort((ids, -scores))[:most]
    least = np.partition(scores, len(scores) - most)[len(scores) - most]
    places = np.flatnonzero(scores >= least)  # with all that are as good as the last one
    order: NDArray[np.intp] = places[np.lexsort((ids[places], -scores[places]))][:most]
    return order
