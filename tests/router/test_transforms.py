"""Fitted transforms against definitions: orthonormal components of greatest variance, the nearest of four centres."""

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.router.features import FeatureInput, extract
from ruvllm.router.layout import LAYOUT
from ruvllm.router.transforms import apply_transforms, fit_transforms

D = 12


def blobs(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Four well separated groups of different size; (4n, D) points and their owners."""
    rng = np.random.default_rng(3)
    centres = 3 * np.eye(4, D)
    owners = np.repeat([0, 1, 2, 3], [n + 9, n + 6, n + 3, n])
    return (centres[owners] + rng.normal(0, 0.1, (len(owners), D))).astype(np.float32), owners


def test_components_are_those_of_the_covariance() -> None:
    points, _ = blobs()
    fitted = fit_transforms(points, seed=0)
    values, vectors = np.linalg.eigh(np.cov(points.T.astype(np.float64)))
    largest = vectors[:, np.argsort(values)[::-1][:8]].T
    np.testing.assert_allclose(np.abs((fitted.components * largest).sum(axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(fitted.project(points).mean(axis=0), 0, atol=1e-5)


def test_clusters_are_found_the_fullest_first() -> None:
    points, owners = blobs()
    shares = fit_transforms(points, seed=0).assign(points)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (shares.argmax(axis=1) == owners).all()


def test_same_seed_same_transforms() -> None:
    points, _ = blobs()
    assert fit_transforms(points, 7).version == fit_transforms(points.copy(), 7).version


def test_applying_afterwards_equals_extracting_with_them() -> None:
    points, _ = blobs()
    fitted = fit_transforms(points, seed=0)
    inputs = [FeatureInput(question="Who?", token_count=2, embedding=point) for point in points[:5]]
    cold = np.stack([extract(given) for given in inputs])
    warm = np.stack([extract(given, fitted) for given in inputs])
    assert not cold[:, LAYOUT["cluster_assignment"]].any()
    np.testing.assert_allclose(apply_transforms(cold, points[:5], fitted), warm, atol=1e-6)
    assert warm[:, LAYOUT["cluster_assignment"]].any()


def test_too_little_or_damaged_data_is_refused() -> None:
    points, _ = blobs()
    with pytest.raises(LearningError, match="at least 8 rows"):
        fit_transforms(points[:7], seed=0)
    points[3, 3] = np.nan
    with pytest.raises(LearningError, match="not finite"):
        fit_transforms(points, seed=0)


def test_identical_points_are_no_trouble() -> None:
    fitted = fit_transforms(np.ones((20, D), dtype=np.float32), seed=0)
    assert np.isfinite(fitted.assign(np.ones((1, D), dtype=np.float32))).all()
