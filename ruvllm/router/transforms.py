"""Fitted feature transforms: principal components and cluster centres of question vectors. Knows nothing of the router.

They are fitted nightly on the snapshot's embeddings, travel in the router's bundle, and are what makes the places
`principal_components` and `cluster_assignment` comparable between training and serving. numpy only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.router.layout import LAYOUT, N_CLUSTERS, N_COMPONENTS

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

_MIN_ROWS = 8
_MAX_ROUNDS = 50
_STARTS = 6  # k-means finds a local optimum; the best of a few is stable
_LEAST_SPREAD = 1e-6
_FITTED = (LAYOUT["principal_components"], LAYOUT["cluster_assignment"])


@dataclass(frozen=True, eq=False)
class Transforms:
    """`components` are orthonormal rows; `spread` is the mean squared distance to the own centroid, a scalar array."""

    mean: Array  # (d,)
    components: Array  # (8, d)
    centroids: Array  # (4, d)
    spread: Array  # ()

    @property
    def dimension(self) -> int:
        return int(self.mean.shape[0])

    @cached_property
    def version(self) -> str:
        """Digest of the arrays."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(name.encode() + np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, Array]:
        return {"mean": self.mean, "components": self.components, "centroids": self.centroids, "spread": self.spread}

    def project(self, embeddings: Wide) -> Wide:
        """(n, d) -> (n, 8)."""
        projected: Wide = (embeddings - self.mean) @ self.components.T
        return projected

    def assign(self, embeddings: Wide) -> Wide:
        """(n, d) -> (n, 4), rows sum to 1: softmax of -squared distance / spread."""
        distances = _squared_distances(embeddings, self.centroids.astype(np.float64))  # (n, 4)
        weights = np.exp((distances.min(axis=1, keepdims=True) - distances) / max(float(self.spread), _LEAST_SPREAD))
        shares: Wide = weights / weights.sum(axis=1, keepdims=True)
        return shares


def apply_transforms(features: Array, embeddings: Array, transforms: Transforms) -> Array:
    """Copy of `features` (n, 128) with the fitted places computed anew from `embeddings` (n, d).

    For training: stored features were extracted with whatever transforms were promoted on that day.
    """
    components, clusters = _FITTED
    wide, renewed = embeddings.astype(np.float64), features.astype(np.float64)
    renewed[:, components] = transforms.project(wide)
    renewed[:, clusters] = transforms.assign(wide)
    return np.clip(renewed, LAYOUT.low, LAYOUT.high).astype(np.float32)


def fit_transforms(embeddings: Array, seed: int) -> Transforms:
    """Fit on (n, d) question vectors: SVD for the components, k-means++ and Lloyd for the centroids. Deterministic.

    Raises:
        LearningError: fewer than 8 rows or dimensions, or a value is not finite.
    """
    if embeddings.ndim != 2 or min(embeddings.shape) < _MIN_ROWS:
        raise LearningError(f"embeddings: shape {embeddings.shape}, want at least {_MIN_ROWS} rows and dimensions")
    if not np.isfinite(embeddings).all():
        raise LearningError("embeddings: a value is not finite; the snapshot is damaged, write it again")
    points = embeddings.astype(np.float64)
    mean = points.mean(axis=0)
    components = _principal_components(points - mean)
    centroids = _k_means(points, np.random.default_rng(seed))
    spread = _squared_distances(points, centroids).min(axis=1).mean()
    return Transforms(*(array.astype(np.float32) for array in (mean, components, centroids, np.asarray(spread))))


def _principal_components(centred: Wide) -> Wide:
    """(n, d) -> (8, d). The sign of a singular vector is arbitrary: its largest entry is made positive."""
    rows = np.linalg.svd(centred, full_matrices=False)[2][:N_COMPONENTS]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)  # (8, 1)
    signed: Wide = rows * np.where(largest < 0, -1.0, 1.0)
    return signed


def _k_means(points: Wide, rng: np.random.Generator) -> Wide:
    """(n, d) -> (4, d): the tightest of several starts, the fullest cluster first."""
    starts = [_lloyd(points, _k_means_plus_plus(points, rng)) for _ in range(_STARTS)]
    centroids = min(starts, key=lambda centres: float(_squared_distances(points, centres).min(axis=1).sum()))
    sizes = np.bincount(_squared_distances(points, centroids).argmin(axis=1), minlength=N_CLUSTERS)
    ordered: Wide = centroids[np.argsort(-sizes, kind="stable")]
    return ordered


def _lloyd(points: Wide, centroids: Wide) -> Wide:
    """Move each centre to the mean of its points until none changes hands; an empty cluster keeps its centre."""
    owners = np.full(len(points), -1)
    for _ in range(_MAX_ROUNDS):
        nearest = _squared_distances(points, centroids).argmin(axis=1)
        if (nearest == owners).all():
            break
        owners = nearest
        for cluster in np.unique(owners):
            centroids[cluster] = points[owners == cluster].mean(axis=0)
    return centroids


def _k_means_plus_plus(points: Wide, rng: np.random.Generator) -> Wide:
    """First centres, each drawn by its squared distance from those there (Arthur and Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < N_CLUSTERS:
        weights = _squared_distances(points, points[chosen]).min(axis=1)
        total = weights.sum()
        chosen.append(int(rng.choice(len(points), p=weights / total)) if total > 0 else chosen[0])
    return points[chosen].copy()


def _squared_distances(points: Wide, centres: Wide) -> Wide:
    """(n, d), (k, d) -> (n, k), without an (n, k, d) array in between."""
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None, :]
    distances: Wide = np.maximum(squares - 2 * points @ centres.T, 0)
    return distances
