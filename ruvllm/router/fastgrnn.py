"""FastGRNN and the router's heads in torch, for training. Knows nothing of data, losses or bundles; never served.

Specification 5.1 ("spec"), with U_g = U_g1 U_g2 of low rank and an optional reset gate:
    z = sigmoid(W_z x + U_z h + b_z); h~ = tanh(W_h x + U_h (r h) + b_h); h' = (zeta (1 - z) + nu) h~ + z h
Kusupati et al. 2018, equation 2 ("kusupati"): W and U are shared by gate and candidate, r = 1, and zeta and nu are
sigmoids of parameters that start at 1.0 and -4.0. On a first turn h = 0: the recurrent weights do nothing.

Beside the five heads of specification 5.2 stands a quality head: the expected quality of each tier, so that lambda and
mu can move at decision time. A linear path leads from the inputs straight to the heads, so that the network contains
linear and logistic regression and the cell has to learn only what they miss. It starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.layout import N_FEATURES
from ruvllm.router.manifest import QUALITY

_HEADS = {"model": N_TIERS, "context": N_BINS, "temperature": 1, "top_p": 1, "confidence": 1, "quality": N_TIERS}
_WIDE = {"model": N_TIERS, "context": N_BINS, "quality": N_TIERS, "confidence": 1}  # rows of the linear path, in order
_MASKED = -1e9
_HEAD_SPREAD = 0.3  # standard deviation of fresh head weights
_CELL_SPREAD = 0.1  # of fresh cell weights, against 1 / sqrt(inputs): a fresh router says what its biases say
_GATE_BIAS = -2.0  # z = 0.12: an earlier turn counts for little until it has proved useful
_BIASES = {"z": _GATE_BIAS, "h": 0.0, "r": 0.0}


@dataclass(frozen=True)
class Cell:
    """How a cell is built."""

    variant: str = "spec"
    hidden: int = 32
    rank: int = 8
    reset_gate: bool = False


class FastGRNN(Protocol):
    def __call__(self, x: Tensor, h: Tensor) -> Tensor:
        """(n, 128), (n, H) -> (n, H)."""
        ...

    linear_gates: bool

    def dense(self) -> dict[str, Tensor]:
        """W, U, b of each gate, zeta and nu, as the update uses them."""
        ...


class SpecCell(nn.Module):
    linear_gates = False

    def __init__(self, cell: Cell, draw: torch.Generator) -> None:
        super().__init__()
        self.gates = ("z", "h", "r") if cell.reset_gate else ("z", "h")
        for gate in self.gates:
            _add_gate(self, f"_{gate}", cell, draw)
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.full((cell.hidden,), _BIASES[gate])))
        self.zeta = nn.Parameter(torch.tensor(1.0))
        self.nu = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset = _gate(self._inner("r", x, h), self.linear_gates) * h if "r" in self.gates else h
        z = _gate(self._inner("z", x, h), self.linear_gates)
        candidate = _squash(self._inner("h", x, reset), self.linear_gates)
        return (self.zeta * (1 - z) + self.nu) * candidate + z * h

    def _inner(self, gate: str, x: Tensor, h: Tensor) -> Tensor:
        return _apply(self, f"_{gate}", x, h) + _get(self, f"b_{gate}")

    def dense(self) -> dict[str, Tensor]:
        arrays: dict[str, Tensor] = {"zeta": self.zeta, "nu": self.nu}
        for gate in self.gates:
            arrays[f"W_{gate}"] = _get(self, f"W_{gate}")
            arrays[f"U_{gate}"] = _get(self, f"U1_{gate}") @ _get(self, f"U2_{gate}")
            arrays[f"b_{gate}"] = _get(self, f"b_{gate}")
        return arrays


class KusupatiCell(nn.Module):
    linear_gates = False

    def __init__(self, cell: Cell, draw: torch.Generator) -> None:
        super().__init__()
        _add_gate(self, "", cell, draw)
        self.b_z = nn.Parameter(torch.full((cell.hidden,), _GATE_BIAS))
        self.b_h = nn.Parameter(torch.zeros(cell.hidden))
        self.zeta = nn.Parameter(torch.tensor(1.0))  # before the sigmoid
        self.nu = nn.Parameter(torch.tensor(-4.0))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        inner = _apply(self, "", x, h)
        z = _gate(inner + self.b_z, self.linear_gates)
        candidate = _squash(inner + self.b_h, self.linear_gates)
        return (torch.sigmoid(self.zeta) * (1 - z) + torch.sigmoid(self.nu)) * candidate + z * h

    def dense(self) -> dict[str, Tensor]:
        w, u = _get(self, "W"), _get(self, "U1") @ _get(self, "U2")
        arrays = {"W_z": w, "W_h": w, "U_z": u, "U_h": u, "b_z": self.b_z, "b_h": self.b_h}
        return {**arrays, "zeta": torch.sigmoid(self.zeta), "nu": torch.sigmoid(self.nu)}


_CELLS = {"spec": SpecCell, "kusupati": KusupatiCell}


@dataclass(frozen=True, eq=False)
class Outputs:
    """Heads before their softmax; n rows. Places that are not to be chosen have logits of -1e9.

    `choice` is what the decision is made by: softmax of it is what the router says of its tiers (`model_probs`).
    """

    choice: Tensor  # (n, 4) of the deciding head, caution included
    model: Tensor  # (n, 4) specification's head
    quality: Tensor  # (n, 4) logits of each tier's quality in [0, 1]
    utility: Tensor  # (n, 4) expected, with the likeliest bin
    context: Tensor  # (n, 5)
    temperature: Tensor  # (n,) in [0, 2]
    top_p: Tensor  # (n,) in [0, 1]
    confidence: Tensor  # (n,) logit


class RouterNetwork(nn.Module):
    """The cell, the heads, and as buffers what is measured and not trained.

    `feature_mask` is 0 for places that the router must not look at. The shifts are added to the heads after training;
    they are 0 while it lasts. `latency_s` and `cost` are what a tier is expected to take with each bin, `exchange` is
    (lambda, mu), and utilities divided by `sharpness` are the logits of the choice where the quality head decides.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    feature_mask: Tensor
    tier_mask: Tensor
    bin_mask: Tensor
    tier_shift: Tensor
    bin_shift: Tensor
    confidence_shift: Tensor
    latency_s: Tensor
    cost: Tensor
    exchange: Tensor
    sharpness: Tensor

    def __init__(self, cell: Cell, seed: int = 0, decides: str = QUALITY) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.built, self.decides = cell, decides
        self.cell = cast(FastGRNN, _CELLS[cell.variant](cell, draw))
        self.heads = nn.ModuleDict({name: _head(cell.hidden, size, draw) for name, size in _HEADS.items()})
        for name in ("feature_scale", "feature_mask"):
            self.register_buffer(name, torch.ones(N_FEATURES))
        self.register_buffer("feature_mean", torch.zeros(N_FEATURES))
        self.register_buffer("tier_mask", torch.ones(N_TIERS))
        self.register_buffer("bin_mask", torch.ones(N_BINS))
        self.register_buffer("tier_shift", torch.zeros(N_TIERS))
        self.register_buffer("bin_shift", torch.zeros(N_BINS))
        self.register_buffer("confidence_shift", torch.zeros(()))
        for name in ("latency_s", "cost"):
            self.register_buffer(name, torch.zeros(N_TIERS, N_BINS))
        self.register_buffer("exchange", torch.zeros(2))
        self.register_buffer("sharpness", torch.ones(()))
        self.wide = nn.Parameter(torch.zeros(sum(_WIDE.values()), N_FEATURES))

    def normalise(self, features: Tensor) -> Tensor:
        """Features as they are extracted -> the cell's input, masked places 0."""
        return (features - self.feature_mean) / self.feature_scale * self.feature_mask

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """(n, 128) normalised, (n, H) -> (n, H)."""
        return self.cell(x, h)

    def first_hidden(self, n: int) -> Tensor:
        return torch.zeros(n, self.built.hidden, dtype=self.feature_mean.dtype)

    def unroll(self, x: Tensor) -> Tensor:
        """(S, T, 128) normalised -> (S, T, H): S sessions of T turns, each from h = 0."""
        h, states = self.first_hidden(len(x)), []
        for turn in range(x.shape[1]):
            h = self.step(x[:, turn], h)
            states.append(h)
        return torch.stack(states, dim=1)

    def read(self, hidden: Tensor, x: Tensor, all_bins: bool = False) -> Outputs:
        """(n, H) and the inputs it came from (n, 128) -> heads. Bins never run are masked unless `all_bins`."""
        logits = {name: head(hidden) for name, head in self.heads.items()}
        wide = torch.split(x @ self.wide.T, list(_WIDE.values()), dim=1)
        logits |= {name: logits[name] + part for name, part in zip(_WIDE, wide, strict=True)}
        context = logits["context"] + self.bin_shift
        context = context if all_bins else context.masked_fill(self.bin_mask == 0, _MASKED)
        absent = self.tier_mask == 0
        model, quality = logits["model"].masked_fill(absent, _MASKED), logits["quality"]
        utility = self.utility(quality, context.argmax(dim=1))
        deciding = utility / self.sharpness if self.decides == QUALITY else model
        return Outputs(
            choice=(deciding + self.tier_shift).masked_fill(absent, _MASKED),
            model=model,
            quality=quality,
            utility=utility,
            context=context,
            temperature=2 * torch.sigmoid(logits["temperature"][:, 0]),
            top_p=torch.sigmoid(logits["top_p"][:, 0]),
            confidence=logits["confidence"][:, 0] + self.confidence_shift,
        )

    def utility(self, quality: Tensor, places: Tensor) -> Tensor:
        """Expected U (n, 4) on 1 to 5 of quality logits (n, 4), each row with the bin at `places` (n,)."""
        expense = self.exchange[0] * self.latency_s + self.exchange[1] * self.cost  # (4, 5)
        return 1 + 4 * torch.sigmoid(quality) - expense.T[places]

    def export_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The arrays of router.safetensors: low rank multiplied out, masks and shifts folded in."""
        arrays = {**self.cell.dense(), "wide": self.wide}
        for name in [name for name in arrays if name.startswith("W_") or name == "wide"]:
            arrays[name] = arrays[name] * self.feature_mask
        shifts = {"context": self.bin_shift, "confidence": self.confidence_shift}
        for name, head in self.heads.items():
            linear = cast(nn.Linear, head)
            arrays[f"{name}.w"] = linear.weight
            arrays[f"{name}.b"] = linear.bias + shifts[name] if name in shifts else linear.bias
        for name in ("feature_mean", "feature_scale", "tier_shift", "latency_s", "cost"):
            arrays[name] = getattr(self, name)
        # not ascontiguousarray: it turns a scalar array into shape (1,)
        return {name: np.array(tensor.detach().numpy(), dtype=np.float32, order="C") for name, tensor in arrays.items()}


def _gate(inner: Tensor, linear: bool) -> Tensor:
    """Sigmoid, or the line of its slope at 0 between 0 and 1: what a byte-sized router computes."""
    return (inner / 4 + 0.5).clamp(0.0, 1.0) if linear else torch.sigmoid(inner)


def _squash(inner: Tensor, linear: bool) -> Tensor:
    """Tanh, or the line of its slope at 0 between -1 and 1 (Kusupati et al. 2018, section 3.2)."""
    return inner.clamp(-1.0, 1.0) if linear else torch.tanh(inner)


def _add_gate(module: nn.Module, suffix: str, cell: Cell, draw: torch.Generator) -> None:
    shapes = {"W": (cell.hidden, N_FEATURES), "U1": (cell.hidden, cell.rank), "U2": (cell.rank, cell.hidden)}
    for name, shape in shapes.items():
        spread = 1.0 if name == "U2" else _CELL_SPREAD  # the product U1 U2 is as small as W
        weight = torch.randn(shape, generator=draw) * spread / shape[1] ** 0.5
        module.register_parameter(name + suffix, nn.Parameter(weight))


def _apply(module: nn.Module, suffix: str, x: Tensor, h: Tensor) -> Tensor:
    """W x + U1 U2 h, the product never formed."""
    recurrent = (h @ _get(module, f"U2{suffix}").T) @ _get(module, f"U1{suffix}").T
    return x @ _get(module, f"W{suffix}").T + recurrent


def _get(module: nn.Module, name: str) -> Tensor:
    return cast(Tensor, getattr(module, name))


def _head(hidden: int, size: int, draw: torch.Generator) -> nn.Linear:
    head = nn.Linear(hidden, size)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw) * _HEAD_SPREAD)
        head.bias.zero_()
    return head
