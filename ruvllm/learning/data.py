"""A snapshot as the learner reads it: one .npz of outcomes and features, checked whole. Knows nothing of the database.

Arrays: n questions, 4 tiers, 5 context bins; NaN where a place was not run. Which rows train: those of split 0 that the
newest night collected or that the reservoir replays. Rows of split 1 are held out, whichever night they are of.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.features import domains_of
from ruvllm.router.layout import LAYOUT, N_CLUSTERS, N_COMPONENTS, N_FEATURES
from ruvllm.router.past import as_a_stream
from ruvllm.router.transforms import Transforms, apply_transforms, fit_transforms

Array = NDArray[np.float32]
Strings = NDArray[np.str_]
Rows = NDArray[np.int64]

MIN_TRAIN_ROWS = 8
_OUTCOMES = ("quality", "latency_s", "cost")
_COLUMNS = ("group", "domain", "kind", "session", "turn", "night", "replayed", "split")
_SCALARS = ("ladder", "layout_hash", "encoder_id", "latency_weight", "cost_weight")
_WAY_OUT = "write the snapshot again (ruvllm cycle)"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """See the module's docstring. `digest` is over the arrays, whatever the file's compression."""

    keys: Strings  # (n,)
    features: Array  # (n, 128), as they were extracted
    quality: Array  # (n, 4, 5) in [0, 1]
    latency_s: Array  # (n, 4, 5)
    cost: Array  # (n, 4, 5)
    split: NDArray[np.int8]  # (n,), 0 train, 1 test
    group: Strings
    domain: Strings
    kind: Strings
    session: Strings  # '' outside a session
    turn: Rows
    night: Rows
    replayed: NDArray[np.bool_]
    tiers: tuple[str, ...]  # 4, '' where the ladder has none
    ladder: str
    layout_hash: str
    encoder_id: str
    latency_weight: float
    cost_weight: float
    embedding: Array | None  # (n, d)
    digest: str

    @property
    def tier_mask(self) -> NDArray[np.bool_]:  # (4,)
        return np.array([bool(name) for name in self.tiers])

    @cached_property
    def bin_mask(self) -> NDArray[np.bool_]:
        """(5,): the bins that were run."""
        ran = np.isfinite(self.quality).any(axis=(0, 1))
        return np.asarray(ran)

    @property
    def places(self) -> NDArray[np.bool_]:
        """(4, 5): the pairs that were run, the same for every question."""
        return np.outer(self.tier_mask, self.bin_mask)

    @cached_property
    def train(self) -> Rows:
        newest = self.night == self.night.max()
        return np.flatnonzero((self.split == 0) & (newest | self.replayed))

    @cached_property
    def test(self) -> Rows:
        return np.flatnonzero(self.split == 1)

    @cached_property
    def past(self) -> NDArray[np.float64]:
        """(n, 16): the places of historical accuracy, the rows played as a stream in their order; 0 without vectors."""
        if self.embedding is None:
            return np.zeros((len(self.keys), LAYOUT.by_name["historical_accuracy"].size))
        ran = np.isfinite(self.quality).sum(axis=2)  # (n, 4)
        mean = np.where(ran > 0, np.nansum(self.quality, axis=2) / np.maximum(ran, 1), np.nan)
        return as_a_stream(self.embedding, mean.astype(np.float64), domains_of(self.features), self.split == 1)

    def require_training(self) -> None:
        """Do nothing where there is enough to train on.

        Raises:
            LearningError: fewer than 8 training rows, or they are all of one group.
        """
        rows, groups = len(self.train), len(set(self.group[self.train].tolist()))
        if rows < MIN_TRAIN_ROWS or groups < 2:
            raise LearningError(
                f"snapshot: {rows} training questions of {groups} groups, want at least {MIN_TRAIN_ROWS} of 2;"
                " give the collection a larger budget (ruvllm cycle --budget SECONDS)"
            )


def load_snapshot(path: Path) -> Snapshot:
    """Read and check a snapshot.

    Raises:
        LearningError: the file is missing, truncated or altered, of another feature layout, or not a snapshot.
    """
    arrays = _read(path)
    try:
        return _parse(arrays)
    except LearningError as error:
        raise LearningError(f"snapshot {path}: {error}") from error


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over names, types, shapes and values, in the order of the names."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def fit_feature_transforms(snapshot: Snapshot, seed: int) -> Transforms | None:
    """Fitted on the training questions' vectors; None where the snapshot has none, or too few."""
    if snapshot.embedding is None or min(len(snapshot.train), snapshot.embedding.shape[1]) < N_COMPONENTS:
        return None
    return fit_transforms(snapshot.embedding[snapshot.train], seed)


