"""The diagonal Fisher information of a trained router. Knows nothing of how the state is kept (ewc.py).

F = mean over questions of E_y [(d log p(y | x) / d theta)^2], y from the model's own distribution, never from the
labels (those would give the "empirical" Fisher). With four tiers and five bins the expectation is taken exactly where a
sample of y would estimate it. Gradients are per question: a batch's mean gradient squared would be something else. The
heads' log-probabilities add; cross terms vanish because heads are drawn independently. Each is scaled as in the loss,
and so is the choice that the utilities stand for, where the loss looks at their order. The expected utility in the loss
is no likelihood: it has no Fisher information, and none is made up for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ruvllm.errors import LearningError
from ruvllm.learning.checkpoint import load_checkpoint
from ruvllm.learning.config import LossConfig
from ruvllm.learning.data import Array, features_for, load_snapshot
from ruvllm.learning.ewc import Ewc
from ruvllm.learning.fit import Batch, Material, Normaliser, make_batch, set_buffers
from ruvllm.learning.targets import make_targets
from ruvllm.router.fastgrnn import Outputs, RouterNetwork

_ABSENT = -1e8  # logits of tiers that the ladder has not lie below
_BUFFERS = ("feature_mean", "feature_scale", "feature_mask")


def measure_bundle(folder: Path, snapshot_path: Path) -> Ewc:
    """The state of one task: the bundle's parameters and their Fisher information on the snapshot's training rows.

    Raises:
        LearningError: the snapshot is not the one that the bundle was trained on, or a file is altered.
        BundleError: the bundle is not whole.
    """
    checkpoint, snapshot = load_checkpoint(folder), load_snapshot(snapshot_path)
    if snapshot.digest != checkpoint.bundle.manifest.snapshot:
        raise LearningError(
            f"snapshot {snapshot_path}: digest {snapshot.digest[:12]}, bundle {folder} was trained on"
            f" {checkpoint.bundle.manifest.snapshot[:12]}; use the snapshot of its own cycle"
        )
    network, config, transforms = checkpoint.network, checkpoint.config, checkpoint.bundle.transforms
    buffers = {name: getattr(network, name).numpy() for name in _BUFFERS}
    scaling = Normaliser(*(buffers[name] for name in _BUFFERS))
    material = Material(snapshot, make_targets(snapshot), features_for(snapshot, transforms), scaling)
    set_buffers(network, material)  # without caution: a router pushed to one choice would look sure of everything
    return Ewc(
        fisher=fisher(network, make_batch(material, snapshot.train), config.loss),
        anchor={name: parameter.detach().numpy() for name, parameter in network.named_parameters()},
        penalty=config.ewc.penalty,
        decay=config.ewc.decay,
        origin=checkpoint.origin,
        samples=len(snapshot.train),
        buffers=buffers,
        transforms=transforms.arrays() if transforms else {},
    )


def fisher(network: RouterNetwork, batch: Batch, config: LossConfig) -> dict[str, Array]:
    """Name -> array of the parameter's shape, mean over the batch's rows."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for x, valid in zip(batch.x, batch.valid, strict=True):
        outputs = network.read(network.unroll(x[None])[0, valid], x[valid])
        for weight, log_probability in _scores(outputs, config):
            gradients = torch.autograd.grad(log_probability, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += weight * gradient**2
    rows = len(batch.rows)
    return {name: np.array((total / rows).numpy()) for name, total in zip(names, totals, strict=True)}


def _scores(outputs: Outputs, config: LossConfig) -> Iterator[tuple[float, Tensor]]:
    """(p(y) times the head's weight in the loss, log p(y)) for every row, head and outcome y that has a chance."""
    for row in range(len(outputs.confidence)):
        there = outputs.model[row] > _ABSENT
        order = torch.where(there, outputs.utility[row], 2 * _ABSENT) / config.tempered
        categories = ((config.model, outputs.model[row]), (config.context, outputs.context[row]), (config.order, order))
        for weight, logits in categories:
            yield from _categorical(weight, logits)
        present = outputs.quality[row][there]
        for weight, logit in (*((config.quality, q) for q in present), (config.confidence, outputs.confidence[row])):
            yield from _categorical(weight, torch.stack([logit, torch.zeros_like(logit)]))
        # SmoothL1 is half a square near its minimum: a normal of variance 1, whose expected squared score is the
        # squared gradient of its mean
        for weight, mean in ((config.temperature, outputs.temperature[row]), (config.top_p, outputs.top_p[row])):
            if weight:
                yield weight, mean


def _categorical(weight: float, logits: Tensor) -> Iterator[tuple[float, Tensor]]:
    if weight == 0:
        return
    logs = functional.log_softmax(logits, dim=0)
    for log_probability in logs:
        probability = float(log_probability.detach().exp())
        if probability > 0:
            yield weight * probability, log_probability
