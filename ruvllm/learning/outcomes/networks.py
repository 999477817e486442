"""Trains a torch network that maps features to one logit a tier. Knows nothing of the network's form or of costs.

The loss is the cross-entropy of each tier's score plus the distance of the tiers' order from the tempered one:
    L = mean over known (i, j) of BCE(s_ij, sigmoid(l_ij)) + beta KL(softmax(s_i / T) || softmax(sigmoid(l_i) / T))
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ruvllm.learning.outcomes.predictors import Array, Scaling, Wide, check_lesson, make_scaling


@dataclass(frozen=True)
class Training:
    """How a network is fitted; the same for all that compete, chosen on training rows (benchmark test_settings)."""

    steps: int = 240
    check_every: int = 20
    held_out: float = 0.15  # of the rows given, on which the best step is chosen
    batch: int = 512
    learning_rate: float = 0.004
    weight_decay: float = 2.0
    dropout: float = 0.6  # of the inputs
    temperature: float = 0.1
    order_weight: float = 0.5  # beta


@dataclass(frozen=True, eq=False)
class Reduction:
    """Scaled inputs, and where there are more than the network takes, their leading principal components."""

    before: Scaling
    components: Array | None  # (d, k)
    after: Scaling
    width: int

    def apply(self, x: Array) -> Array:
        """(n, d) -> (n, width), zeros where there are fewer inputs than that."""
        scaled = self.before.apply(x)
        reduced = scaled if self.components is None else scaled @ self.components
        narrow = self.after.apply(reduced)
        padded = np.zeros((len(x), self.width), dtype=np.float32)
        padded[:, : narrow.shape[1]] = narrow
        return padded


def make_reduction(x: Array, width: int) -> Reduction:
    """From training rows (n, d)."""
    before = make_scaling(x)
    scaled = before.apply(x)
    components = None
    if x.shape[1] > width:
        components = np.ascontiguousarray(np.linalg.svd(scaled, full_matrices=False)[2][:width].T)
        scaled = scaled @ components
    return Reduction(before, components, make_scaling(scaled), width)


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    network: nn.Module
    reduction: Reduction

    def predict(self, x: Array) -> Wide:
        """(n, d) -> (n, m) in (0, 1)."""
        with torch.no_grad():
            logits = self.network(torch.as_tensor(self.reduction.apply(x)))
        return torch.sigmoid(logits).double().numpy()


def fit_network(
    build: Callable[[], nn.Module], width: int, x: Array, score: Wide, seed: int, training: Training | None = None
) -> FittedNetwork:
    """The network of `build` (its initial weights come from `seed`), at its best step on held-out rows.

    Raises:
        LearningError: the rows cannot be learnt from.
    """
    check_lesson(x, score)
    training = training or Training()
    reduction = make_reduction(x, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    inputs, targets = torch.as_tensor(reduction.apply(x)), torch.as_tensor(score, dtype=torch.float32)
    _start_at_means(network, targets)
    return FittedNetwork(_train(network, inputs, targets, training, seed), reduction)


def tier_loss(logits: Tensor, score: Tensor, training: Training) -> Tensor:
    """The loss of the module's docstring; `score` (n, m) with NaN for what was not run."""
    known = torch.isfinite(score)
    target = torch.where(known, score, 0.0)
    each = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    quality = torch.sigmoid(logits) / training.temperature
    hidden = torch.where(known, 0.0, -1e9)
    wanted = (target / training.temperature + hidden).softmax(dim=1)
    order = nn.functional.kl_div((quality + hidden).log_softmax(dim=1), wanted, reduction="batchmean")
    return each[known].mean() + training.order_weight * order


def _train(network: nn.Module, x: Tensor, score: Tensor, training: Training, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    held = max(1, int(training.held_out * len(x)))
    check, learn = order[:held], order[held:]
    optimiser = _optimiser(network, training)
    best, kept = float("inf"), deepcopy(network.state_dict())
    for step in range(training.steps + 1):
        if step % training.check_every == 0:
            with torch.no_grad():
                loss = float(tier_loss(network(x[check]), score[check], training))
            if loss < best:
                best, kept = loss, deepcopy(network.state_dict())
        rows = learn[torch.randint(len(learn), (min(training.batch, len(learn)),), generator=draw)]
        _step(network, optimiser, x[rows], score[rows], training, draw)
    network.load_state_dict(kept)
    return network


def _step(
    network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, score: Tensor, training: Training,
    draw: torch.Generator,
) -> None:  # fmt: skip
    keep = (torch.rand(x.shape, generator=draw) >= training.dropout) / (1 - training.dropout)
    optimiser.zero_grad()
    tier_loss(network(x * keep), score, training).backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _optimiser(network: nn.Module, training: Training) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim == 2], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
    )


def _start_at_means(network: nn.Module, score: Tensor) -> None:
    """The last layer's bias says each tier's mean score: the network starts at the best fixed choice."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    means = torch.as_tensor(np.nanmean(score.numpy(), axis=0)).clamp(0.02, 0.98)
    with torch.no_grad():
        last.bias.copy_(torch.logit(means))
