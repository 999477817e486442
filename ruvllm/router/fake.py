"""A small random bundle for the unit tests of others; never for a cycle or a benchmark. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.bundle import Golden, router_shapes, write_bundle
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.folded import HEADS
from ruvllm.router.layout import LAYOUT, N_CLUSTERS, N_COMPONENTS, N_FEATURES
from ruvllm.router.manifest import QUALITY, Calibration, Deciding, Manifest
from ruvllm.router.transforms import Transforms

Wide = NDArray[np.float64]
_TIERS = ("smollm2-135m", "gemma3-270m", "", "")
_GOLDEN_ROWS = 8
_DECIDING = Deciding(latency_weight=0.1, cost_weight=0.5, sharpness=0.3)


def write_random_bundle(
    folder: Path,
    version: str = "test",
    ladder: str = "packaged",
    tiers: tuple[str, ...] = _TIERS,
    seed: int = 0,
    *,
    hidden: int = 32,
    encoder_id: str = "test-encoder",
    dimension: int = 0,
    threshold: float = 0.0,
    temperature: float = 1.0,
    reset_gate: bool = False,
    deciding: Deciding = _DECIDING,
) -> str:
    """Write an untrained router; returns its digest. `dimension` over 0 adds transforms for vectors of that length."""
    rng = np.random.default_rng(seed)
    arrays = random_arrays(rng, hidden, reset_gate)
    manifest = Manifest(
        version=version,
        created_at="2026-01-01T00:00:00+00:00",
        ladder=ladder,
        tiers=tiers,
        variant="spec",
        hidden=hidden,
        layout_hash=LAYOUT.hash,
        encoder_id=encoder_id,
        snapshot="0" * 64,
        metrics={"test_regret": 0.0},
        calibration=Calibration(temperature=temperature, threshold=threshold),
        deciding=deciding,
    )
    golden = _golden(rng, arrays, manifest)
    transforms = _random_transforms(rng, dimension) if dimension else None
    return write_bundle(folder, arrays, manifest, golden=golden, transforms=transforms)


def random_arrays(rng: np.random.Generator, hidden: int, reset_gate: bool = False) -> dict[str, NDArray[np.float32]]:
    """Arrays of router.safetensors with values in the range that training gives."""
    arrays = {
        name: np.asarray(rng.normal(0, 0.3, shape), dtype=np.float32)
        for name, shape in router_shapes(hidden, reset_gate).items()
    }
    scale = rng.uniform(0.1, 1.0, N_FEATURES).astype(np.float32)
    return {
        **arrays,
        "feature_scale": scale,
        "zeta": np.array(0.9, dtype=np.float32),
        "nu": np.array(0.1, dtype=np.float32),
        "wide": (arrays["wide"] * 0.2).astype(np.float32),
        "latency_s": np.abs(arrays["latency_s"]),
        "cost": np.abs(arrays["cost"]),
    }


def _golden(rng: np.random.Generator, arrays: Mapping[str, NDArray[np.float32]], manifest: Manifest) -> Golden:
    features = rng.uniform(LAYOUT.low, LAYOUT.high, (_GOLDEN_ROWS, N_FEATURES)).astype(np.float32)
    hidden = rng.normal(0, 0.5, (_GOLDEN_ROWS, manifest.hidden)).astype(np.float32)
    hidden[: _GOLDEN_ROWS // 2] = 0  # first turns
    outputs = _forward({name: array.astype(np.float64) for name, array in arrays.items()}, manifest, features, hidden)
    return Golden(features, hidden, *(np.asarray(output, dtype=np.float32) for output in outputs))


def _forward(
    a: Mapping[str, Wide], manifest: Manifest, features: NDArray[np.float32], hidden: NDArray[np.float32]
) -> tuple[Wide, ...]:
    """Specification 5.1 and 5.2 for a batch, nothing folded, in the order of Golden's outputs."""
    x = (features - a["feature_mean"]) / a["feature_scale"]  # (n, 128)
    z = _sigmoid(x @ a["W_z"].T + hidden @ a["U_z"].T + a["b_z"])  # (n, H)
    r = _sigmoid(x @ a["W_r"].T + hidden @ a["U_r"].T + a["b_r"]) if "W_r" in a else np.ones_like(z)
    candidate = np.tanh(x @ a["W_h"].T + (r * hidden) @ a["U_h"].T + a["b_h"])
    following = (a["zeta"] * (1 - z) + a["nu"]) * candidate + z * hidden
    logits = {name: following @ a[f"{name}.w"].T + a[f"{name}.b"] for name in HEADS}
    for name, rows in zip(HEADS, np.split(x @ a["wide"].T, [N_TIERS, N_TIERS + N_BINS, -1], axis=1), strict=False):
        logits[name] = logits[name] + rows
    deciding, quality = manifest.deciding, _sigmoid(logits["quality"])
    level = 1 - deciding.latency_weight * a["latency_s"] - deciding.cost_weight * a["cost"]  # (4, 5)
    utility = 4 * quality + level.T[logits["context"].argmax(axis=1)]
    choice = (utility / deciding.sharpness if deciding.head == QUALITY else logits["model"]) + a["tier_shift"]
    present = np.array([bool(name) for name in manifest.tiers])
    return (
        _softmax(np.where(present, choice, -np.inf)),
        _softmax(logits["context"]),
        2 * _sigmoid(logits["temperature"])[:, 0],
        _sigmoid(logits["top_p"])[:, 0],
        _sigmoid(logits["confidence"] / manifest.calibration.temperature)[:, 0],
        quality,
        utility,
        following,
    )


def _random_transforms(rng: np.random.Generator, dimension: int) -> Transforms:
    rows = np.linalg.qr(rng.normal(size=(dimension, N_COMPONENTS)))[0].T
    return Transforms(
        mean=np.zeros(dimension, dtype=np.float32),
        components=np.ascontiguousarray(rows, dtype=np.float32),
        centroids=rng.normal(0, 1, (N_CLUSTERS, dimension)).astype(np.float32),
        spread=np.asarray(1.0, dtype=np.float32),
    )


def _sigmoid(values: Wide) -> Wide:
    positive: Wide = 1 / (1 + np.exp(-values))
    return positive


def _softmax(logits: Wide) -> Wide:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Wide = weights / weights.sum(axis=1, keepdims=True)
    return shares
