"""The training loss of specification 5.3, and what this system adds to it. Knows nothing of the optimiser.

L = CE(model) + CE(context) + alpha SmoothL1(temperature) + beta SmoothL1(top_p), over present tiers and bins that were
run, each question weighted by the utility at stake; beside it BCE(confidence), and minus the expected utility of the
softmax policy: with tens of questions accuracy is poor, and regret is what the router is judged by. For the quality
head the cross-entropy of each tier's quality, with the bin of the label, and the distance of the tiers' order from the
oracle's: KL(softmax(top K of U* / T) || softmax(U / T)). The model head's label may hold a share of the same tempered
utilities (distillation, Hinton et al. 2015).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ruvllm.errors import LearningError
from ruvllm.learning.config import LossConfig
from ruvllm.learning.targets import TEMPERATURE, TOP_P, Targets, weights
from ruvllm.router.fastgrnn import Outputs

Array = NDArray[np.floating]
_NEVER = -1e9


@dataclass(frozen=True, eq=False)
class Lessons:
    """Targets of m rows as tensors."""

    utility: Tensor  # (m, 4, 5), 0 where not run
    best: Tensor  # (m,) the oracle's utility
    tier: Tensor  # (m,)
    context: Tensor  # (m,)
    tier_weight: Tensor  # (m,) mean 1
    context_weight: Tensor  # (m,) mean 1
    quality: Tensor  # (m, 4) in [0, 1] with the label's bin, NaN where not run
    by_tier: Tensor  # (m, 4) utility with that bin, -1e9 where not run
    row_weight: Tensor  # (m,) mean 1; how much a row counts in everything

    def of(self, rows: Tensor) -> Lessons:
        """Those of some rows, in their order; weights as they were."""
        return Lessons(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})

    def weighted(self, by: Array) -> Lessons:
        """The same with every row's weight multiplied; `by` (m,), not all 0."""
        weight = _of_mean_one(self.row_weight.double().numpy() * by)
        return replace(self, row_weight=torch.as_tensor(weight, dtype=torch.float32))


def make_lessons(
    targets: Targets, rows: NDArray[np.int64], weight_floor: float, row_weight: Array | None = None
) -> Lessons:
    """The targets of `rows`, in their order; `row_weight` (m,) of these rows, none: each counts the same."""
    utility = targets.utility[rows]
    finite = np.where(np.isfinite(utility), utility, 0.0)
    place = np.arange(len(rows))
    by_tier = utility[place, :, targets.context[rows]]
    counts = np.ones(len(rows)) if row_weight is None else np.asarray(row_weight, dtype=np.float64)
    return Lessons(
        utility=torch.as_tensor(finite, dtype=torch.float32),
        best=torch.as_tensor(utility.max(axis=(1, 2)), dtype=torch.float32),
        tier=torch.as_tensor(targets.tier[rows]),
        context=torch.as_tensor(targets.context[rows]),
        tier_weight=torch.as_tensor(weights(targets.tier_margin[rows], weight_floor), dtype=torch.float32),
        context_weight=torch.as_tensor(weights(targets.context_margin[rows], weight_floor), dtype=torch.float32),
        quality=torch.as_tensor(targets.quality[rows], dtype=torch.float32)[place, :, targets.context[rows]],
        by_tier=torch.as_tensor(np.where(np.isfinite(by_tier), by_tier, _NEVER), dtype=torch.float32),
        row_weight=torch.as_tensor(_of_mean_one(counts), dtype=torch.float32),
    )


def task_loss(outputs: Outputs, lessons: Lessons, config: LossConfig) -> Tensor:
    """A scalar, mean over the rows."""
    temperature = torch.full_like(outputs.temperature, TEMPERATURE)
    top_p = torch.full_like(outputs.top_p, TOP_P)
    each = (
        config.model * model_loss(outputs, lessons, config)
        + config.context * _cross_entropy(outputs.context, lessons.context) * lessons.context_weight
        + config.quality * quality_loss(outputs.quality, lessons.quality)
        + config.temperature * functional.smooth_l1_loss(outputs.temperature, temperature, reduction="none")
        + config.top_p * functional.smooth_l1_loss(outputs.top_p, top_p, reduction="none")
        + config.confidence * confidence_loss(outputs, lessons, config.epsilon)
        - config.utility * expected_utility(outputs, lessons.utility)
    )
    if config.order:
        each = each + config.order * order_loss(outputs.utility, lessons.by_tier, config)
    return (each * lessons.row_weight).mean()


def model_loss(outputs: Outputs, lessons: Lessons, config: LossConfig) -> Tensor:
    """(m,): cross-entropy of the specification's head with the label, or with a share of tempered utilities in it."""
    each = _cross_entropy(outputs.model, lessons.tier)
    if config.distil:
        soft = -(tempered(lessons.by_tier, config) * outputs.model.log_softmax(dim=1)).sum(dim=1)
        each = (1 - config.distil) * each + config.distil * soft
    return each * lessons.tier_weight


def quality_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """(m,): sum over the tiers that were run of the cross-entropy; a quality of 0.7 is 0.7 of a success."""
    known = torch.isfinite(quality)
    target = torch.where(known, quality, 0.0)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(known, each, 0.0).sum(dim=1)


def order_loss(utility: Tensor, oracle: Tensor, config: LossConfig) -> Tensor:
    """(m,): KL of the tempered expected utilities from the tempered oracle's, over the tiers that were run."""
    wanted = tempered(oracle, config)
    got = (torch.where(oracle > _NEVER / 2, utility, _NEVER) / config.tempered).log_softmax(dim=1)
    return functional.kl_div(got, wanted, reduction="none").sum(dim=1)


def tempered(utility: Tensor, config: LossConfig) -> Tensor:
    """(m, 4): softmax(U / T) over the `top_k` best tiers of each row, 0 elsewhere."""
    least = utility.topk(min(config.top_k, utility.shape[1]), dim=1).values[:, -1:]
    return torch.where(utility >= least, utility / config.tempered, _NEVER).softmax(dim=1)


def expected_utility(outputs: Outputs, utility: Tensor) -> Tensor:
    """(m,): what the softmax policy would get, tier and bin drawn independently."""
    tiers, bins = outputs.choice.softmax(dim=1), outputs.context.softmax(dim=1)
    return torch.einsum("mt,mb,mtb->m", tiers, bins, utility)


def confidence_loss(outputs: Outputs, lessons: Lessons, epsilon: float) -> Tensor:
    """(m,): BCE against: is the pair that the router would choose now within epsilon of the oracle's utility?"""
    rows = torch.arange(len(lessons.best))
    chosen = lessons.utility[rows, outputs.choice.argmax(dim=1), outputs.context.argmax(dim=1)]
    near = (chosen >= lessons.best - epsilon).to(outputs.confidence.dtype)
    return functional.binary_cross_entropy_with_logits(outputs.confidence, near, reduction="none")


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _of_mean_one(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise LearningError("row weights: want numbers from 0 up, not all 0")
    return np.asarray(weight / weight.mean(), dtype=np.float64)
