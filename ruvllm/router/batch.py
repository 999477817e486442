"""Decides for many queries at once: what `RouterRuntime.decide` says of one, in slabs of single precision.

Knows nothing of sessions or policies. Single precision, because a decision is not its sixth digit and the products are
half as large; probabilities differ from those of one query by about 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.router.decision import Allowed, Tradeoff
from ruvllm.router.folded import CONFIDENCE, CONTEXT, MODEL, N_LOGITS, QUALITIES, Folded
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.manifest import QUALITY
from ruvllm.router.runtime import RouterRuntime

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_SLAB = 2048  # rows whose intermediate results stay in the cache


@dataclass(frozen=True, eq=False)
class Decided:
    """The router's own choices, no exploration and no fallback."""

    tier: Ints  # (n,)
    bin: Ints  # (n,) index
    confidence: Array  # (n,)
    quality: Array  # (n, 4)
    hidden: Array  # (n, H)


def decide_batch(
    runtime: RouterRuntime,
    features: Array,
    allowed: Allowed,
    hidden: Array | None = None,
    tradeoff: Tradeoff | None = None,
) -> Decided:
    """For features (n, 128) and hidden states (n, H), zeros or None on first turns; `allowed` holds for all rows.

    Raises:
        InputError: a shape is wrong, a value is not finite, no place is allowed, or the router cannot trade.
    """
    _check(features, hidden, runtime.hidden_size)
    plan = _plan(runtime, allowed, tradeoff)
    slabs = [slice(at, at + _SLAB) for at in range(0, len(features), _SLAB)]
    parts = [_slab(plan, features[slab], None if hidden is None else hidden[slab]) for slab in slabs]
    if not parts:
        raise InputError("features: no row, want at least one")
    return Decided(*(np.concatenate([getattr(part, entry.name) for part in parts]) for entry in fields(Decided)))


@dataclass(frozen=True, eq=False)
class _Plan:
    """Everything but the rows, in single precision."""

    cell: Folded
    first: Array  # (128, rows)
    carried: Array  # (H, rows)
    bias: Array  # (rows,)
    head_w: Array  # (H, 16)
    reset_u: Array | None  # (H, H)
    level: Array  # (5, 4) utility of a tier with a bin, were its quality 0; -inf where it is not allowed
    bins: Array  # (5,) 0 or -inf
    by_quality: bool
    sharpness: float
    shift: Array  # (4,)


def _plan(runtime: RouterRuntime, allowed: Allowed, tradeoff: Tradeoff | None) -> _Plan:
    cell, deciding = runtime.cell, runtime.manifest.deciding
    present = np.array([a and bool(name) for a, name in zip(allowed.tiers, runtime.tiers, strict=True)])
    if not present.any() or not any(allowed.bins):
        raise InputError("routing: no tier or no context bin is allowed, want at least one of each")
    closed = np.where(present, 0.0, -np.inf)
    joint = cell.joint.astype(np.float32)
    return _Plan(
        cell=cell,
        first=np.ascontiguousarray(joint[:, :N_FEATURES].T),
        carried=np.ascontiguousarray(joint[:, N_FEATURES:-1].T),
        bias=joint[:, -1],
        head_w=np.ascontiguousarray(cell.head_w.T.astype(np.float32)),
        reset_u=None if cell.reset_u is None else np.ascontiguousarray(cell.reset_u.T.astype(np.float32)),
        level=(runtime.levels(tradeoff).T + closed).astype(np.float32),
        bins=np.where(allowed.bins, 0.0, -np.inf).astype(np.float32),
        by_quality=deciding.head == QUALITY,
        sharpness=deciding.sharpness,
        shift=(runtime.tier_shift + closed).astype(np.float32),
    )


def _slab(plan: _Plan, features: Array, hidden: Array | None) -> Decided:
    following, logits = _step(plan, features, hidden)
    place = (logits[:, CONTEXT] + plan.bins).argmax(axis=1)
    quality = 0.5 + 0.5 * np.tanh(0.5 * logits[:, QUALITIES])
    if plan.by_quality:
        choice = (plan.level[place] + 4 * quality) / plan.sharpness + plan.shift
    else:
        choice = logits[:, MODEL] + plan.shift
    confidence = 0.5 + 0.5 * np.tanh(0.5 * logits[:, CONFIDENCE])
    return Decided(choice.argmax(axis=1), place, confidence, quality, following)


def _step(plan: _Plan, features: Array, hidden: Array | None) -> tuple[Array, Array]:
    """(r, 128), (r, H) or None -> (r, H), (r, 16); the equations of folded.py, a row each."""
    size = plan.head_w.shape[0]
    inner = features @ plan.first
    inner += plan.bias
    if hidden is not None:
        inner += hidden @ plan.carried
        if plan.reset_u is not None:
            reset = 0.5 + 0.5 * plan.cell.squash(inner[:, -size:])
            inner[:, size : 2 * size] += (reset * hidden) @ plan.reset_u
    squashed: Array = plan.cell.squash(inner[:, : 2 * size])
    t = squashed[:, :size]
    doubled: Array = (np.float32(plan.cell.level) - np.float32(plan.cell.zeta) * t) * squashed[:, size:]
    if hidden is not None:
        doubled += (1 + t) * hidden
    logits: Array = doubled @ plan.head_w
    logits += inner[:, 2 * size : 2 * size + N_LOGITS]
    return np.float32(0.5) * doubled, logits


def _check(features: Array, hidden: Array | None, size: int) -> None:
    if features.ndim != 2 or features.shape[1] != N_FEATURES or features.dtype != np.float32:
        raise InputError(f"features: {features.dtype} {features.shape}, want float32 (n, {N_FEATURES})")
    if hidden is not None and (hidden.shape != (len(features), size) or hidden.dtype != np.float32):
        raise InputError(f"hidden states: {hidden.dtype} {hidden.shape}, want float32 ({len(features)}, {size})")
    for name, values in (("features", features), ("hidden states", hidden)):
        if values is not None and not np.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
            raise InputError(f"{name}: a value is not finite, want numbers")
