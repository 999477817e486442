"""A trained attention model on numpy: scores of a neighbourhood, its summary and its entropy. Knows nothing of torch.

`shape` holds the formulas; a test holds this equal to `layers` within 1e-5. Messages stand by target, so that sums
over a node's messages are one `reduceat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.attention.graph import Array, Subgraph
from ruvllm.attention.shape import BALL, N_RELATION, NORM_EPSILON, SMALL, Shape


@dataclass(frozen=True, eq=False)
class Attended:
    """What attention made of n nodes."""

    scores: Array  # (n,) larger is better
    summary: Array  # (width,) mean of the last layer by the softmax of the scores; zeros without nodes
    entropy: float  # of that softmax over log n, in [0, 1]; 0 for fewer than two nodes
    share: Array  # (n,) that softmax

    @property
    def order(self) -> NDArray[np.int64]:
        """Places, best first; of equals the one that stands first."""
        return np.argsort(-self.scores, kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Message:
    """One round's inputs that do not depend on the layer."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    starts: NDArray[np.int64]  # (n,) first message to each node; every node has one from itself
    cosine: Array  # (n, 1, w / 2) of the rotation
    sine: Array
    hop: Array  # (m, 1) of the source
    code: NDArray[np.int64]
    edges: Array  # (m, N_EDGE) scaled


class AttentionRuntime:
    """Scores neighbourhoods. Never changed: safe among threads."""

    def __init__(self, shape: Shape, arrays: Mapping[str, Array]) -> None:
        self.shape, self._a = shape, {name: np.asarray(array, np.float32) for name, array in arrays.items()}

    def attend(self, graph: Subgraph) -> Attended:
        width = self.shape.width
        if not graph.n:
            none = np.zeros(0, np.float32)
            return Attended(none, np.zeros(width, np.float32), 0.0, none)
        a, nodes = self._a, (graph.nodes - self._a["node_mean"]) / self._a["node_scale"]
        hidden = self._encoded(graph, nodes)
        scores = _softplus(a["prior"]) * graph.prior + nodes @ a["skip"] + hidden @ a["head"]
        share = np.exp(scores - scores.max())
        share /= share.sum()
        return Attended(scores.astype(np.float32), share @ hidden, _entropy(share), share)

    def _encoded(self, graph: Subgraph, nodes: Array) -> Array:
        a = self._a
        hidden = nodes @ a["features.w"].T + a["features.b"]
        if self.shape.vectors:
            hidden += graph.product @ a["product.w"].T
        message = self._message(graph)
        for layer in range(self.shape.layers):
            hidden = self._layer(str(layer), hidden, message)
        encoded: Array = hidden
        return encoded

    def _message(self, graph: Subgraph) -> _Message:
        edges = (graph.messages - self._a["edge_mean"]) / self._a["edge_scale"]
        if not self.shape.recency:
            edges[:, 2:4] = 0.0
        hop, time = (np.array(turns, np.float32) for turns in self.shape.turns)
        angle = np.concatenate([graph.hop[:, None] * hop, graph.time[:, None] * time], axis=1)[:, None]
        starts = np.searchsorted(graph.target, np.arange(graph.n))
        return _Message(
            graph.source, graph.target, starts, np.cos(angle), np.sin(angle), graph.hop[graph.source][:, None],
            graph.code, edges,
        )  # fmt: skip

    def _layer(self, name: str, hidden: Array, message: _Message) -> Array:
        a, (n, width) = {key: self._a[f"{name}.{key}"] for key in _LAYER}, hidden.shape
        split = n, self.shape.heads, self.shape.head_width
        query = self._turned((hidden @ a["query.w"].T).reshape(split), message)
        key = self._turned((hidden @ a["key.w"].T).reshape(split), message)
        scores = self._scores(query[message.target], key[message.source], a["gate"], a["beta"])
        scores += self._by_edge(a["edge_score.w"], message) - _softplus(a["decay"]) * message.hop
        scores -= np.maximum.reduceat(scores, message.starts)[message.target]
        raised = np.exp(scores)  # (m, heads)
        values = (hidden @ a["value.w"].T)[message.source] + self._by_edge(a["edge_value.w"], message)
        weighted = values.reshape(-1, *split[1:]) * raised[..., None]
        summed: Array = np.add.reduceat(weighted, message.starts)
        summed /= np.add.reduceat(raised, message.starts)[..., None]
        mixed: Array = hidden + summed.reshape(n, width) @ a["out.w"].T
        return _layer_norm(mixed, a["norm.w"], a["norm.b"])

    def _by_edge(self, weights: Array, message: _Message) -> Array:
        """(m, k) = W [relation embedding, edge features]: the relation's part is a table of a row a code."""
        table = self._a["relations"] @ weights[:, :N_RELATION].T
        both: Array = table[message.code] + message.edges @ weights[:, N_RELATION:].T
        return both

    def _scores(self, query: Array, key: Array, gate: Array, beta: Array) -> Array:
        euclidean: Array = np.einsum("mhw,mhw->mh", query, key) * self.shape.head_width**-0.5
        if not self.shape.hyperbolic:
            return euclidean
        mix: Array = np.reciprocal(1 + np.exp(-gate))
        mixed: Array = (1 - mix) * euclidean - mix * np.exp(beta) * ball_distance(in_ball(query), in_ball(key))
        return mixed

    def _turned(self, x: Array, message: _Message) -> Array:
        if not self.shape.rope:
            return x
        even, odd, out = x[..., 0::2], x[..., 1::2], np.empty_like(x)
        out[..., 0::2] = even * message.cosine - odd * message.sine
        out[..., 1::2] = even * message.sine + odd * message.cosine
        return out


_LAYER = (
    "query.w", "key.w", "value.w", "out.w", "edge_value.w", "edge_score.w", "gate", "beta", "decay", "norm.w", "norm.b",
)  # fmt: skip


def in_ball(x: Array) -> Array:
    """As in `layers`: points (…, w) of the ball, of norm at most BALL."""
    norm = np.sqrt((x * x).sum(-1, keepdims=True) + np.float32(SMALL))
    inside: Array = x * (np.minimum(np.tanh(norm), np.float32(BALL)) / norm)
    return inside


def ball_distance(x: Array, y: Array) -> Array:
    """As in `layers`: (…,) Poincaré distances of points (…, w)."""
    apart = ((x - y) ** 2).sum(-1)
    z = 2 * apart / ((1 - (x * x).sum(-1)) * (1 - (y * y).sum(-1)))
    distance: Array = np.log1p(z + np.sqrt(z * (z + 2) + np.float32(SMALL)))
    return distance


def _softplus(x: Array) -> Array:
    return np.logaddexp(np.float32(0), x)


def _layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + np.float32(NORM_EPSILON)) * gain + bias
    return normed


def _entropy(share: Array) -> float:
    if len(share) < 2:
        return 0.0
    real = share[share > 0]
    return float(np.clip(-(real * np.log(real)).sum() / np.log(len(share)), 0.0, 1.0))
