"""The promoted router on numpy: a small matrix product and a tanh per decision. Knows nothing of torch or policies.

FastGRNN, specification 5.1 (Kusupati et al. 2018, equation 2):
z = sigmoid(W_z x + U_z h + b_z); h~ = tanh(W_h x + U_h (r h) + b_h); h' = (zeta (1 - z) + nu) h~ + z h.
With sigmoid(a) = (1 + tanh(a / 2)) / 2 the gate rows are halved once, at load, and one tanh serves both. The weights
are float64: at this size it costs a microsecond, and folding the feature scaling into them then costs no accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import BundleError, InputError
from ruvllm.router.bundle import Bundle, Golden, read_bundle
from ruvllm.router.decision import N_BINS, N_TIERS, Allowed, RouterOutputs
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.manifest import Manifest
from ruvllm.router.transforms import Transforms

Array = NDArray[np.float32]
Weights = NDArray[np.float64]

_HEADS = ("model", "context", "temperature", "top_p", "confidence")
_ALL_BINS = (True,) * N_BINS


@dataclass(frozen=True, eq=False)
class _Cell:
    """Folded weights. Rows of `w` and `b`: gate (halved), candidate, and the reset gate (halved) where there is one."""

    w: Weights  # (2H or 3H, 128)
    b: Weights  # (2H or 3H,)
    u_z: Weights  # (H, H), halved
    u_h: Weights  # (H, H)
    u_r: Weights | None  # (H, H), halved
    zeta: float
    nu: float
    head_w: Weights  # (12, H): 4 tiers, 5 bins, temperature, top_p, confidence
    head_b: Weights  # (12,)

    @classmethod
    def fold(cls, arrays: Mapping[str, Array], calibration_temperature: float) -> _Cell:
        """x = (features - mean) / scale goes into w and b, the calibration's temperature into the confidence head."""
        wide = {name: array.astype(np.float64) for name, array in arrays.items()}
        gates = [("z", 0.5), ("h", 1.0)] + ([("r", 0.5)] if "W_r" in wide else [])
        w = np.concatenate([factor * wide[f"W_{gate}"] for gate, factor in gates]) / wide["feature_scale"]
        b = np.concatenate([factor * wide[f"b_{gate}"] for gate, factor in gates])
        head_w = np.concatenate([wide[f"{head}.w"] for head in _HEADS])
        head_b = np.concatenate([wide[f"{head}.b"] for head in _HEADS])
        head_w[-1] /= calibration_temperature
        head_b[-1] /= calibration_temperature
        return cls(
            w=np.ascontiguousarray(w),
            b=b - w @ wide["feature_mean"],
            u_z=0.5 * wide["U_z"],
            u_h=wide["U_h"],
            u_r=0.5 * wide["U_r"] if "U_r" in wide else None,
            zeta=float(wide["zeta"]),
            nu=float(wide["nu"]),
            head_w=head_w,
            head_b=head_b,
        )

    def step(self, features: Weights, hidden: Weights | None) -> Weights:
        """(128,), (H,) or None for a first turn -> (H,)."""
        size = len(self.u_z)
        inner = self.w @ features
        inner += self.b
        if hidden is None:  # h = 0: the recurrent weights have nothing to act on
            gate_and_candidate = np.tanh(inner[: 2 * size])
        else:
            inner[:size] += self.u_z @ hidden
            inner[size : 2 * size] += self.u_h @ self._reset(inner, hidden)
            gate_and_candidate = np.tanh(inner[: 2 * size])
        half_gate, candidate = 0.5 * gate_and_candidate[:size], gate_and_candidate[size:]  # z = 0.5 + half_gate
        following: Weights = (self.zeta * (0.5 - half_gate) + self.nu) * candidate
        if hidden is not None:
            following += (0.5 + half_gate) * hidden
        return following

    def _reset(self, inner: Weights, hidden: Weights) -> Weights:
        if self.u_r is None:
            return hidden
        reset: Weights = (0.5 + 0.5 * np.tanh(inner[2 * len(hidden) :] + self.u_r @ hidden)) * hidden
        return reset

    def heads(self, hidden: Weights) -> list[float]:
        logits: list[float] = (self.head_w @ hidden + self.head_b).tolist()
        return logits


