"""The router in bytes: sparse 8-bit weights, low rank, lines in place of sigmoid and tanh. numpy only.

Knows nothing of training, files or decisions. Kusupati et al. 2018, section 3.2 (FastGRNN-LSQ): what was learnt
sparse and of low rank is stored so, each row of a matrix as bytes times one scale. What a row leaves out is marked by
one bit a place. Features are scaled by powers of two, so that a byte holds the exponent; the means go into the biases,
which stay floats and are worked out for the weights as they are stored: a query of mean features decides as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import BundleError
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.shapes import router_shapes

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Packed = dict[str, NDArray[np.generic]]

_STEPS = 127  # of a signed byte
_RANK_FLOOR = 1e-5  # singular values below this share of the largest are rounding
_PLAIN = ("zeta", "nu", "tier_shift", "latency_s", "cost")
_HEADS = ("model", "context", "quality", "confidence", "temperature", "top_p")


@dataclass(frozen=True)
class Bytes:
    """How large a packed router is, and what of it is weights that were kept."""

    total: int
    kept: float  # share of the input weights that are not 0


def pack(arrays: Mapping[str, Array]) -> Packed:
    """The arrays of router.safetensors in bytes.

    Raises:
        BundleError: arrays are missing.
    """
    hidden = _hidden_of(arrays)
    exponent = np.clip(np.round(np.log2(arrays["feature_scale"].astype(np.float64))), -127, 127)
    stretch = 2.0**exponent / arrays["feature_scale"].astype(np.float64)  # (128,), within the root of two
    packed: Packed = {"exponent": exponent.astype(np.int8)}
    inputs = np.concatenate([arrays[name] for name in _inputs(arrays)]).astype(np.float64)
    packed |= _pack_sparse("inputs", inputs * stretch)
    for name in _recurrent(arrays):
        left, right = _factors(arrays[name].astype(np.float64))
        packed |= _pack_rows(f"{name}.1", left) | _pack_rows(f"{name}.2", right)
    packed |= _pack_rows("heads", np.concatenate([arrays[f"{head}.w"] for head in _HEADS]).astype(np.float64))
    packed["biases"] = _biases(arrays, packed, hidden).astype(np.float32)
    packed["plain"] = np.concatenate([np.ravel(arrays[name]) for name in _PLAIN]).astype(np.float32)
    return packed


def unpack(packed: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
    """The arrays of router.safetensors that the bytes stand for; features are scaled by powers of two and not centred.

    Raises:
        BundleError: arrays are missing, misshapen or of another type.
    """
    try:
        return _unpack(packed)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BundleError(f"compact router: damaged ({error}); compress it again") from error


def size_of(packed: Mapping[str, NDArray[np.generic]]) -> Bytes:
    """Of the arrays; what a file adds is its header."""
    kept = float(np.unpackbits(_byte_array(packed, "inputs.places")).mean())
    return Bytes(sum(array.nbytes for array in packed.values()), kept)


def _unpack(packed: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
    biases, plain = (packed[name].astype(np.float64) for name in ("biases", "plain"))
    gates = sorted(name.removesuffix(".1.q") for name in packed if name.endswith(".1.q"))  # U_h, U_z
    hidden, reset = len(packed[f"{gates[0]}.1.scale"]), "U_r" in gates
    shapes = router_shapes(hidden, reset)
    rows = _sparse(packed, "inputs")
    arrays: dict[str, Wide] = {
        "feature_scale": 2.0 ** packed["exponent"].astype(np.float64),
        "feature_mean": np.zeros(N_FEATURES),
        **_cut(rows.ravel(), {name: shapes[name] for name in [*(g.replace("U", "W") for g in gates), "wide"]}),
        **{gate: _product(packed, gate) for gate in gates},
        **_cut(_rows(packed, "heads").ravel(), {f"{head}.w": shapes[f"{head}.w"] for head in _HEADS}),
    }
    names = [*(name for name in shapes if name.startswith("b_")), *(f"{head}.b" for head in _HEADS)]
    arrays |= _cut(biases, {name: shapes[name] for name in names})
    arrays |= _cut(plain, {name: shapes[name] for name in _PLAIN})
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is {arrays[name].shape} or not finite, want {shape}")
    return {name: arrays[name].astype(np.float32) for name in shapes}


def _inputs(arrays: Mapping[str, Array]) -> list[str]:
    return [name for name in sorted(arrays) if name.startswith("W_")] + ["wide"]


def _recurrent(arrays: Mapping[str, Array]) -> list[str]:
    return [name for name in sorted(arrays) if name.startswith("U_")]


def _hidden_of(arrays: Mapping[str, Array]) -> int:
    missing = sorted(set(router_shapes(len(arrays.get("b_h", ())), "W_r" in arrays)) - set(arrays))
    if missing:
        raise BundleError(f"compact router: arrays missing: {', '.join(missing)}")
    return len(arrays["b_h"])


def _biases(arrays: Mapping[str, Array], packed: Packed, hidden: int) -> Wide:
    """b - W m for the weights as they are stored, gates first, then heads in their order."""
    mean = arrays["feature_mean"].astype(np.float64) / 2.0 ** packed["exponent"].astype(np.float64)
    moved = _cut(_sparse(packed, "inputs") @ mean, {name: (len(arrays[name]),) for name in _inputs(arrays)})
    gates = [name for name in router_shapes(hidden, "W_r" in arrays) if name.startswith("b_")]
    found = [arrays[name] - moved[name.replace("b", "W")] for name in gates]
    heads = np.concatenate([arrays[f"{head}.b"].astype(np.float64) for head in _HEADS])
    heads[: len(moved["wide"])] -= moved["wide"]
    return np.concatenate([*found, heads])


def _pack_sparse(name: str, weight: Wide) -> Packed:
    """(rows, 128) -> bytes of what is not 0, one bit a place, one scale a row."""
    levels, scale = _quantise(weight)
    places = levels != 0
    return {f"{name}.q": levels[places], f"{name}.places": np.packbits(places), f"{name}.scale": scale}


def _sparse(packed: Mapping[str, NDArray[np.generic]], name: str) -> Wide:
    scale = packed[f"{name}.scale"].astype(np.float64)
    levels = np.zeros((len(scale), N_FEATURES))
    places = np.unpackbits(_byte_array(packed, f"{name}.places")).astype(bool).reshape(levels.shape)
    levels[places] = packed[f"{name}.q"].astype(np.float64)
    return levels * scale[:, None]


def _pack_rows(name: str, weight: Wide) -> Packed:
    levels, scale = _quantise(weight)
    return {f"{name}.q": levels, f"{name}.scale": scale}


def _rows(packed: Mapping[str, NDArray[np.generic]], name: str) -> Wide:
    levels: Wide = packed[f"{name}.q"].astype(np.float64)
    return levels * packed[f"{name}.scale"].astype(np.float64)[:, None]


def _product(packed: Mapping[str, NDArray[np.generic]], name: str) -> Wide:
    return _rows(packed, f"{name}.1") @ _rows(packed, f"{name}.2")


def _quantise(weight: Wide) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """(rows, k) -> levels of -127 to 127 and the rows' scales, rounded first so that both sides use the same one."""
    scale = (np.abs(weight).max(axis=1, initial=0.0) / _STEPS).astype(np.float16)
    steps = np.where(scale > 0, scale, 1.0).astype(np.float64)
    levels = np.clip(np.round(weight / steps[:, None]), -_STEPS, _STEPS)
    return levels.astype(np.int8), scale


def _factors(weight: Wide) -> tuple[Wide, Wide]:
    """U (H, H) = left (H, r) right (r, H) by its singular values; at least rank 1."""
    left, values, right = np.linalg.svd(weight)
    rank = max(1, int((values > _RANK_FLOOR * values[0]).sum())) if values[0] > 0 else 1
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, right[:rank] * root[:, None]


def _cut(values: Wide, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Wide]:
    """One row of numbers into arrays of these shapes, in their order; all of it is used."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if sum(sizes) != len(values):
        raise ValueError(f"{len(values)} numbers, want {sum(sizes)}")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


def _byte_array(packed: Mapping[str, NDArray[np.generic]], name: str) -> NDArray[np.uint8]:
    return packed[name].astype(np.uint8)
