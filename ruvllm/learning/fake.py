"""Made-up snapshots for unit tests and for timing; never for a cycle or a figure of quality. Knows nothing of models.

`determined`: three features say which tier answers and how much context it needs. `random`: outcomes that no feature
tells anything about. `weak`: a feature tells a little, most questions are lost on both tiers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.learning.data import Snapshot, load_snapshot
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.layout import LAYOUT, N_FEATURES

Arrays = dict[str, NDArray[Any]]

TIERS = ("small", "big", "", "")
_BINS = 3  # that were run
_TELL_TIER, _TELL_BIN = LAYOUT["memory_coverage"].start, LAYOUT["token_count"].start
_GROUP_ROWS = 3
_LATENCY = np.array([0.4, 0.8])
_PREFILL = np.array([0.05, 0.1, 0.2])


def fake_arrays(
    n_train: int = 60, n_test: int = 30, kind: str = "determined", seed: int = 0, session_share: float = 0.3
) -> Arrays:
    """Arrays of a snapshot of one night."""
    n, rng = n_train + n_test, np.random.default_rng(seed)
    features = rng.uniform(LAYOUT.low, LAYOUT.high, (n, N_FEATURES)).astype(np.float32)
    features[:, LAYOUT["principal_components"]] = 0
    features[:, LAYOUT["cluster_assignment"]] = 0
    split = (np.arange(n) >= n_train).astype(np.int8)
    group = np.array([f"{'test' if s else 'train'}-{row // _GROUP_ROWS}" for row, s in enumerate(split)])
    session, turn = _sessions(group, rng, session_share)
    return {
        "keys": np.array([f"question-{seed}-{row}" for row in range(n)]),
        "features": features,
        "embedding": rng.normal(size=(n, 16)).astype(np.float32),
        **_outcomes(features, kind, rng),
        "split": split,
        "group": group,
        "domain": np.array([("geography", "economy")[row % 2] for row in range(n)]),
        "kind": np.array(["capital"] * n),
        "session": session,
        "turn": turn,
        "night": np.ones(n, dtype=np.int64),
        "replayed": np.zeros(n, dtype=bool),
        "tiers": np.array(TIERS),
        "ladder": np.array("packaged"),
        "layout_hash": np.array(LAYOUT.hash),
        "encoder_id": np.array("test-encoder"),
        "latency_weight": np.array(0.1),
        "cost_weight": np.array(0.5),
    }


def second_night(first: Arrays, fresh: Arrays) -> Arrays:
    """The snapshot of the night after: every training row of the first is replayed, `fresh` was collected."""
    rows = {name for name, values in first.items() if values.shape[:1] == first["keys"].shape and name != "tiers"}
    merged = {name: np.concatenate([first[name], fresh[name]]) if name in rows else first[name] for name in first}
    n = len(first["keys"])
    merged["night"] = np.concatenate([first["night"], fresh["night"] + 1])
    merged["replayed"] = np.concatenate([first["split"] == 0, np.zeros(len(fresh["keys"]), dtype=bool)])
    merged["group"] = np.concatenate([first["group"], np.array([f"{name}-second" for name in fresh["group"]])])
    merged["session"][n:] = [f"{name}-second" if name else "" for name in fresh["session"]]
    return merged


def write_fake_snapshot(path: Path, arrays: Arrays) -> Snapshot:
    """Save the arrays as the collector does, and read them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for an array
    return load_snapshot(path)


def _sessions(
    group: NDArray[np.str_], rng: np.random.Generator, share: float
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Some groups are one session of as many turns as they have rows."""
    session, turn = np.full(len(group), "", dtype=f"<U{group.dtype.itemsize // 4 + 2}"), np.ones(len(group), np.int64)
    for name in np.unique(group):
        rows = np.flatnonzero(group == name)
        if rng.random() < share:
            session[rows], turn[rows] = f"s-{name}", np.arange(1, len(rows) + 1)
    return session, turn


def _outcomes(features: NDArray[np.float32], kind: str, rng: np.random.Generator) -> Arrays:
    n = len(features)
    quality = _QUALITY[kind](features, rng)  # (n, 2, 3)
    latency = (_LATENCY[None, :, None] + _PREFILL[None, None, :]) * rng.uniform(0.95, 1.05, (n, 1, 1))
    cost = np.broadcast_to(np.array([0.2, 0.4])[None, :, None] * np.array([0.5, 0.7, 1.0]), (n, 2, _BINS))
    return {name: _placed(v) for name, v in (("quality", quality), ("latency_s", latency), ("cost", cost))}


def _placed(values: NDArray[Any]) -> NDArray[np.float32]:
    """(n, 2, 3) -> (n, 4, 5), NaN where there is no tier or the bin was not run."""
    placed = np.full((len(values), N_TIERS, N_BINS), np.nan, dtype=np.float32)
    placed[:, :2, :_BINS] = values
    return placed


def _determined(features: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    """The small tier answers where memory covers the question, the big one elsewhere; long ones need 512 tokens."""
    quality = np.zeros((len(features), 2, _BINS))
    tier = (features[:, _TELL_TIER] < 0.5).astype(int)
    least = (features[:, _TELL_BIN] > 0.5).astype(int)
    for row, (which, first) in enumerate(zip(tier, least, strict=True)):
        quality[row, which, first:] = 1.0
    return quality


def _random(features: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    right = rng.random((len(features), 2, 1)) < np.array([0.35, 0.5])[None, :, None]
    return np.broadcast_to(right.astype(float), (len(features), 2, _BINS)).copy()


def _weak(features: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    chance = np.stack([0.7 * features[:, _TELL_TIER], np.full(len(features), 0.45)], axis=1)  # (n, 2)
    right = rng.random(chance.shape) < chance
    reach = rng.random((len(features), 1, _BINS)) < np.array([0.7, 0.9, 1.0])
    return right[:, :, None] * np.maximum.accumulate(reach, axis=2)


_QUALITY = {"determined": _determined, "random": _random, "weak": _weak}
