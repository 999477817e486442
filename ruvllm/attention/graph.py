"""A neighbourhood as arrays, small enough for attention and free of what would break it. Knows nothing of memory.

At most 256 nodes and 1,024 edges, whatever came in: self-loops and edges with a number that is not finite are dropped,
a hub keeps its heaviest edges, and of what is too much the heaviest stay, of equals the lower ids. The order of nodes
is the caller's; scores follow it (equivariance is tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.memory.records import RELATIONS

Array = NDArray[np.float32]
Rows = NDArray[np.int64]

MAX_NODES, MAX_EDGES = 256, 1024
MAX_DEGREE = 64  # edges of one node that are kept: a hub of degree 100,000 would be the whole graph
SELF = 0  # message codes: 0 from itself, then each relation forwards, then each backwards
N_CODES = 1 + 2 * len(RELATIONS)

# Of a message from one node to another; the last three depend on the question.
EDGE_FEATURES = ("weight", "confidence", "recency", "age", "cover", "gain", "joint")
NODE_FEATURES = (
    "cosine",  # of question and node
    "cosine_rank",  # 1 / rank by it, 0 where it was not found
    "words",  # BM25 over the best one's
    "words_rank",
    "fused",  # reciprocal-rank fusion of both, scaled to at most 2
    "cover",  # share of the question's rarity that the node's words hold
    "title_known",  # share of its title's words that the question has
    "title_cover",  # share of the question's rarity that its title holds
    "reach",  # best product of weights from a seed, that seed's fused score included
    "hop_1",
    "hop_2",
    "seed_neighbours",  # log1p(count) / 3
    "confidence",
    "recency",
)
N_NODE, N_EDGE = len(NODE_FEATURES), len(EDGE_FEATURES)


@dataclass(frozen=True, eq=False)
class Edges:
    """Undirected facts about pairs, by place in the nodes' order; `relation` is a place in RELATIONS + 1."""

    src: Rows  # (e,)
    dst: Rows  # (e,)
    relation: NDArray[np.int8]  # (e,)
    weight: Array  # (e,)
    confidence: Array  # (e,)
    age_days: Array  # (e,)

    def only(self, kept: NDArray[np.generic]) -> Edges:
        return Edges(
            self.src[kept],
            self.dst[kept],
            self.relation[kept],
            self.weight[kept],
            self.confidence[kept],
            self.age_days[kept],
        )

    @classmethod
    def none(cls) -> Edges:
        whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(whole, whole, np.zeros(0, np.int8), real, real, real)


@dataclass(frozen=True, eq=False)
class Subgraph:
    """What attention sees of one question: n nodes, m messages (each edge in both directions, one from itself)."""

    ids: Rows  # (n,)
    nodes: Array  # (n, N_NODE)
    product: Array  # (n, d) question vector times node vector, place by place
    prior: Array  # (n,) the order before attention, larger is better
    hop: Array  # (n,)
    time: Array  # (n,) log1p(age in days)
    source: Rows  # (m,) who says it
    target: Rows  # (m,) to whom; rising
    code: Rows  # (m,) which relation and direction
    messages: Array  # (m, N_EDGE)

    @property
    def n(self) -> int:
        return len(self.ids)

    def permuted(self, order: Sequence[int] | Rows) -> Subgraph:
        """The same with node order[i] at place i."""
        order = np.asarray(order, dtype=np.int64)
        place = np.argsort(order)
        source, target = place[self.source], place[self.target]
        sort = np.lexsort((self.code, source, target))
        return Subgraph(
            self.ids[order],
            self.nodes[order],
            self.product[order],
            self.prior[order],
            self.hop[order],
            self.time[order],
            source[sort],
            target[sort],
            self.code[sort],
            self.messages[sort],
        )

    def without(self, ids: Sequence[int]) -> Subgraph:
        """The same without these nodes and whatever they say or hear."""
        kept = ~np.isin(self.ids, np.asarray(ids, dtype=np.int64))
        place, heard = np.cumsum(kept) - 1, kept[self.source] & kept[self.target]
        return Subgraph(
            self.ids[kept], self.nodes[kept], self.product[kept], self.prior[kept], self.hop[kept], self.time[kept],
            place[self.source[heard]], place[self.target[heard]], self.code[heard], self.messages[heard],
        )  # fmt: skip


def sound(edges: Edges, n: int) -> Edges:
    """Edges with both ends among the `n` nodes, not to itself, with finite numbers in range, at most MAX_EDGES.

    Raises:
        InputError: arrays of different length.
    """
    arrays = (edges.src, edges.dst, edges.relation, edges.weight, edges.confidence, edges.age_days)
    if len({len(array) for array in arrays}) != 1:
        raise InputError(f"edges: got arrays of lengths {[len(array) for array in arrays]}, want one length")
    good = (edges.src != edges.dst) & np.isfinite(edges.weight) & np.isfinite(edges.confidence)
    good &= np.isfinite(edges.age_days) & (edges.relation >= 1) & (edges.relation <= len(RELATIONS))
    for side in (edges.src, edges.dst):
        good &= (side >= 0) & (side < n)
    kept = edges.only(np.flatnonzero(good))
    clipped = Edges(
        kept.src,
        kept.dst,
        kept.relation,
        np.clip(kept.weight, 0, 1),
        np.clip(kept.confidence, 0, 1),
        np.maximum(kept.age_days, 0),
    )
    return _fewer(clipped)


def _fewer(edges: Edges) -> Edges:
    """The heaviest MAX_DEGREE of a node (counted from its heaviest edge on), the heaviest MAX_EDGES in all."""
    order = np.lexsort((edges.relation, edges.dst, edges.src, -edges.weight))
    edges = edges.only(order)
    if len(order) > MAX_DEGREE:
        edges = edges.only(_rank_within(edges.src) < MAX_DEGREE)
        edges = edges.only(_rank_within(edges.dst) < MAX_DEGREE)
    return edges.only(np.arange(min(len(edges.src), MAX_EDGES)))


def _rank_within(groups: Rows) -> Rows:
    """(e,) how many of the same group stand before each."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - starts
    return ranks


@dataclass(frozen=True, eq=False)
class Messages:
    """Edges in both directions and one message of each node to itself, by target, source and code."""

    source: Rows
    target: Rows
    code: Rows
    edge: Rows  # (m,) which edge, -1 for the message to itself


def directed(edges: Edges, n: int) -> Messages:
    every, count = np.arange(n, dtype=np.int64), len(edges.src)
    relation = edges.relation.astype(np.int64)
    source = np.concatenate([edges.src, edges.dst, every])
    target = np.concatenate([edges.dst, edges.src, every])
    code = np.concatenate([relation, relation + len(RELATIONS), np.zeros(n, np.int64)])
    edge = np.concatenate([np.arange(count), np.arange(count), np.full(n, -1)])
    order = np.lexsort((code, source, target))
    return Messages(source[order], target[order], code[order], edge[order])