class RouterRuntime:
    """A loaded bundle that decides. Immutable, without shared buffers: any number of threads may use one."""

    def __init__(self, bundle: Bundle, path: Path | None = None) -> None:
        """Fold the weights and check the golden vectors.

        Raises:
            BundleError: an output differs from the golden one by more than the tolerance.
        """
        self.manifest: Manifest = bundle.manifest
        self.path = path  # the folder that it was loaded from
        self.sha256: str = bundle.sha256
        self.transforms: Transforms | None = bundle.transforms
        self._present = tuple(bool(name) for name in self.tiers)
        self._cell = _Cell.fold(bundle.arrays, bundle.manifest.calibration.temperature)
        self._check_golden(bundle.golden)

    @classmethod
    def load(cls, folder: Path, sha256: str | None = None) -> RouterRuntime:
        """Read, verify and fold the bundle in `folder`.

        Raises:
            BundleError: a file is missing, altered or of another layout, or the golden vectors do not come out.
        """
        return cls(read_bundle(folder, sha256), folder)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def ladder(self) -> str:
        return self.manifest.ladder

    @property
    def tiers(self) -> tuple[str, ...]:
        """4 names, smallest tier first, '' where the ladder has none."""
        return self.manifest.tiers

    @property
    def threshold(self) -> float:
        """Confidence below which the fallback policy acts."""
        return self.manifest.calibration.threshold

    @property
    def encoder_id(self) -> str:
        return self.manifest.encoder_id

    @property
    def hidden_size(self) -> int:
        return self.manifest.hidden

    def require(self, ladder: str, tiers: Sequence[str], encoder_id: str) -> None:
        """Do nothing if the bundle was trained for this ladder and encoder.

        Raises:
            BundleError: it was trained for another.
        """
        trained = tuple(name for name in self.tiers if name)
        if (self.ladder, trained) != (ladder, tuple(tiers)):
            raise BundleError(
                f"router {self.version}: trained for ladder {self.ladder} ({', '.join(trained)}),"
                f" the active ladder is {ladder} ({', '.join(tiers)}); run a cycle on this ladder"
            )
        if self.encoder_id != encoder_id:
            raise BundleError(
                f"router {self.version}: trained on vectors of {self.encoder_id}, the encoder in use is {encoder_id};"
                " run a cycle with this encoder"
            )

    def decide(self, features: Array, hidden: Array | None, allowed: Allowed) -> RouterOutputs:
        """Heads for one query: features (128,), hidden (H,) or None on a session's first turn.

        Raises:
            InputError: a shape is wrong, a value is not finite, or no place is allowed.
        """
        following = self._cell.step(
            _vector("features", features, N_FEATURES),
            None if hidden is None else _vector("hidden state", hidden, self.hidden_size),
        )
        logits = self._cell.heads(following)
        tiers = [a and b for a, b in zip(allowed.tiers, self._present, strict=True)]
        return RouterOutputs(
            model_probs=_softmax("tier", logits[:N_TIERS], tiers),
            context_probs=_softmax("context bin", logits[N_TIERS:-3], allowed.bins),
            temperature=2.0 * _sigmoid(logits[-3]),
            top_p=_sigmoid(logits[-2]),
            confidence=_sigmoid(logits[-1]),
            hidden=following.astype(np.float32),
        )

    def _check_golden(self, golden: Golden) -> None:
        allowed = Allowed(self._present, _ALL_BINS)
        for row in range(len(golden.features)):
            hidden = golden.hidden[row]
            got = self.decide(golden.features[row], hidden if hidden.any() else None, allowed)
            for name, want in _expected(golden, row).items():
                error = float(np.abs(np.asarray(getattr(got, name), dtype=np.float64) - want).max())
                if error > self.manifest.tolerance:
                    raise BundleError(
                        f"router {self.version}: golden vector {row}: {name} is off by {error:.1e},"
                        f" want at most {self.manifest.tolerance:.0e}; its weights are not those that were trained"
                    )


def _expected(golden: Golden, row: int) -> dict[str, NDArray[np.float32]]:
    arrays = golden.arrays()
    names = ("model_probs", "context_probs", "temperature", "top_p", "confidence")
    return {**{name: arrays[name][row] for name in names}, "hidden": golden.next_hidden[row]}


def _vector(name: str, values: Array, size: int) -> Weights:
    wide = np.asarray(values, dtype=np.float64)
    if wide.shape != (size,):
        raise InputError(f"{name}: shape {wide.shape}, want ({size},)")
    if not math.isfinite(wide.dot(wide)):  # a tenth of the time of isfinite().all()
        raise InputError(f"{name}: a value is not finite, want numbers")
    return wide


def _softmax(what: str, logits: list[float], allowed: Sequence[bool]) -> Array:
    """Over the allowed places; the others are exactly 0."""
    if len(allowed) != len(logits) or not any(allowed):
        raise InputError(f"{what}: none of {len(logits)} places is allowed, want at least one")
    top = max(logit for logit, ok in zip(logits, allowed, strict=True) if ok)
    weights = [math.exp(logit - top) if ok else 0.0 for logit, ok in zip(logits, allowed, strict=True)]
    total = sum(weights)
    return np.array([weight / total for weight in weights], dtype=np.float32)


def _sigmoid(logit: float) -> float:
    return 0.5 + 0.5 * math.tanh(0.5 * logit)