def features_for(snapshot: Snapshot, transforms: Transforms | None) -> Array:
    """(n, 128): the features as a router with these transforms sees them when it serves.

    The stored ones hold what the transforms of that day gave, which need not be this router's, and what was known of
    earlier outcomes on that day; both are made anew, the outcomes as a stream without a look ahead (router/past.py).
    """
    if transforms is not None and snapshot.embedding is not None:
        features = apply_transforms(snapshot.features, snapshot.embedding, transforms)
    else:
        features = snapshot.features.copy()
        features[:, LAYOUT["principal_components"]] = 0.0
        features[:, LAYOUT["cluster_assignment"]] = 0.0
    features[:, LAYOUT["historical_accuracy"]] = snapshot.past
    return features


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # numpy leaves a file open that it could not make sense of
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise LearningError(f"snapshot {path}: one bare array, want an .npz; {_WAY_OUT}")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise LearningError(f"snapshot {path}: missing, truncated or altered ({error}); {_WAY_OUT}") from error


def _parse(arrays: dict[str, NDArray[Any]]) -> Snapshot:
    wanted = {"keys", "features", *_OUTCOMES, *_COLUMNS, "tiers", *_SCALARS}
    if missing := sorted(wanted - set(arrays)):
        raise LearningError(f"arrays missing: {', '.join(missing)}; {_WAY_OUT}")
    _check_layout(arrays)
    _check_shapes(arrays)
    snapshot = _snapshot(arrays)
    _check_rows(snapshot)
    _check_outcomes(snapshot)
    return snapshot


def _snapshot(a: dict[str, NDArray[Any]]) -> Snapshot:
    embedding = a.get("embedding")
    return Snapshot(
        keys=a["keys"],
        features=a["features"].astype(np.float32),
        quality=a["quality"].astype(np.float32),
        latency_s=a["latency_s"].astype(np.float32),
        cost=a["cost"].astype(np.float32),
        group=a["group"],
        domain=a["domain"],
        kind=a["kind"],
        session=a["session"],
        split=a["split"].astype(np.int8),
        turn=a["turn"].astype(np.int64),
        night=a["night"].astype(np.int64),
        replayed=a["replayed"].astype(bool),
        tiers=tuple(str(name) for name in a["tiers"]),
        ladder=str(a["ladder"]),
        layout_hash=str(a["layout_hash"]),
        encoder_id=str(a["encoder_id"]),
        latency_weight=float(a["latency_weight"]),
        cost_weight=float(a["cost_weight"]),
        embedding=None if embedding is None or embedding.size == 0 else embedding.astype(np.float32),
        digest=digest(a),
    )


def _check_layout(arrays: dict[str, NDArray[Any]]) -> None:
    got = str(arrays["layout_hash"])
    if got != LAYOUT.hash:
        raise LearningError(
            f"feature layout {got[:12]}, want {LAYOUT.hash[:12]}; it was collected by other code: collect anew"
        )


def _check_shapes(arrays: dict[str, NDArray[Any]]) -> None:
    n = arrays["keys"].size
    shapes: dict[str, tuple[int, ...]] = {
        "keys": (n,),
        "features": (n, N_FEATURES),
        "tiers": (N_TIERS,),
        **{name: (n, N_TIERS, N_BINS) for name in _OUTCOMES},
        **{name: (n,) for name in _COLUMNS},
        **{name: () for name in _SCALARS},
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise LearningError(f"{name} has shape {arrays[name].shape}, want {shape}; {_WAY_OUT}")
    if n == 0:
        raise LearningError(f"no question in it; {_WAY_OUT}")
    embedding = arrays.get("embedding")
    if embedding is not None and (embedding.ndim != 2 or len(embedding) != n or not np.isfinite(embedding).all()):
        raise LearningError(f"embedding has shape {embedding.shape} or values not finite, want ({n}, d); {_WAY_OUT}")


def _check_rows(snapshot: Snapshot) -> None:
    if not np.isfinite(snapshot.features).all():
        row = int(np.argmin(np.isfinite(snapshot.features).all(axis=1)))
        raise LearningError(f"features of question {snapshot.keys[row]} are not finite; {_WAY_OUT}")
    if not np.isin(snapshot.split, (0, 1)).all():
        raise LearningError(f"split has values other than 0 (train) and 1 (test); {_WAY_OUT}")
    keys, counts = np.unique(snapshot.keys, return_counts=True)
    if (counts > 1).any():
        raise LearningError(f"question {keys[counts > 1][0]} is in it twice; {_WAY_OUT}")
    shared = set(snapshot.group[snapshot.split == 0].tolist()) & set(snapshot.group[snapshot.split == 1].tolist())
    if shared:
        raise LearningError(f"group {min(shared)} is in both splits, want each in one; {_WAY_OUT}")


def _check_outcomes(snapshot: Snapshot) -> None:
    places = snapshot.places
    if not places.any():
        raise LearningError(f"no tier has outcomes; {_WAY_OUT}")
    for name in _OUTCOMES:
        finite = np.isfinite(getattr(snapshot, name))  # (n, 4, 5)
        if not (finite == places).all():
            row = int(np.argmax((finite != places).any(axis=(1, 2))))
            raise LearningError(f"{name} of question {snapshot.keys[row]}: not run on the same pairs; {_WAY_OUT}")
    quality = snapshot.quality[:, places]
    if quality.min() < 0 or quality.max() > 1:
        raise LearningError(f"quality is {quality.min():g} to {quality.max():g}, want 0 to 1; {_WAY_OUT}")


assert N_COMPONENTS >= N_CLUSTERS  # as many rows as components are enough for the clusters
