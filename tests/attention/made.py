"""Neighbourhoods and small memories, made up from a seed, for the tests of attention."""

from __future__ import annotations

import numpy as np

from ruvllm.attention.graph import N_EDGE, N_NODE, Edges, Subgraph, directed, sound
from ruvllm.attention.layers import AttentionNetwork
from ruvllm.attention.shape import Shape

DIMENSION = 12
SMALL = Shape(DIMENSION, width=16, heads=2, layers=2, hyperbolic=True)


def edges(n: int, count: int, seed: int = 0) -> Edges:
    rng = np.random.default_rng(seed)
    return sound(
        Edges(
            rng.integers(0, n, count), rng.integers(0, n, count), rng.integers(1, 7, count).astype(np.int8),
            rng.random(count, np.float32), rng.random(count, np.float32), rng.random(count, np.float32) * 400,
        ),
        n,
    )  # fmt: skip


def graph(n: int = 9, count: int = 14, seed: int = 0) -> Subgraph:
    rng = np.random.default_rng(seed)
    messages = directed(edges(n, count, seed) if n else Edges.none(), n)
    return Subgraph(
        ids=np.arange(100, 100 + n), nodes=rng.random((n, N_NODE), np.float32),
        product=rng.standard_normal((n, DIMENSION), np.float32), prior=rng.random(n, np.float32),
        hop=rng.integers(0, 3, n).astype(np.float32), time=rng.random(n, np.float32) * 5,
        source=messages.source, target=messages.target, code=messages.code,
        messages=rng.random((len(messages.code), N_EDGE), np.float32),
    )  # fmt: skip


def network(shape: Shape = SMALL, seed: int = 0) -> AttentionNetwork:
    """Every array is random, those too that training starts at 0 or 1."""
    import torch

    made = AttentionNetwork(shape, seed, random_head=True)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        made.node_scale.fill_(0.7)
        made.edge_mean.fill_(0.1)
    return made
