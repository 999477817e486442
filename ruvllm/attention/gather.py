"""A question's neighbourhood, from seeds to features. Knows nothing of weights, of torch or of where memory lies.

Seeds are the best by meaning and by words together; a walk over edges adds what they lead to; of that, the nodes that
are reached strongly or lie near the question stay. Every feature is computed here, so that training, measurements and
serving see the same numbers. Rarity is that within the neighbourhood: a word that few of its nodes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.attention.graph import (
    EDGE_FEATURES,
    MAX_NODES,
    N_EDGE,
    NODE_FEATURES,
    Array,
    Edges,
    Messages,
    Rows,
    Subgraph,
    directed,
    sound,
)
from ruvllm.attention.source import NodeFacts, Source
from ruvllm.errors import InputError
from ruvllm.memory.records import Found, Neighbourhood, Vector, Walk
from ruvllm.memory.retrieval.hybrid import RRF, fused
from ruvllm.memory.retrieval.words import tokens

RECENT_DAYS = 30.0  # of recency = exp(-age / 30 days)
_MOST_TERMS = 64  # words of a question that are looked at
_HALF = np.float32(0.5)


@dataclass(frozen=True)
class Reach:
    """How far is looked. `limit` bounds the walk, of which at most MAX_NODES are kept."""

    depth: int = 100  # of each ranking
    seeds: int = 48
    hops: int = 2
    fan: int = 24
    frontier: int = 64
    limit: int = 1024
    edges: bool = True  # False: seeds alone, for comparison

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MAX_NODES or self.depth < 1:
            raise InputError(f"reach: got {self.seeds} seeds and depth {self.depth}, want 1 to {MAX_NODES} seeds")

    def walk(self, reader: str) -> Walk:
        return Walk(self.hops, self.fan, self.frontier, max(self.limit, self.seeds), reader=reader)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Both rankings as look-ups by id: score and 1 / rank."""

    near: dict[int, tuple[float, float]]
    words: dict[int, tuple[float, float]]
    fused: dict[int, float]

    @classmethod
    def of(cls, near: Found, words: Found, both: Found) -> _Ranked:
        scale = RRF + 1.0  # first in one ranking is 1, in both 2
        scores = {id: score * scale for id, score in zip(both.ids.tolist(), both.similarities.tolist(), strict=True)}
        return cls(_ranks(near), _ranks(words), scores)


def _ranks(found: Found) -> dict[int, tuple[float, float]]:
    pairs = zip(found.ids.tolist(), found.similarities.tolist(), strict=True)
    return {id: (score, 1.0 / rank) for rank, (id, score) in enumerate(pairs, start=1)}


def gather(source: Source, question: str, vector: Vector, how: Reach | None = None, reader: str = "") -> Subgraph:
    """The subgraph of `question`, whose unit vector is `vector` (d,). An empty memory gives one of no nodes.

    Nodes stand by their order before attention: the fused score of seeds, half the strongest way to the others.

    Raises:
        InputError: `vector` is not a vector, or not finite.
    """
    how = how or Reach()
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise InputError(f"question vector: got shape {vector.shape}, want finite numbers (d,)")
    near, words = source.nearest(vector, how.depth), source.words(question, how.depth)
    ranked = _Ranked.of(near, words, fused([near, words], 2 * how.depth))
    seeds = list(ranked.fused)[: how.seeds]
    around = source.walk(seeds, how.walk(reader)) if seeds and how.edges else _alone(seeds)
    return _subgraph(source, question, vector, ranked, around)


def _alone(seeds: Sequence[int]) -> Neighbourhood:
    count = len(seeds)
    return Neighbourhood(np.array(seeds, np.int64), np.zeros(count, np.int8), np.ones(count, np.float32), ())


