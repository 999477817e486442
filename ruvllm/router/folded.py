"""The router's cell and heads folded for serving: one matrix product, one tanh, one small product. numpy only.

Knows nothing of bundles, masks or decisions. FastGRNN, specification 5.1 (Kusupati et al. 2018, equation 2):
z = sigmoid(W_z x + U_z h + b_z); h~ = tanh(W_h x + U_h (r h) + b_h); h' = (zeta (1 - z) + nu) h~ + z h.
With sigmoid(a) = (1 + tanh(a / 2)) / 2 the gate rows are halved once, at load, and one tanh serves both. The linear
path to the heads is rows of the same product. The weights are float64: at this size it costs a microsecond, and folding
the feature scaling into them then costs no accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.layout import N_FEATURES

Array = NDArray[np.float32]
Weights = NDArray[np.float64]
Squash = Callable[[NDArray[Any]], NDArray[Any]]

HEADS = ("model", "context", "quality", "confidence", "temperature", "top_p")  # order of the logits
N_LOGITS = 2 * N_TIERS + N_BINS + 3
MODEL, CONTEXT = slice(0, N_TIERS), slice(N_TIERS, N_TIERS + N_BINS)
QUALITIES = slice(N_TIERS + N_BINS, 2 * N_TIERS + N_BINS)
CONFIDENCE, TEMPERATURE, TOP_P = N_LOGITS - 3, N_LOGITS - 2, N_LOGITS - 1


@dataclass(frozen=True, eq=False)
class Folded:
    """Rows of `first` and `joint`: gate (halved), candidate, heads' linear path, and the reset gate (halved) if any.

    The last column of both is the bias: the input ends in a 1.
    """

    first: Weights  # (2H + 16 or 3H + 16, 129): all that a first turn needs
    joint: Weights  # the same rows, (128 + H + 1,): behind x stands h; no columns of U_h where there is a reset gate
    reset_u: Weights | None  # (H, H) U_h, for r h
    head_w: Weights  # (16, H), halved: it meets twice the hidden state
    level: float  # zeta + 2 nu
    zeta: float
    squash: Squash = np.tanh

    @property
    def hidden_size(self) -> int:
        return int(self.head_w.shape[1])

    def step(self, x: Weights) -> tuple[Weights, Weights]:
        """Features and 1 (129,), or features, hidden state and 1 (128 + H + 1,) -> twice hidden (H,), logits (16,).

        With t = tanh(gate / 2): 2 h' = (zeta + 2 nu - zeta t) h~ + (1 + t) h, one product less than h' itself.
        """
        size = self.head_w.shape[1]
        carried = len(x) > N_FEATURES + 1
        inner = (self.joint if carried else self.first).dot(x)
        if carried and self.reset_u is not None:
            inner[size : 2 * size] += self._reset_part(inner, x[N_FEATURES:-1])
        squashed = self.squash(inner[: 2 * size])
        t = squashed[:size]
        doubled = t * -self.zeta
        doubled += self.level
        doubled *= squashed[size:]
        if carried:
            t += 1.0
            t *= x[N_FEATURES:-1]
            doubled += t
        logits = self.head_w.dot(doubled)
        logits += inner[2 * size : 2 * size + N_LOGITS]
        return doubled, logits

    def _reset_part(self, inner: Weights, hidden: Weights) -> Weights:
        """U_h (r h) (H,)."""
        assert self.reset_u is not None
        reset = 0.5 + 0.5 * self.squash(inner[-len(hidden) :])
        part: Weights = self.reset_u.dot(reset * hidden)
        return part


def line(inner: NDArray[Any]) -> NDArray[Any]:
    """tanh's line between -1 and 1; of a halved gate row it is the gate's line (a / 4 + 1 / 2 in [0, 1]) as well."""
    return np.asarray(np.minimum(np.maximum(inner, -1), 1))


def fold(arrays: Mapping[str, Array], calibration_temperature: float, linear_gates: bool = False) -> Folded:
    """x = (features - mean) / scale goes into the rows, the calibration's temperature into the confidence head."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    head_w, head_b, path = _heads(wide, calibration_temperature)
    reset = "W_r" in wide
    blocks = [(0.5 * wide["W_z"], 0.5 * wide["b_z"]), (wide["W_h"], wide["b_h"]), (path, head_b)]
    blocks += [(0.5 * wide["W_r"], 0.5 * wide["b_r"])] if reset else []
    first = np.concatenate([weight for weight, _ in blocks]) / wide["feature_scale"]
    b = np.concatenate([bias for _, bias in blocks]) - first @ wide["feature_mean"]
    none = np.zeros_like(wide["U_h"])
    hidden = [0.5 * wide["U_z"], none if reset else wide["U_h"], np.zeros((N_LOGITS, len(none)))]
    hidden += [0.5 * wide["U_r"]] if reset else []
    return Folded(
        first=np.concatenate([first, b[:, None]], axis=1),
        joint=np.concatenate([first, np.concatenate(hidden), b[:, None]], axis=1),
        reset_u=wide["U_h"] if reset else None,
        head_w=0.5 * head_w,
        level=float(wide["zeta"] + 2 * wide["nu"]),
        zeta=float(wide["zeta"]),
        squash=line if linear_gates else np.tanh,
    )


def _heads(wide: Mapping[str, Weights], calibration_temperature: float) -> tuple[Weights, Weights, Weights]:
    """Weights on the hidden state (16, H), biases (16,) and the linear path (16, 128), zero where a head has none."""
    head_w = np.concatenate([wide[f"{head}.w"] for head in HEADS])
    head_b = np.concatenate([wide[f"{head}.b"] for head in HEADS])
    path = np.zeros((N_LOGITS, N_FEATURES))
    path[: len(wide["wide"])] = wide["wide"]
    for values in (head_w, head_b, path):
        values[CONFIDENCE] /= calibration_temperature
    return head_w, head_b, path
