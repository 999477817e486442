"""Elastic weight consolidation (Kirkpatrick et al. 2017), online (Schwarz et al. 2018): state, penalty, file.

L = L_task + lambda / 2 sum F (theta - theta*)^2; after a promotion F <- gamma F + F_new and theta* <- the champion's.
Knows nothing of snapshots; how F is measured is fisher.py's. What the anchor's inputs mean (their scaling, the fitted
transforms) travels with it: weights are worth keeping only for the same inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ruvllm.errors import LearningError
from ruvllm.router.durable import replace_file

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float32]
Arrays = Mapping[str, Array]

_GROUPS = ("fisher", "anchor", "buffer", "transforms")
_META = "ruvllm"  # one entry: safetensors writes several in an order that changes from process to process


@dataclass(frozen=True)
class Origin:
    """Which router the anchor is of; weights of another ladder, encoder, layout or cell do not compare."""

    version: str
    ladder: str
    tiers: tuple[str, ...]
    encoder_id: str
    layout_hash: str
    variant: str

    def differs(self, other: Origin) -> list[str]:
        """What the two do not share, version apart: names of fields."""
        names = ("ladder", "tiers", "encoder_id", "layout_hash", "variant")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True, eq=False)
class Ewc:
    """`fisher` and `anchor` by the parameters' names; `buffers` and `transforms` say what the inputs mean.

    Raises:
        LearningError: names or shapes of fisher and anchor differ, or a Fisher value is negative or not finite.
    """

    fisher: Arrays
    anchor: Arrays
    penalty: float
    decay: float
    origin: Origin
    samples: int = 0
    buffers: Arrays = field(default_factory=dict)
    transforms: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        _same_shapes("EWC state: fisher against anchor", self.fisher, self.anchor)
        for name, values in self.fisher.items():
            if not np.isfinite(values).all() or (values < 0).any():
                raise LearningError(f"EWC state: fisher {name} is negative or not finite; consolidate again")

    def loss(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """lambda / 2 sum F (theta - theta*)^2, a scalar with a gradient.

        Raises:
            LearningError: the parameters have other names or shapes than the anchor.
        """
        import torch

        _same_shapes("router against EWC anchor", parameters, self.anchor)
        terms = [
            (torch.as_tensor(self.fisher[name]) * (theta - torch.as_tensor(self.anchor[name])) ** 2).sum()
            for name, theta in parameters.items()
        ]
        return 0.5 * self.penalty * torch.stack(terms).sum()

    def consolidated(self, fisher: Arrays, anchor: Arrays, samples: int, origin: Origin) -> Ewc:
        """The state after one more task: F <- gamma F + F_new, anchored at its weights.

        Raises:
            LearningError: the new vectors have other names or shapes.
        """
        _same_shapes("new fisher against EWC state", fisher, self.fisher)
        merged = {name: (self.decay * old + fisher[name]).astype(np.float32) for name, old in self.fisher.items()}
        return replace(self, fisher=merged, anchor=anchor, samples=samples, origin=origin)

    def to_bytes(self) -> bytes:
        """safetensors; the same state gives the same bytes."""
        groups = (self.fisher, self.anchor, self.buffers, self.transforms)
        arrays = {
            f"{group}.{name}": np.array(values, dtype=np.float32, order="C")
            for group, named in zip(_GROUPS, groups, strict=True)
            for name, values in named.items()
        }
        about = {**vars(self.origin), "penalty": self.penalty, "decay": self.decay, "samples": self.samples}
        return save(arrays, metadata={_META: json.dumps(about, sort_keys=True)})


def save_ewc(state: Ewc, path: Path) -> None:
    """Write the state whole, or leave what was there.

    Raises:
        LearningError: the disk is full, or the place cannot be written.
    """
    try:
        replace_file(path, state.to_bytes())
    except OSError as error:
        raise LearningError(f"EWC state {path}: not written ({error.strerror or error}); free some space") from error


def load_ewc(path: Path) -> Ewc:
    """Read a state.

    Raises:
        LearningError: the file is missing, altered or not an EWC state.
    """
    try:
        arrays, about = read_tensors(path)
        grouped = {group: _group(arrays, group) for group in _GROUPS}
        return Ewc(
            fisher=grouped["fisher"],
            anchor=grouped["anchor"],
            buffers=grouped["buffer"],
            transforms=grouped["transforms"],
            penalty=float(about.pop("penalty")),
            decay=float(about.pop("decay")),
            samples=int(about.pop("samples")),
            origin=Origin(**{**about, "tiers": tuple(about["tiers"])}),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise LearningError(f"EWC state {path}: not one ({error}); consolidate the champion again") from error


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and the metadata that this module and training.py write."""
    with safe_open(path, framework="numpy") as file:
        about = json.loads((file.metadata() or {})[_META])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118  # not a dict


@dataclass(frozen=True)
class Consolidated:
    """An EWC state on its way into learning.ewc_state."""

    state: bytes
    samples: int
    penalty: float
    decay: float
    layout_hash: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.state).hexdigest()

    def row(self) -> dict[str, object]:
        """Columns of learning.ewc_state, tenant and version apart."""
        return {**vars(self), "sha256": self.sha256}


def consolidate_bundle(bundle: Path, snapshot: Path, previous: Path | None = None) -> Consolidated:
    """Measure the bundle's Fisher information on the snapshot's training rows and merge it into the previous state.

    `bundle` has to be the folder that the trainer wrote, with training.safetensors in it. A previous state of another
    ladder, encoder, layout or cell is left behind.

    Raises:
        LearningError: a file is missing or altered, or the snapshot is not the one the bundle was trained on.
    """
    from ruvllm.learning.fisher import measure_bundle  # torch

    fresh = measure_bundle(bundle, snapshot)
    merged = _merge(load_ewc(previous) if previous else None, fresh)
    return Consolidated(merged.to_bytes(), merged.samples, merged.penalty, merged.decay, merged.origin.layout_hash)


def _merge(old: Ewc | None, fresh: Ewc) -> Ewc:
    if old is None or old.origin.differs(fresh.origin):
        return fresh
    continued = replace(
        old, penalty=fresh.penalty, decay=fresh.decay, buffers=fresh.buffers, transforms=fresh.transforms
    )
    return continued.consolidated(fresh.fisher, fresh.anchor, fresh.samples, fresh.origin)


def _group(arrays: Arrays, group: str) -> dict[str, Array]:
    prefix = f"{group}."
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _same_shapes(what: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    shapes = [{name: tuple(values.shape) for name, values in side.items()} for side in (got, wanted)]
    for name in sorted(set(shapes[0]) | set(shapes[1])):
        mine, other = shapes[0].get(name, "absent"), shapes[1].get(name, "absent")
        if mine != other:
            raise LearningError(
                f"{what}: {name} is {mine}, want {other}; use the params.yaml it was made with, or start without it"
            )