def _subgraph(source: Source, question: str, vector: Vector, ranked: _Ranked, around: Neighbourhood) -> Subgraph:
    vectors = np.asarray(source.vectors(around.ids.tolist()), dtype=np.float32).reshape(len(around.ids), len(vector))
    met, place = around.edge_arrays, _places(around.ids)
    src, dst = place(met.src), place(met.dst)
    cosines = _finite(vectors @ vector)
    fused_score = _spread(around.ids, ranked.fused)
    reach = _reach(fused_score * (around.hops == 0), src, dst, met.weight, int(around.hops.max(initial=0)))
    prior = np.maximum(fused_score, _HALF * reach)
    kept = _kept(around, cosines, reach, prior)
    facts, edge_facts = source.facts(around.ids[kept].tolist(), vectors[kept], met)
    now = np.full(len(around.ids), -1, dtype=np.int64)
    now[kept] = np.arange(len(kept))
    edges = sound(
        Edges(now[src], now[dst], met.relation, met.weight, edge_facts.confidence, edge_facts.age_days), len(kept)
    )
    cover = _Cover.of(question, facts)
    nodes = _node_features(around, kept, ranked, cosines[kept], reach[kept], facts, cover, edges)
    messages = directed(edges, len(kept))
    return Subgraph(
        ids=around.ids[kept],
        nodes=nodes,
        product=_finite(facts.vectors * vector),
        prior=prior[kept],
        hop=around.hops[kept].astype(np.float32),
        time=np.log1p(np.maximum(np.nan_to_num(facts.age_days), 0)),
        source=messages.source,
        target=messages.target,
        code=messages.code,
        messages=_edge_features(messages, edges, cover, cosines[kept], facts),
    )


def _places(ids: Rows) -> Callable[[Rows], Rows]:
    """A look-up from ids to places in `ids`."""
    order = np.argsort(ids)
    ordered = ids[order]

    def place(wanted: Rows) -> Rows:
        return order[np.searchsorted(ordered, wanted)]

    return place


def _reach(start: Array, src: Rows, dst: Rows, weight: Array, hops: int) -> Array:
    """(n,) best product of weights on a way from a seed, times the seed's own score; of seeds by others too."""
    weight = np.clip(np.nan_to_num(weight), 0, 1)
    reached, going = np.zeros_like(start), start
    for _ in range(hops):
        arrived = np.zeros_like(start)
        np.maximum.at(arrived, dst, going[src] * weight)
        np.maximum.at(arrived, src, going[dst] * weight)
        reached, going = np.maximum(reached, arrived), arrived
    return reached


def _kept(around: Neighbourhood, cosines: Array, reach: Array, prior: Array) -> Rows:
    """Places of the seeds and of the most promising others, at most MAX_NODES, by prior, then id."""
    others = np.where(around.hops > 0, cosines + reach, np.inf)
    chosen = np.lexsort((around.ids, -others))[:MAX_NODES]
    return chosen[np.lexsort((around.ids[chosen], -prior[chosen]))]


@dataclass(frozen=True, eq=False)
class _Cover:
    """Which words of the question a node and its title hold, and how rare each is among these nodes."""

    held: NDArray[np.bool_]  # (n, t)
    titled: NDArray[np.bool_]  # (n, t)
    rarity: Array  # (t,) sums to 1, or is empty
    title_known: Array  # (n,) share of the title's words that the question has

    @classmethod
    def of(cls, question: str, facts: NodeFacts) -> _Cover:
        asked = list(dict.fromkeys(tokens(question)))[:_MOST_TERMS]
        shape = len(facts.terms), len(asked)
        held, titled = _held(asked, facts.terms), _held(asked, facts.titles)
        rarity = np.log1p(shape[0] / (1.0 + held.sum(axis=0)))
        sizes = np.array([max(1, len(each)) for each in facts.titles], dtype=np.float32)
        whole = max(float(rarity.sum()), 1e-9)
        return cls(held, titled, (rarity / whole).astype(np.float32), titled.sum(axis=1) / sizes)

    def share(self, which: NDArray[np.bool_]) -> Array:
        # not `@`: BLAS' small kernels read lanes past the end, and now and then flag what lies there as invalid
        shares: Array = np.einsum("nt,t->n", which.astype(np.float32), self.rarity)
        return shares


