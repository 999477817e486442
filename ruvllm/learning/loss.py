"""The training loss of specification 5.3, and what this system adds to it. Knows nothing of the optimiser.

L = CE(model) + CE(context) + alpha SmoothL1(temperature) + beta SmoothL1(top_p), over present tiers and bins that were
run, each question weighted by the utility at stake; beside it BCE(confidence) and minus the expected utility
sum_(t, b) p_t p_b U[t, b]: with tens of questions accuracy is poor, and regret is what the router is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ruvllm.learning.config import LossConfig
from ruvllm.learning.targets import TEMPERATURE, TOP_P, Targets, weights
from ruvllm.router.fastgrnn import Outputs


@dataclass(frozen=True, eq=False)
class Lessons:
    """Targets of m rows as tensors."""

    utility: Tensor  # (m, 4, 5), 0 where not run
    best: Tensor  # (m,) the oracle's utility
    tier: Tensor  # (m,)
    context: Tensor  # (m,)
    tier_weight: Tensor  # (m,) mean 1
    context_weight: Tensor  # (m,) mean 1


def make_lessons(targets: Targets, rows: NDArray[np.int64], weight_floor: float) -> Lessons:
    """The targets of `rows`, in their order."""
    utility = targets.utility[rows]
    finite = np.where(np.isfinite(utility), utility, 0.0)
    return Lessons(
        utility=torch.as_tensor(finite, dtype=torch.float32),
        best=torch.as_tensor(utility.max(axis=(1, 2)), dtype=torch.float32),
        tier=torch.as_tensor(targets.tier[rows]),
        context=torch.as_tensor(targets.context[rows]),
        tier_weight=torch.as_tensor(weights(targets.tier_margin[rows], weight_floor), dtype=torch.float32),
        context_weight=torch.as_tensor(weights(targets.context_margin[rows], weight_floor), dtype=torch.float32),
    )


def task_loss(outputs: Outputs, lessons: Lessons, config: LossConfig) -> Tensor:
    """A scalar, mean over the rows."""
    temperature = torch.full_like(outputs.temperature, TEMPERATURE)
    top_p = torch.full_like(outputs.top_p, TOP_P)
    return (
        config.model * _weighted(outputs.model, lessons.tier, lessons.tier_weight)
        + config.context * _weighted(outputs.context, lessons.context, lessons.context_weight)
        + config.temperature * functional.smooth_l1_loss(outputs.temperature, temperature)
        + config.top_p * functional.smooth_l1_loss(outputs.top_p, top_p)
        + config.confidence * confidence_loss(outputs, lessons, config.epsilon)
        - config.utility * expected_utility(outputs, lessons.utility).mean()
    )


def expected_utility(outputs: Outputs, utility: Tensor) -> Tensor:
    """(m,): what the softmax policy would get, tier and bin drawn independently."""
    tiers, bins = outputs.model.softmax(dim=1), outputs.context.softmax(dim=1)
    return torch.einsum("mt,mb,mtb->m", tiers, bins, utility)


def confidence_loss(outputs: Outputs, lessons: Lessons, epsilon: float) -> Tensor:
    """BCE against: is the pair that the router would choose now within epsilon of the oracle's utility?"""
    rows = torch.arange(len(lessons.best))
    chosen = lessons.utility[rows, outputs.model.argmax(dim=1), outputs.context.argmax(dim=1)]
    near = (chosen >= lessons.best - epsilon).to(outputs.confidence.dtype)
    return functional.binary_cross_entropy_with_logits(outputs.confidence, near)


def _weighted(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    return (functional.cross_entropy(logits, labels, reduction="none") * weight).mean()
