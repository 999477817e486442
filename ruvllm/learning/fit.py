"""Fits one router network to rows of a snapshot. Knows nothing of folds, calibration, bundles or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ruvllm.errors import LearningError
from ruvllm.learning.config import Config, FeaturesConfig
from ruvllm.learning.curriculum import competence, difficulty, row_weights
from ruvllm.learning.data import Array, Rows, Snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.loss import Lessons, make_lessons, task_loss
from ruvllm.learning.saved import Saved
from ruvllm.learning.sessions import sessions_of, unrolled
from ruvllm.learning.targets import Targets, Wide, best_fixed
from ruvllm.router.fastgrnn import Cell, Outputs, RouterNetwork
from ruvllm.router.layout import LAYOUT

Check = Callable[[int, RouterNetwork], None]
Penalty = Callable[[Mapping[str, Tensor]], Tensor]

_BIN_NEVER_RUN = -10.0  # shift of bins without outcomes: nothing is known in their favour
_HARD_BY = ("token_count", "graph_depth")
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
    return network.read(network.unroll(x)[batch.valid], x[batch.valid], all_bins)


def new_network(material: Material, rows: Rows, config: Config, seed: int) -> RouterNetwork:
    """A fresh network whose biases say the best fixed choice of `rows`: it starts there and has to earn its way off."""
    router = config.router
    cell = Cell(router.variant, router.hidden, router.rank, router.reset_gate)
    network = RouterNetwork(cell, seed, router.decides)
    network.sharpness.fill_(config.loss.tempered)
    set_buffers(network, material, rows)
    utility = material.targets.utility[rows]
    tier, context = best_fixed(utility)
    with torch.no_grad():
        network.heads["model"].bias.copy_(_prior(utility[:, :, context].mean(axis=0)))  # type: ignore[operator]
        network.heads["context"].bias.copy_(_prior(utility[:, tier].mean(axis=0)))  # type: ignore[operator]
        mean_quality = material.targets.quality[rows][:, :, context].mean(axis=0)
        network.heads["quality"].bias.copy_(_logit(mean_quality))  # type: ignore[operator]
        network.heads["temperature"].bias.fill_(-_SURE)  # type: ignore[operator]
        network.heads["top_p"].bias.fill_(_SURE)  # type: ignore[operator]
    return network


def set_buffers(network: RouterNetwork, material: Material, rows: Rows | None = None) -> None:
    """Scaling, masks and what `rows` say of latency and cost (none: the training rows).

    The shifts go back to those of an uncalibrated router.
    """
    snapshot, scaling = material.snapshot, material.normaliser
    rows = snapshot.train if rows is None else rows
    values = {
        "feature_mean": scaling.mean,
        "feature_scale": scaling.scale,
        "feature_mask": scaling.mask,
        "tier_mask": snapshot.tier_mask,
        "bin_mask": snapshot.bin_mask,
        "tier_shift": np.zeros(len(snapshot.tier_mask)),
        "bin_shift": np.where(snapshot.bin_mask, 0.0, _BIN_NEVER_RUN),
        "confidence_shift": np.zeros(()),
        "latency_s": expected(snapshot.latency_s[rows], snapshot.bin_mask),
        "cost": expected(snapshot.cost[rows], snapshot.bin_mask),
        "exchange": np.array([snapshot.latency_weight, snapshot.cost_weight]),
    }
    for name, value in values.items():
        getattr(network, name).copy_(torch.as_tensor(value, dtype=torch.float32))


def expected(values: Array, ran: NDArray[np.bool_]) -> Array:
    """(m, 4, 5) -> (4, 5): means of what was run; a bin never run has the values of the nearest one that was.

    Tiers that were not run have 0: they are masked wherever a tier is chosen.
    """
    places = np.flatnonzero(ran)
    nearest = places[np.abs(places[None, :] - np.arange(len(ran))[:, None]).argmin(axis=1)]  # (5,)
    mean = values.astype(np.float64).mean(axis=0)[:, nearest]
    return np.where(np.isfinite(mean), mean, 0.0).astype(np.float32)


def fit(
    network: RouterNetwork,
    material: Material,
    rows: Rows,
    config: Config,
    steps: int,
    seed: int,
    ewc: Ewc | None = None,
    check: Check | None = None,
    *,
    weights: Wide | None = None,
    penalty: Penalty | None = None,
    after_step: Check | None = None,
    saved: Saved | None = None,
) -> None:
    """Train the network in place, `steps` times; `check` is called every `check_every` steps.

    A step takes all rows at once; of more than `training.batch` sessions it draws so many, so that the time of a
    training does not grow with what a router has seen.

    `weights` (m,) says how much each of `rows` counts, `penalty` is added to the loss, `after_step` sees the network
    after every step and may change its weights (a threshold, say). With `saved` the state is kept every `check_every`
    steps, and a run that was killed goes on from there to the same bits.
    """
    batch, training = make_batch(material, rows), config.training
    lessons = make_lessons(material.targets, batch.rows, config.loss.weight_floor, _in_order(weights, rows, batch.rows))
    optimiser = _optimiser(network, config)
    draw = torch.Generator().manual_seed(seed)
    done = saved.load(network, optimiser, draw) if saved else 0
    pace = make_pace(material, batch.rows, round(training.curriculum * steps))
    place = torch.cumsum(batch.valid.flatten(), 0).reshape(batch.valid.shape) - 1  # (S, T) of each turn in the lessons
    for step in range(done + 1, steps + 1):
        taken, wanted = batch, pace(lessons, step)
        if 0 < training.batch < len(batch.valid):
            sessions = torch.randint(len(batch.valid), (training.batch,), generator=draw)
            taken, wanted = _of_sessions(batch, wanted, place, sessions)
        keep = _dropout(taken.x, training.dropout, draw)
        loss = total_loss(network, taken, wanted, config, ewc, keep)
        if penalty is not None:
            loss = loss + penalty(dict(network.named_parameters()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if after_step:
            after_step(step, network)
        if step % training.check_every == 0:
            if saved:
                saved.save(step, network, optimiser, draw)
            if check:
                check(step, network)


def _of_sessions(batch: Batch, lessons: Lessons, place: Tensor, sessions: Tensor) -> tuple[Batch, Lessons]:
    """Some sessions and what is wanted of their rows."""
    valid = batch.valid[sessions]
    rows = place[sessions][valid]
    return Batch(batch.x[sessions], valid, batch.rows[rows.numpy()]), lessons.of(rows)


def make_pace(material: Material, rows: Rows, duration: int) -> Callable[[Lessons, int], Lessons]:
    """The lessons that count at a step, from 1 on: all of them, or by a curriculum of `duration` steps the easier ones.

    A question is hard where its choices hardly differ, where it is long, and where its neighbourhood reaches far.
    """
    if not duration:
        return lambda lessons, step: lessons
    features, margin = material.snapshot.features[rows], material.targets.tier_margin[rows]
    length, depth = (features[:, LAYOUT[name]].mean(axis=1).astype(np.float64) for name in _HARD_BY)
    hardness = difficulty(np.asarray(margin, dtype=np.float64), length, depth)
    return lambda lessons, step: (
        lessons if step > duration else lessons.weighted(row_weights(hardness, competence(step - 1, duration)))
    )


def _in_order(weights: Wide | None, rows: Rows, wanted: Rows) -> Wide | None:
    """Weights of `rows` in the order of `wanted`, which are the same rows."""
    if weights is None:
        return None
    if weights.shape != rows.shape:
        raise LearningError(f"row weights: {weights.shape} for {len(rows)} rows, want one each")
    order = np.argsort(rows)
    in_order: Wide = weights[order][np.searchsorted(rows[order], wanted)]
    return in_order


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


def _logit(shares: Wide) -> Tensor:
    """Of mean qualities (4,), kept off 0 and 1; what was never run gets 0."""
    kept = np.clip(np.where(np.isfinite(shares), shares, 0.5), 0.02, 0.98)
    return torch.as_tensor(np.log(kept / (1 - kept)), dtype=torch.float32)


def _prior(means: NDArray[np.float64]) -> Tensor:
    """Mean utilities as logits, the best at 0; what was never run gets none of it."""
    finite = np.isfinite(means)
    return torch.as_tensor(np.where(finite, means - means[finite].max(), 0.0), dtype=torch.float32)
