"""Fits one router network to rows of a snapshot. Knows nothing of folds, calibration, bundles or files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ruvllm.learning.config import Config, FeaturesConfig
from ruvllm.learning.data import Array, Rows, Snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.loss import Lessons, make_lessons, task_loss
from ruvllm.learning.sessions import sessions_of, unrolled
from ruvllm.learning.targets import Targets, best_fixed
from ruvllm.router.fastgrnn import Cell, Outputs, RouterNetwork
from ruvllm.router.layout import LAYOUT

Check = Callable[[int, RouterNetwork], None]

_BIN_NEVER_RUN = -10.0  # shift of bins without outcomes: nothing is known in their favour
_SURE = 6.0  # logit of the sampling heads' start: 2 sigmoid(-6) = 0.005 and sigmoid(6) = 0.998


@dataclass(frozen=True, eq=False)
class Normaliser:
    """x = (features - mean) / scale * mask. Mask 0: the place did not vary, or is not to be looked at."""

    mean: Array  # (128,)
    scale: Array  # (128,)
    mask: Array  # (128,)

    def keep(self, earlier: Normaliser) -> Normaliser:
        """This one, but what the earlier router looked at keeps the scaling that its weights were trained for."""
        known = earlier.mask > 0
        mean, scale = (
            np.where(known, old, new) for old, new in ((earlier.mean, self.mean), (earlier.scale, self.scale))
        )
        return Normaliser(mean, scale, np.maximum(earlier.mask, self.mask))

    def apply(self, features: Array) -> Array:
        scaled: Array = ((features - self.mean) / self.scale * self.mask).astype(np.float32)
        return scaled


def make_normaliser(features: Array, config: FeaturesConfig) -> Normaliser:
    """From the training rows' features (m, 128)."""
    span = LAYOUT.high - LAYOUT.low
    spread = features.std(axis=0)
    mask = (spread > np.maximum(config.least_spread * span, 1e-6)).astype(np.float32)
    for name in config.ignored:
        mask[LAYOUT[name]] = 0.0
    scale = np.where(mask > 0, np.maximum(spread, config.least_scale * span), 1.0)
    return Normaliser(features.mean(axis=0).astype(np.float32), scale.astype(np.float32), mask)


@dataclass(frozen=True, eq=False)
class Material:
    """Everything a fit reads, for all rows of a snapshot."""

    snapshot: Snapshot
    targets: Targets
    features: Array  # (n, 128), as this router will see them
    normaliser: Normaliser


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as unrolled sessions. `rows` is the order of what `forward` returns."""

    x: Tensor  # (S, T, 128) normalised
    valid: Tensor  # (S, T) bool
    rows: Rows  # (m,)


def make_batch(material: Material, rows: Rows) -> Batch:
    """The sessions of `rows`, padded to the longest."""
    index = unrolled(sessions_of(material.snapshot.session, material.snapshot.turn, rows))  # (S, T)
    valid = index >= 0
    x = material.normaliser.apply(material.features)[np.maximum(index, 0)]
    return Batch(torch.as_tensor(x), torch.as_tensor(valid), index[valid])


def forward(network: RouterNetwork, batch: Batch, keep: Tensor | None = None, all_bins: bool = False) -> Outputs:
    """Heads of the batch's rows, the hidden state carried over each session's turns; `keep` multiplies the inputs."""
    x = batch.x if keep is None else batch.x * keep
    return network.read(network.unroll(x)[batch.valid], all_bins)


def new_network(material: Material, rows: Rows, config: Config, seed: int) -> RouterNetwork:
    """A fresh network whose biases say the best fixed choice of `rows`: it starts there and has to earn its way off."""
    router = config.router
    network = RouterNetwork(Cell(router.variant, router.hidden, router.rank, router.reset_gate), seed)
    set_buffers(network, material)
    utility = material.targets.utility[rows]
    tier, context = best_fixed(utility)
    with torch.no_grad():
        network.heads["model"].bias.copy_(_prior(utility[:, :, context].mean(axis=0)))  # type: ignore[operator]
        network.heads["context"].bias.copy_(_prior(utility[:, tier].mean(axis=0)))  # type: ignore[operator]
        network.heads["temperature"].bias.fill_(-_SURE)  # type: ignore[operator]
        network.heads["top_p"].bias.fill_(_SURE)  # type: ignore[operator]
    return network


def set_buffers(network: RouterNetwork, material: Material) -> None:
    """Scaling and masks; the shifts go back to those of an uncalibrated router."""
    snapshot, scaling = material.snapshot, material.normaliser
    values = {
        "feature_mean": scaling.mean,
        "feature_scale": scaling.scale,
        "feature_mask": scaling.mask,
        "tier_mask": snapshot.tier_mask,
        "bin_mask": snapshot.bin_mask,
        "tier_shift": np.zeros(len(snapshot.tier_mask)),
        "bin_shift": np.where(snapshot.bin_mask, 0.0, _BIN_NEVER_RUN),
        "confidence_shift": np.zeros(()),
    }
    for name, value in values.items():
        getattr(network, name).copy_(torch.as_tensor(value, dtype=torch.float32))


def fit(
    network: RouterNetwork,
    material: Material,
    rows: Rows,
    config: Config,
    steps: int,
    seed: int,
    ewc: Ewc | None = None,
    check: Check | None = None,
) -> None:
    """Train the network in place on all rows at once, `steps` times; `check` is called every `check_every` steps."""
    batch, training = make_batch(material, rows), config.training
    lessons = make_lessons(material.targets, batch.rows, config.loss.weight_floor)
    optimiser = _optimiser(network, config)
    draw = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        keep = _dropout(batch.x, training.dropout, draw)
        loss = total_loss(network, batch, lessons, config, ewc, keep)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if check and step % training.check_every == 0:
            check(step, network)


def total_loss(
    network: RouterNetwork,
    batch: Batch,
    lessons: Lessons,
    config: Config,
    ewc: Ewc | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """The task's loss and the EWC penalty."""
    loss = task_loss(forward(network, batch, keep), lessons, config.loss)
    return loss + ewc.loss(dict(network.named_parameters())) if ewc else loss


def _dropout(x: Tensor, share: float, draw: torch.Generator) -> Tensor | None:
    """A place is dropped for a whole session: what is hidden from one turn must not be remembered from another."""
    if share == 0:
        return None
    kept = torch.rand((x.shape[0], 1, x.shape[2]), generator=draw) >= share
    return kept.to(x.dtype) / (1 - share)


def _optimiser(network: RouterNetwork, config: Config) -> torch.optim.AdamW:
    """Weight decay on matrices only: biases hold the class priors, zeta and nu the form of the cell."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": config.training.weight_decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.training.learning_rate)


def _prior(means: NDArray[np.float64]) -> Tensor:
    """Mean utilities as logits, the best at 0; what was never run gets none of it."""
    finite = np.isfinite(means)
    return torch.as_tensor(np.where(finite, means - means[finite].max(), 0.0), dtype=torch.float32)
