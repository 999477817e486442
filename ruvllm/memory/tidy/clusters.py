"""Groups of vectors that lie close together: k-means cuts a big set into parts, density finds the groups inside.

Pure functions of arrays; knows nothing of nodes or of the database. DBSCAN (Ester et al. 1996) rather than k-means
alone: k-means puts every vector into a group, and what is like nothing else must stay alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.records import Vector

_PART = 1_000  # vectors that density is looked for among: its cost is quadratic
_CORE = 3  # vectors near by that make one a core
MOST = 32  # members of a group: one summary cannot speak for hundreds


def groups(vectors: Vector, similarity: float, least: int) -> list[NDArray[np.int64]]:
    """Indices into `vectors` (n, d), of unit length: each group by nearness to its centre, the biggest group first.

    Every member has at least the cosine `similarity` with the centre, and a group has `least` to 32 members; what lies
    in none is in no list.
    """
    found = [group for part in _parts(vectors) for group in _dense(vectors, part, similarity, least)]
    return sorted(found, key=lambda group: (-len(group), int(group[0])))


def _parts(vectors: Vector) -> list[NDArray[np.int64]]:
    """Indices of each part; one part where the set is small."""
    everything = np.arange(len(vectors))
    if len(vectors) <= _PART:
        return [everything] if len(vectors) else []
    from sklearn.cluster import MiniBatchKMeans

    parts = -(-len(vectors) // _PART)
    labels = MiniBatchKMeans(parts, random_state=0, n_init=1, batch_size=4096).fit_predict(vectors)
    return [everything[labels == label] for label in range(parts)]


def _dense(vectors: Vector, part: NDArray[np.int64], similarity: float, least: int) -> Iterator[NDArray[np.int64]]:
    if len(part) < least:
        return
    from sklearn.cluster import DBSCAN

    labels = DBSCAN(eps=1 - similarity, min_samples=_CORE, metric="cosine").fit_predict(vectors[part])
    for label in range(labels.max() + 1):
        group = _around_centre(vectors, part[labels == label], similarity)
        if len(group) >= least:
            yield group[:MOST]


def _around_centre(vectors: Vector, group: NDArray[np.int64], similarity: float) -> NDArray[np.int64]:
    """The nearest to the centre first; density chains far things together, so what is far from it is left out."""
    centre = vectors[group].mean(axis=0)
    near = vectors[group] @ (centre / np.linalg.norm(centre))  # (m,)
    order = np.argsort(-near, kind="stable")
    kept: NDArray[np.int64] = group[order[near[order] >= similarity]]
    return kept
