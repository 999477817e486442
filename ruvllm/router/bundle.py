"""A router bundle: a folder of safetensors and a manifest, written whole or not at all, verified before it is parsed.

Knows nothing of MLflow, of torch or of what the numbers mean. The bundle's digest is the sha256 of manifest.json, which
holds the sha256 of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ruvllm.errors import BundleError
from ruvllm.router.compact import Packed, unpack
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.durable import write_folder
from ruvllm.router.layout import LAYOUT, N_CLUSTERS, N_COMPONENTS, N_FEATURES
from ruvllm.router.manifest import FileEntry, Manifest, parse_manifest
from ruvllm.router.shapes import router_shapes as router_shapes
from ruvllm.router.transforms import Transforms

Array = NDArray[np.float32]

MANIFEST_FILE = "manifest.json"
ROUTER_FILE = "router.safetensors"
GOLDEN_FILE = "golden.safetensors"
TRANSFORMS_FILE = "transforms.safetensors"  # optional
ATTENTION_FILE = "attention.safetensors"  # optional; ruvllm.attention.part reads it
COMPACT_FILE, COMPACT_GOLDEN_FILE = "compact.safetensors", "compactgolden.safetensors"  # optional, both or none
_REQUIRED = (ROUTER_FILE, GOLDEN_FILE)
_KNOWN = (*_REQUIRED, TRANSFORMS_FILE, COMPACT_FILE, COMPACT_GOLDEN_FILE, ATTENTION_FILE)
_MAX_BYTES = 64 * 1024 * 1024
_RESET_GATE = ("W_r", "U_r", "b_r")


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs and what the trained model said to them, every tier of the ladder and every bin allowed."""

    features: Array  # (n, 128)
    hidden: Array  # (n, H), zeros on a first turn
    model_probs: Array  # (n, 4)
    context_probs: Array  # (n, 5)
    temperature: Array  # (n,)
    top_p: Array  # (n,)
    confidence: Array  # (n,), after calibration
    quality: Array  # (n, 4)
    utility: Array  # (n, 4) with the likeliest bin
    next_hidden: Array  # (n, H)

    def arrays(self) -> dict[str, Array]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, eq=False)
class Compact:
    """The same router in bytes (compact.py), and what it says to golden vectors of its own."""

    packed: Packed
    golden: Golden


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle in memory. `sha256` is its digest."""

    manifest: Manifest
    sha256: str
    arrays: Mapping[str, Array]
    golden: Golden
    transforms: Transforms | None
    compact: Compact | None = None


def write_bundle(
    folder: Path,
    arrays: Mapping[str, NDArray[np.generic]],
    manifest: Manifest,
    *,
    golden: Golden,
    transforms: Transforms | None = None,
    compact: Compact | None = None,
) -> str:
    """Write a bundle to `folder`, all of it or nothing; returns its digest. Arrays are stored as float32.

    Those of `compact` as they are.

    Raises:
        BundleError: the folder is there, an array is missing, misshapen or not finite, or the disk is full.
    """
    if folder.exists():
        raise BundleError(f"bundle {folder}: is there already; a bundle is never overwritten, choose another folder")
    groups = {ROUTER_FILE: arrays, GOLDEN_FILE: golden.arrays()}
    if transforms is not None:
        groups[TRANSFORMS_FILE] = transforms.arrays()
    if compact is not None:
        groups[COMPACT_GOLDEN_FILE] = compact.golden.arrays()
    contents = {name: save(_float32(group)) for name, group in groups.items()}
    if compact is not None:
        contents[COMPACT_FILE] = save(dict(compact.packed))
    entries = {name: FileEntry(_sha256(content), len(content)) for name, content in contents.items()}
    complete = replace(manifest, files=entries)
    _parse(complete, contents)  # what would be refused by a reader is not written
    contents[MANIFEST_FILE] = complete.to_json()
    try:
        write_folder(folder, contents)
    except OSError as error:
        raise BundleError(
            f"bundle {folder}: not written ({error.strerror or error}); nothing was left behind"
        ) from error
    return _sha256(contents[MANIFEST_FILE])


def verify_bundle(folder: Path, sha256: str | None = None) -> Manifest:
    """The manifest of a bundle whose every file is what the manifest says.

    Raises:
        BundleError: a file is missing, truncated, altered or of another layout; the message names it.
    """
    return read_bundle(folder, sha256).manifest


def read_bundle(folder: Path, sha256: str | None = None) -> Bundle:
    """Read and verify; `sha256` is the bundle's digest where the caller knows which bundle it wants.

    Raises:
        BundleError: see `verify_bundle`.
    """
    manifest, contents = _read_all(folder, sha256)
    return replace(_parse(manifest, contents), sha256=_sha256(contents[MANIFEST_FILE]))


def bundle_files(folder: Path, sha256: str) -> dict[str, bytes]:
    """Name -> content of a verified bundle's files, manifest included: what was verified is what is copied.

    Raises:
        BundleError: see `verify_bundle`.
    """
    manifest, contents = _read_all(folder, sha256)
    _parse(manifest, contents)
    return contents


def _read_all(folder: Path, sha256: str | None) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and every file's content, hashed and not yet parsed."""
    content = _read(folder, MANIFEST_FILE)
    if sha256 is not None and (got := _sha256(content)) != sha256:
        raise BundleError(f"bundle {folder}: {MANIFEST_FILE}: sha256 is {got}, want {sha256}; fetch the bundle again")
    manifest = parse_manifest(content)
    contents = {name: _read_checked(folder, name, manifest.files[name]) for name in _listed(folder, manifest)}
    return manifest, {**contents, MANIFEST_FILE: content}


