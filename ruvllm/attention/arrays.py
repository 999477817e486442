"""A memory of arrays in process: for measurements, for training on files, for tests. Knows nothing of Postgres.

Exact search by one product, BM25 by memory's own index, and memory's walk over compressed rows of edges; a test holds
that both faces hand out the same neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.attention.source import EdgeFacts, NodeFacts
from ruvllm.errors import InputError
from ruvllm.memory.naming import title_of
from ruvllm.memory.records import RELATIONS, Edge, EdgeArrays, Found, Neighbourhood, Vector, Walk
from ruvllm.memory.retrieval.words import WordIndex, tokens

Rows = NDArray[np.int64]


class ArraySource:
    """Nodes 0 ... n - 1 with `texts` and unit `vectors` (n, d); edges are (src, dst, relation, weight)."""

    def __init__(
        self,
        texts: Sequence[str],
        vectors: Vector,
        edges: Sequence[Edge],
        folder: Path,
        age_days: NDArray[np.float32] | None = None,
    ) -> None:
        """`folder` takes the word index."""
        if vectors.ndim != 2 or len(texts) != len(vectors):
            raise InputError(f"array memory: got {len(texts)} texts and vectors of shape {vectors.shape}, want (n, d)")
        self._vectors = vectors
        WordIndex.build(texts, folder)
        self._words = WordIndex.open(folder)
        self._terms = [frozenset(tokens(text)) for text in texts]
        self._titles = [frozenset(tokens(title_of(text))) for text in texts]
        self._ages = np.zeros(len(texts), np.float32) if age_days is None else age_days.astype(np.float32)
        self._pack(EdgeArrays.of(edges))

    def _pack(self, edges: EdgeArrays) -> None:
        """Rows of neighbours, the heaviest first, of equals the edge written first."""
        count = len(edges.src)
        near, far = np.concatenate([edges.src, edges.dst]), np.concatenate([edges.dst, edges.src])
        code = np.concatenate([edges.relation, -edges.relation])
        weight, number = np.tile(edges.weight, 2), np.tile(np.arange(count), 2)
        order = np.lexsort((number, -weight, near))
        self._far, self._code, self._weight = far[order], code[order], weight[order]
        self._starts = np.searchsorted(near[order], np.arange(len(self._vectors) + 1))

    def nearest(self, vector: Vector, k: int) -> Found:
        return _best(self._vectors @ vector, k)

    def words(self, text: str, k: int) -> Found:
        found = _best(self._words.scores(text), k)
        kept = found.similarities > 0
        return Found(found.ids[kept], found.similarities[kept])

    def vectors(self, ids: Sequence[int]) -> Vector:
        rows: Vector = self._vectors[list(ids)]
        return rows

    def facts(self, ids: Sequence[int], vectors: Vector, edges: EdgeArrays) -> tuple[NodeFacts, EdgeFacts]:
        used = np.minimum(self._ages[edges.src], self._ages[edges.dst])
        return NodeFacts(
            vectors,
            [self._terms[id] for id in ids],
            [self._titles[id] for id in ids],
            np.ones(len(ids), np.float32),
            self._ages[list(ids)],
        ), EdgeFacts(np.ones(len(edges.src), np.float32), used)

    def walk(self, seeds: Sequence[int], how: Walk) -> Neighbourhood:
        """As `Walk` says, over the rows of this object."""
        codes = [RELATIONS.index(name) + 1 for name in how.relations]
        names = np.unique(np.asarray(seeds, dtype=np.int64))
        scores, room = np.ones(len(names)), how.limit
        reached = np.zeros(len(self._vectors), dtype=bool)
        reached[names] = True
        kept: list[tuple[Rows, NDArray[np.float64]]] = []
        met: list[tuple[Rows, Rows]] = []
        for hop in range(how.hops + 1):
            order = np.lexsort((names, -scores))
            names, scores = names[order], scores[order]
            kept.append((names[:room], scores[:room]))
            room -= len(kept[-1][0])
            if hop == how.hops:
                break
            near, at = self._out_of(names[: how.frontier], how.fan, codes)
            met.append((names[near], at))
            names, scores = self._farther(scores[near], at, reached)
            reached[names] = True
        return self._neighbourhood(kept, met)

    def _out_of(self, names: Rows, fan: int, codes: Sequence[int]) -> tuple[Rows, Rows]:
        """Which of `names` each edge leaves from, and where the edge stands: the `fan` first of each wanted row."""
        starts, ends = self._starts[names], self._starts[names + 1]
        lengths = ends - starts if codes else np.minimum(ends - starts, fan)
        near = np.repeat(np.arange(len(names)), lengths)
        at = np.arange(len(near)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        if codes:
            wanted = np.isin(np.abs(self._code[at]), codes)
            near, at = near[wanted], at[wanted]
            first = np.searchsorted(near, np.arange(len(names)))
            within = np.arange(len(near)) - first[near] < fan
            near, at = near[within], at[within]
        return near, at

    def _farther(
        self, scores: NDArray[np.float64], at: Rows, reached: NDArray[np.bool_]
    ) -> tuple[Rows, NDArray[np.float64]]:
        """Nodes not reached before, each with its best way."""
        far, ways = self._far[at], scores * self._weight[at].astype(np.float64)
        fresh = ~reached[far]
        far, ways = far[fresh], ways[fresh]
        order = np.lexsort((-ways, far))
        names, first = np.unique(far[order], return_index=True)
        return names, ways[order][first]

    def _neighbourhood(
        self, kept: list[tuple[Rows, NDArray[np.float64]]], met: list[tuple[Rows, Rows]]
    ) -> Neighbourhood:
        ids = np.concatenate([names for names, _ in kept])
        scores = np.concatenate([scores for _, scores in kept]).astype(np.float32)
        hops = np.repeat(np.arange(len(kept), dtype=np.int8), [len(names) for names, _ in kept])
        near = np.concatenate([np.zeros(0, np.int64), *(each for each, _ in met)])
        at = np.concatenate([np.zeros(0, np.int64), *(each for _, each in met)])
        here = np.zeros(len(self._vectors), dtype=bool)
        here[ids] = True
        inside = here[near] & here[self._far[at]]
        near, at = near[inside], at[inside]
        far, code, weight = self._far[at], self._code[at], self._weight[at]
        src, dst = np.where(code < 0, far, near), np.where(code < 0, near, far)
        relation = np.abs(code)
        order = np.lexsort((relation, dst, src, -weight))
        src, dst, relation, weight = src[order], dst[order], relation[order], weight[order]
        fresh = np.ones(len(src), dtype=bool)  # an edge that was met from both ends stands twice in a row
        fresh[1:] = (src[1:] != src[:-1]) | (dst[1:] != dst[:-1]) | (relation[1:] != relation[:-1])
        edges = EdgeArrays(src[fresh], dst[fresh], relation[fresh].astype(np.int8), weight[fresh].astype(np.float32))
        return Neighbourhood(ids, hops, scores, edges)


def _best(scores: NDArray[np.float32], k: int) -> Found:
    """The k best, of equals the lower number."""
    k = min(k, len(scores))
    part = np.argpartition(-scores, k - 1)[:k] if k else np.zeros(0, np.int64)
    order = part[np.lexsort((part, -scores[part]))]
    return Found(order.astype(np.int64), scores[order].astype(np.float32))
