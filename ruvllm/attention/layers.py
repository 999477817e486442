"""The attention model in torch, over a batch of padded neighbourhoods; for training. `shape` holds its formulas.

Knows nothing of losses, files or memory. Padding takes part in nothing: padded messages go to a node that nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ruvllm.attention.graph import N_CODES, N_EDGE, N_NODE, Subgraph
from ruvllm.attention.shape import BALL, N_RELATION, NORM_EPSILON, SMALL, Shape

_PRIOR = 2.0  # start of softplus^-1 of the prior's weight: 2.13
_GATE = -2.0  # start: 12 % Poincaré


@dataclass(frozen=True, eq=False)
class Batch:
    """b neighbourhoods padded to n nodes and m messages; node n of each is the one for padding."""

    nodes: Tensor  # (b, n + 1, N_NODE)
    product: Tensor  # (b, n + 1, d)
    prior: Tensor  # (b, n + 1)
    hop: Tensor  # (b, n + 1)
    time: Tensor  # (b, n + 1)
    present: Tensor  # (b, n + 1) bool
    source: Tensor  # (b, m)
    target: Tensor  # (b, m)
    code: Tensor  # (b, m)
    messages: Tensor  # (b, m, N_EDGE)


def batched(graphs: Sequence[Subgraph]) -> Batch:
    """Pad; an empty neighbourhood is a row of absent nodes."""
    n, m = max((g.n for g in graphs), default=0), max((len(g.source) for g in graphs), default=0)

    def nodes(arrays: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.as_tensor(np.stack([_padded(array, n + 1, 0) for array in arrays]))

    def messages(arrays: Sequence[NDArray[np.generic]], fill: int) -> Tensor:
        return torch.as_tensor(np.stack([_padded(array, m, fill) for array in arrays]))

    return Batch(
        nodes([g.nodes for g in graphs]),
        nodes([g.product for g in graphs]),
        nodes([g.prior for g in graphs]),
        nodes([g.hop for g in graphs]),
        nodes([g.time for g in graphs]),
        nodes([np.ones(g.n, dtype=bool) for g in graphs]),
        messages([g.source for g in graphs], n),
        messages([g.target for g in graphs], n),
        messages([g.code for g in graphs], 0),
        messages([g.messages for g in graphs], 0),
    )


def _padded(array: NDArray[np.generic], size: int, fill: int) -> NDArray[np.generic]:
    out = np.full((size, *array.shape[1:]), fill, dtype=array.dtype)
    out[: len(array)] = array
    return out


class AttentionNetwork(nn.Module):
    """Scores of nodes, larger is better. `parameters` are named as `Shape.arrays` has them, after `arrays()`."""

    node_mean: Tensor
    node_scale: Tensor
    edge_mean: Tensor
    edge_scale: Tensor

    def __init__(self, shape: Shape, seed: int = 0, random_head: bool = False) -> None:
        """`random_head`: the head is random too, so that the untrained order is no longer the prior's."""
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)

        def drawn(*size: int, scale: float | None = None) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, generator=generator) * (scale or size[-1] ** -0.5))

        width, edge = shape.width, N_RELATION + N_EDGE
        for name, size in (("node", N_NODE), ("edge", N_EDGE)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.features_w, self.features_b = drawn(width, N_NODE), nn.Parameter(torch.zeros(width))
        self.product_w = drawn(width, shape.embedding, scale=1.0)  # a place of the product is about 1 / d
        self.relations = drawn(N_CODES, N_RELATION, scale=0.3)
        self.prior = nn.Parameter(torch.tensor(_PRIOR))
        self.skip = nn.Parameter(torch.zeros(N_NODE))
        self.head = drawn(width) if random_head else nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(Layer(shape, drawn, edge) for _ in range(shape.layers))

    def forward(self, batch: Batch) -> Tensor:
        """(b, n + 1) scores; minus infinity where no node is."""
        nodes = (batch.nodes - self.node_mean) / self.node_scale
        hidden = self.encode(batch)
        scores = F.softplus(self.prior) * batch.prior + nodes @ self.skip + hidden @ self.head
        return scores.masked_fill(~batch.present, -torch.inf)

    def encode(self, batch: Batch) -> Tensor:
        """(b, n + 1, width) of the last layer."""
        nodes = (batch.nodes - self.node_mean) / self.node_scale
        hidden = nodes @ self.features_w.T + self.features_b
        if self.shape.vectors:
            hidden = hidden + batch.product @ self.product_w.T
        edges = torch.cat([self.relations[batch.code], self._edges(batch)], dim=-1)  # (b, m, 16 + N_EDGE)
        for layer in self.layers:
            hidden = layer(hidden, edges, batch)
        return hidden

    def _edges(self, batch: Batch) -> Tensor:
        scaled = (batch.messages - self.edge_mean) / self.edge_scale
        if not self.shape.recency:
            scaled = torch.cat([scaled[..., :2], torch.zeros_like(scaled[..., 2:4]), scaled[..., 4:]], dim=-1)
        return scaled

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Every array by the name that `Shape.arrays` gives it."""
        return {_outside(name): tensor.detach().numpy().copy() for name, tensor in self.state_dict().items()}

    def take(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Go on from what `arrays()` gave."""
        self.load_state_dict({name: torch.as_tensor(arrays[_outside(name)]) for name in self.state_dict()})


_OUTSIDE = {"features_w": "features.w", "features_b": "features.b", "product_w": "product.w"}


def _outside(name: str) -> str:
    """layers.0.query_w -> 0.query.w"""
    bare = name.removeprefix("layers.")
    if bare in _OUTSIDE or not name.startswith("layers."):
        return _OUTSIDE.get(bare, bare)
    number, _, rest = bare.partition(".")
    return f"{number}.{rest[:-2]}.{rest[-1]}" if rest.endswith(("_w", "_b")) else f"{number}.{rest}"


class Layer(nn.Module):
    """One round of messages."""

    def __init__(self, shape: Shape, drawn, edge: int) -> None:  # type: ignore[no-untyped-def]  # a local function
        super().__init__()
        self.shape, width, heads = shape, shape.width, shape.heads
        self.query_w, self.key_w, self.value_w, self.out_w = (drawn(width, width) for _ in range(4))
        self.edge_value_w, self.edge_score_w = drawn(width, edge), drawn(heads, edge)
        self.gate = nn.Parameter(torch.full((heads,), _GATE))
        self.beta, self.decay = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))
        self.norm_w, self.norm_b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor, edges: Tensor, batch: Batch) -> Tensor:
        """(b, n + 1, width), (b, m, 16 + N_EDGE) -> (b, n + 1, width)"""
        b, n, _ = hidden.shape
        split = (b, n, self.shape.heads, self.shape.head_width)
        query = self._turned((hidden @ self.query_w.T).view(split), batch)
        key = self._turned((hidden @ self.key_w.T).view(split), batch)
        flat = torch.arange(b)[:, None] * n
        source, target = (batch.source + flat).flatten(), (batch.target + flat).flatten()  # (b m,)
        scores = self._scores(query.flatten(0, 1)[target], key.flatten(0, 1)[source])
        scores = scores + edges.flatten(0, 1) @ self.edge_score_w.T
        scores = scores - F.softplus(self.decay) * batch.hop.flatten()[source][:, None]
        share = softmax_by(scores, target, b * n)  # (b m, heads)
        values = (hidden @ self.value_w.T).flatten(0, 1)[source] + edges.flatten(0, 1) @ self.edge_value_w.T
        weighted = values.view(len(source), *split[2:]) * share[..., None]
        summed = torch.zeros(b * n, *split[2:]).index_add(0, target, weighted)
        mixed = summed.view(b, n, -1) @ self.out_w.T
        return F.layer_norm(hidden + mixed, (self.shape.width,), self.norm_w, self.norm_b, NORM_EPSILON)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(e, heads, w) twice -> (e, heads)"""
        euclidean: Tensor = (query * key).sum(-1) * self.shape.head_width**-0.5
        if not self.shape.hyperbolic:
            return euclidean
        gate = torch.sigmoid(self.gate)
        mixed: Tensor = (1 - gate) * euclidean - gate * torch.exp(self.beta) * ball_distance(
            in_ball(query), in_ball(key)
        )
        return mixed

    def _turned(self, x: Tensor, batch: Batch) -> Tensor:
        """Each pair (2i, 2i + 1) of a head turned by its frequency times hop or time."""
        if not self.shape.rope:
            return x
        hop, time = (torch.tensor(turns) for turns in self.shape.turns)
        angle = torch.cat([batch.hop[..., None] * hop, batch.time[..., None] * time], dim=-1)[:, :, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)
        return turned.flatten(-2)


def in_ball(x: Tensor) -> Tensor:
    """The exponential map at 0, kept inside the ball: tanh(|x|) x / |x|, norm at most BALL."""
    norm = torch.sqrt((x * x).sum(-1, keepdim=True) + SMALL)
    return x * (torch.clamp(torch.tanh(norm), max=BALL) / norm)


def ball_distance(x: Tensor, y: Tensor) -> Tensor:
    """arcosh(1 + z) as log1p(z + sqrt(z (z + 2))), z = 2 |x - y|^2 / ((1 - |x|^2) (1 - |y|^2)); finite at z = 0."""
    apart = ((x - y) ** 2).sum(-1)
    z = 2 * apart / ((1 - (x * x).sum(-1)) * (1 - (y * y).sum(-1)))
    return torch.log1p(z + torch.sqrt(z * (z + 2) + SMALL))


def softmax_by(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """(e, heads): softmax among the rows of a group; `group` (e,) in 0 ... groups - 1."""
    index = group[:, None].expand_as(scores)
    top = torch.full((groups, scores.shape[1]), -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
    raised = torch.exp(scores - top[group])
    return raised / torch.zeros_like(top).index_add(0, group, raised)[group]