def _listed(folder: Path, manifest: Manifest) -> list[str]:
    names = set(manifest.files)
    halved = len(names & {COMPACT_FILE, COMPACT_GOLDEN_FILE}) == 1
    if not names <= set(_KNOWN) or not names >= set(_REQUIRED) or halved:
        raise BundleError(
            f"bundle {folder}: {MANIFEST_FILE} lists {', '.join(sorted(names)) or 'no file'};"
            f" want {' and '.join(_REQUIRED)}, and at most {TRANSFORMS_FILE}, {ATTENTION_FILE} and"
            f" {COMPACT_FILE} with {COMPACT_GOLDEN_FILE} beside them"
        )
    return sorted(names)


def _read(folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"bundle {folder}: {name}: {error.strerror or error}; fetch the bundle again") from error
    if len(content) > _MAX_BYTES:
        raise BundleError(f"bundle {folder}: {name} has over {_MAX_BYTES} bytes, want a router bundle's file")
    return content


def _read_checked(folder: Path, name: str, entry: FileEntry) -> bytes:
    """Size, then hash, both before anything is parsed; the bytes that were hashed are the bytes that are used."""
    content = _read(folder, name)
    if len(content) != entry.bytes:
        raise BundleError(
            f"bundle {folder}: {name} has {len(content)} bytes, want {entry.bytes}; fetch the bundle again"
        )
    if (got := _sha256(content)) != entry.sha256:
        raise BundleError(f"bundle {folder}: {name}: sha256 is {got}, want {entry.sha256}; fetch the bundle again")
    return content


def _parse(manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """The bundle, its digest not yet known."""
    if manifest.layout_hash != LAYOUT.hash:
        raise BundleError(
            f"bundle {manifest.version}: feature layout {manifest.layout_hash[:12]}, want {LAYOUT.hash[:12]};"
            " it was trained for other code, train again"
        )
    loaded = {name: _load(name, contents[name]) for name in manifest.files}
    arrays = loaded[ROUTER_FILE]
    _check(ROUTER_FILE, arrays, router_shapes(manifest.hidden, any(name in arrays for name in _RESET_GATE)))
    _check_scale(arrays["feature_scale"])
    golden = _golden(manifest, GOLDEN_FILE, loaded[GOLDEN_FILE])
    transforms = _transforms(loaded[TRANSFORMS_FILE]) if TRANSFORMS_FILE in loaded else None
    compact = _compact(manifest, loaded) if COMPACT_FILE in loaded else None
    return Bundle(manifest, "", arrays, golden, transforms, compact)


def _golden(manifest: Manifest, file: str, arrays: dict[str, Array]) -> Golden:
    _check(file, arrays, _golden_shapes(manifest.hidden, arrays))
    return Golden(**arrays)


def _compact(manifest: Manifest, loaded: Mapping[str, dict[str, Array]]) -> Compact:
    packed: Packed = dict(loaded[COMPACT_FILE])
    unpacked = unpack(packed)
    if len(unpacked["b_h"]) != manifest.hidden:
        raise BundleError(f"{COMPACT_FILE}: hidden size {len(unpacked['b_h'])}, want {manifest.hidden}")
    return Compact(packed, _golden(manifest, COMPACT_GOLDEN_FILE, loaded[COMPACT_GOLDEN_FILE]))


def _golden_shapes(hidden: int, arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    rows = max(1, arrays["features"].size // N_FEATURES) if "features" in arrays else 1  # none would prove nothing
    return {
        "features": (rows, N_FEATURES),
        **{name: (rows, N_TIERS) for name in ("model_probs", "quality", "utility")},
        "context_probs": (rows, N_BINS),
        **{name: (rows,) for name in ("temperature", "top_p", "confidence")},
        **{name: (rows, hidden) for name in ("hidden", "next_hidden")},
    }


def _transforms(arrays: dict[str, Array]) -> Transforms:
    dimension = arrays["mean"].size if "mean" in arrays else 0
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (dimension,),
        "components": (N_COMPONENTS, dimension),
        "centroids": (N_CLUSTERS, dimension),
        "spread": (),
    }
    _check(TRANSFORMS_FILE, arrays, shapes)
    return Transforms(**arrays)


def _load(name: str, content: bytes) -> dict[str, Array]:
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{name}: not a safetensors file ({error}); fetch the bundle again") from error


def _check(file: str, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if set(arrays) != set(shapes):
        difference = ", ".join(sorted(set(arrays) ^ set(shapes)))
        raise BundleError(f"{file}: arrays missing or unknown: {difference}; want {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise BundleError(f"{file}: {name} is {array.dtype} {array.shape}, want float32 {shape}")
        if not np.isfinite(array).all():
            raise BundleError(f"{file}: {name} has values that are not finite; train again")


def _check_scale(scale: Array) -> None:
    if not (scale > 0).all():
        raise BundleError(
            f"{ROUTER_FILE}: feature_scale has values that are not positive; use 1 for a constant feature"
        )


def _float32(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
    # not ascontiguousarray: it turns a scalar array into shape (1,)
    with np.errstate(over="ignore"):  # what overflows is found by the check for finite values
        return {name: np.array(array, dtype=np.float32, order="C") for name, array in arrays.items()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
