"""Trains attention on which nodes proved useful: listwise, against what stands around them. Knows nothing of files.

The loss of a question is the cross-entropy between its gold (shared equally, or by weight) and the softmax of the
scores over the whole neighbourhood (ListNet's top-one probability, Cao et al. 2007, section 4.2). So every other node
that was retrieved is a negative, and those that score high weigh most: hard negatives need no mining. A question
whose gold was not retrieved teaches nothing here and is left out, counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ruvllm.attention.graph import Subgraph
from ruvllm.attention.layers import AttentionNetwork, batched
from ruvllm.attention.shape import Shape
from ruvllm.errors import LearningError
from ruvllm.progress import Progress, silent

Array = NDArray[np.float32]

_LEAST = 8  # questions with gold in reach, below which nothing is trained
_LEAST_SCALE = 1e-3


@dataclass(frozen=True, eq=False)
class Lesson:
    """A neighbourhood and how useful each of its nodes proved, 0 or more; `missing` gold lay outside of it."""

    graph: Subgraph
    useful: Array  # (n,)
    missing: int = 0

    @classmethod
    def of(cls, graph: Subgraph, gold: Mapping[int, float]) -> Lesson:
        useful = np.array([gold.get(id, 0.0) for id in graph.ids.tolist()], dtype=np.float32)
        if not np.isfinite(useful).all() or (useful < 0).any():
            raise LearningError("lesson: usefulness is negative or not finite, want numbers from 0 on")
        return cls(graph, useful, sum(id not in set(graph.ids.tolist()) for id in gold))

    @property
    def teaches(self) -> bool:
        return bool(self.useful.sum() > 0) and self.graph.n > 1


@dataclass(frozen=True)
class AttentionConfig:
    """How long and how carefully is trained. `seconds` bounds a run; what was learnt by then is kept."""

    epochs: int = 15
    visits: int = 30_000  # questions looked at in all, which bounds epochs: the same in every run, unlike seconds
    batch: int = 16
    rate: float = 3e-3
    decay: float = 0.02  # AdamW's weight decay
    edge_dropout: float = 0.15
    node_dropout: float = 0.0
    average: float = 0.97  # of the running mean of weights that is kept
    seconds: float = 290.0
    seed: int = 0
    threads: int = 1

    def epochs_for(self, lessons: int) -> int:
        return max(1, min(self.epochs, self.visits // lessons))


@dataclass(frozen=True, eq=False)
class Trained:
    """A model's arrays and how it was made."""

    shape: Shape
    arrays: dict[str, Array]
    questions: int
    left_out: int  # without gold in reach
    epochs: int
    seconds: float
    losses: tuple[float, ...] = field(default=())  # mean of each epoch