def _held(asked: Sequence[str], terms: Sequence[frozenset[str]]) -> NDArray[np.bool_]:
    """(n, t) by intersections: most nodes hold few of the words."""
    column = {word: place for place, word in enumerate(asked)}
    words, out = frozenset(asked), np.zeros(len(terms) * len(asked), dtype=bool)
    width = len(asked)
    out[[row * width + column[word] for row, each in enumerate(terms) for word in words & each]] = True
    return out.reshape(len(terms), width)


def _spread(ids: Rows, values: Mapping[int, float]) -> Array:
    """(n,) the value of each id, 0 where there is none."""
    return np.array([values.get(id, 0.0) for id in ids.tolist()], dtype=np.float32)


def _finite(numbers: Array) -> Array:
    """As nan_to_num; a finite sum says at a tenth of its cost that there is nothing to mend."""
    whole: Array = numbers if np.isfinite(numbers.sum()) else np.nan_to_num(numbers)
    return whole


def _node_features(
    around: Neighbourhood, kept: Rows, ranked: _Ranked, cosines: Array, reach: Array, facts: NodeFacts,
    cover: _Cover, edges: Edges,
) -> Array:  # fmt: skip
    ids, hops = around.ids[kept], around.hops[kept]
    best = max((score for score, _ in ranked.words.values()), default=1.0)
    from_seeds = np.bincount(edges.dst, hops[edges.src] == 0, len(ids)) + np.bincount(
        edges.src, hops[edges.dst] == 0, len(ids)
    )
    columns = {
        "cosine": cosines,
        "cosine_rank": _spread(ids, {id: share for id, (_, share) in ranked.near.items()}),
        "words": _spread(ids, {id: score / best for id, (score, _) in ranked.words.items()}),
        "words_rank": _spread(ids, {id: share for id, (_, share) in ranked.words.items()}),
        "fused": _spread(ids, ranked.fused),
        "cover": cover.share(cover.held),
        "title_known": cover.title_known,
        "title_cover": cover.share(cover.titled),
        "reach": reach,
        "hop_1": hops == 1,
        "hop_2": hops >= 2,
        "seed_neighbours": np.log1p(from_seeds) / 3,
        "confidence": facts.confidence,
        "recency": np.exp(-np.maximum(facts.age_days, 0) / RECENT_DAYS),
    }
    assert tuple(columns) == NODE_FEATURES
    return _finite(np.stack([np.asarray(each, np.float32) for each in columns.values()], axis=1))


def _edge_features(messages: Messages, edges: Edges, cover: _Cover, cosines: Array, facts: NodeFacts) -> Array:
    """(m, N_EDGE). A message of a node to itself weighs 1 and is of now."""
    m, real = len(messages.edge), messages.edge >= 0
    at, source, target = messages.edge[real], messages.source, messages.target
    out = np.zeros((m, N_EDGE), dtype=np.float32)
    out[:, :3] = 1.0
    days = edges.age_days[at]
    out[real, 0], out[real, 1] = edges.weight[at], edges.confidence[at]
    out[real, 2], out[real, 3] = np.exp(-days / RECENT_DAYS), np.log1p(days) / 10
    together = cover.share(cover.held[source] | cover.held[target])
    out[:, 4] = together
    out[:, 5] = together - cover.share(cover.held[source])  # what the target adds to the source
    alike = _finite(np.einsum("ed,ed->e", facts.vectors[edges.src], facts.vectors[edges.dst]))[at]
    both = cosines[source[real]] + cosines[target[real]]
    out[:, 6] = cosines[target]
    out[real, 6] = both / np.sqrt(np.maximum(2 + 2 * alike, 0.1))  # cosine of the question and the pair's sum
    assert EDGE_FEATURES[4:] == ("cover", "gain", "joint")
    return _finite(out)
