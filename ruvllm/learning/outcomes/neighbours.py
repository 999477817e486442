"""What the nearest earlier queries brought on each tier, as features. Knows nothing of files, networks or costs.

A query's own outcome is never in it, nor that of one that says the same: rows of its group are left out, for training
rows as for tested ones, so that what is learnt in training holds for queries that were never seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.router.layout import LAYOUT

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Ints = NDArray[np.int64]

K = 40
_PRIOR = 10.0  # queries' worth of the tier's mean score
_SLAB = 512  # rows compared at a time
PLACES = LAYOUT["historical_accuracy"]


def neighbour_scores(embedding: Array, score: Wide, groups: Ints, train: Ints, k: int = K) -> Wide:
    """(n, m): mean score of each query's `k` nearest training queries of other groups, shrunk towards the tier's mean.

    `embedding` (n, d) unit vectors, `score` (n, m) with NaN where a tier was not run (it counts for nothing), `groups`
    (n,), `train` rows.

    Raises:
        LearningError: shapes do not fit, or a tier has no outcome in the training rows.
    """
    if not len(embedding) == len(score) == len(groups):
        raise LearningError(f"neighbours: {len(embedding)} vectors, {len(score)} scores, {len(groups)} groups")
    known = score[train]
    if np.isnan(known).all(axis=0).any():
        raise LearningError("neighbours: a tier has no outcome in the training rows; leave it out")
    mean = np.nanmean(known, axis=0)
    slabs = [
        _slab(embedding[at : at + _SLAB], groups[at : at + _SLAB], embedding[train], groups[train], k)
        for at in range(0, len(embedding), _SLAB)
    ]
    near = known[np.concatenate(slabs)]  # (n, k, m)
    counts = np.isfinite(near).sum(axis=1)
    return np.asarray((np.nansum(near, axis=1) + _PRIOR * mean) / (counts + _PRIOR), dtype=np.float64)


def with_neighbours(features: Array, neighbours: Wide) -> Array:
    """Features (n, 128) with the neighbours' scores (n, m) in the first places of historical accuracy, as it scales."""
    filled = features.copy()
    filled[:, PLACES.start : PLACES.start + neighbours.shape[1]] = (1 + 9 * neighbours) / 10
    return filled


def _slab(rows: Array, own: Ints, train: Array, groups: Ints, k: int) -> Ints:
    """(r, k): places in `train` of the nearest ones of another group."""
    similarity = rows @ train.T
    similarity[own[:, None] == groups[None, :]] = -np.inf
    k = min(k, len(train))
    return np.asarray(np.argpartition(-similarity, k - 1, axis=1)[:, :k], dtype=np.int64)