def train(
    lessons: Sequence[Lesson], shape: Shape, config: AttentionConfig | None = None, progress: Progress = silent
) -> Trained:
    """Fit a network to `lessons`; the same lessons and seed give the same arrays.

    Raises:
        LearningError: fewer than 8 lessons teach anything, or the loss is not finite.
    """
    config, started = config or AttentionConfig(), time.monotonic()
    teaching = [lesson for lesson in lessons if lesson.teaches]
    if len(teaching) < _LEAST:
        raise LearningError(
            f"attention: got {len(teaching)} questions with gold in reach of {len(lessons)}, want at least {_LEAST}"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        network, losses = _fitted(teaching, shape, config, started, progress)
    finally:
        torch.set_num_threads(before)
    return Trained(
        shape, network.arrays(), len(teaching), len(lessons) - len(teaching), len(losses),
        time.monotonic() - started, tuple(losses),
    )  # fmt: skip


def _fitted(
    lessons: Sequence[Lesson], shape: Shape, config: AttentionConfig, started: float, progress: Progress
) -> tuple[AttentionNetwork, list[float]]:
    network = AttentionNetwork(shape, config.seed)
    scale_by(network, [lesson.graph for lesson in lessons])
    mean = AttentionNetwork(shape, config.seed)
    mean.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    rng, losses, epochs = np.random.default_rng(config.seed), [], config.epochs_for(len(lessons))
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = config.rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        losses.append(_epoch(network, mean, optimiser, lessons, config, rng))
        progress(epoch + 1, epochs, f"loss {losses[-1]:.3f}")
        if time.monotonic() - started > config.seconds:
            break
    return mean, losses


def _epoch(
    network: AttentionNetwork, mean: AttentionNetwork, optimiser: torch.optim.Optimizer, lessons: Sequence[Lesson],
    config: AttentionConfig, rng: np.random.Generator,
) -> float:  # fmt: skip
    order, total = rng.permutation(len(lessons)), 0.0
    for start in range(0, len(order), config.batch):
        chosen = [lessons[i] for i in order[start : start + config.batch]]
        graphs = [thinned(lesson.graph, config.edge_dropout, rng) for lesson in chosen]
        loss = listwise_loss(network(batched(graphs)), [lesson.useful for lesson in chosen])
        if not torch.isfinite(loss):
            raise LearningError(f"attention: the loss is {float(loss.detach())}, want a finite number; lower the rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        _follow(mean, network, config.average)
        total += float(loss.detach()) * len(chosen)
    return total / len(lessons)


def listwise_loss(scores: Tensor, useful: Sequence[Array]) -> Tensor:
    """Mean over questions of -sum_i t_i log softmax(s)_i, t the usefulness over its sum. `scores` (b, n + 1)."""
    wanted = torch.zeros_like(scores)
    for row, each in enumerate(useful):
        wanted[row, : len(each)] = torch.as_tensor(each / each.sum())
    logs = torch.log_softmax(scores, dim=1).masked_fill(wanted == 0, 0.0)  # absent places are minus infinity
    return -(wanted * logs).sum(dim=1).mean()


def thinned(graph: Subgraph, share: float, rng: np.random.Generator) -> Subgraph:
    """Without about `share` of the messages between nodes; those to itself stay."""
    if share <= 0:
        return graph
    kept = np.flatnonzero((rng.random(len(graph.code)) >= share) | (graph.code == 0))
    return Subgraph(
        graph.ids, graph.nodes, graph.product, graph.prior, graph.hop, graph.time, graph.source[kept],
        graph.target[kept], graph.code[kept], graph.messages[kept],
    )  # fmt: skip


def scale_by(network: AttentionNetwork, graphs: Sequence[Subgraph]) -> None:
    """Features are scaled to mean 0 and spread 1 over these neighbourhoods; what does not vary is left as it is."""
    for name, rows in (
        ("node", np.concatenate([graph.nodes for graph in graphs])),
        ("edge", np.concatenate([graph.messages for graph in graphs])),
    ):
        spread = rows.std(axis=0)
        scale = np.where(spread > _LEAST_SCALE, spread, 1.0)
        getattr(network, f"{name}_mean").copy_(torch.as_tensor(rows.mean(axis=0), dtype=torch.float32))
        getattr(network, f"{name}_scale").copy_(torch.as_tensor(scale, dtype=torch.float32))


@torch.no_grad()
def _follow(mean: AttentionNetwork, network: AttentionNetwork, keep: float) -> None:
    """Exponential running mean of weights (Polyak & Juditsky 1992): with few questions the last step is noise."""
    for slow, fast in zip(mean.parameters(), network.parameters(), strict=True):
        slow.mul_(keep).add_(fast, alpha=1 - keep)


def scores_of(network: AttentionNetwork, graphs: Sequence[Subgraph]) -> list[Array]:
    """(n,) scores of each neighbourhood, by torch."""
    with torch.no_grad():
        scores = network(batched(graphs))
    return [row[: graph.n].numpy() for row, graph in zip(scores, graphs, strict=True)]
