"""Where a neighbourhood is read from: what attention asks of memory, and memory's answer. Knows nothing of attention.

`Source` is the seam: `MemorySource` reads a Memory (replica or Postgres), `ruvllm.attention.arrays` holds everything in
process, for measurements and training on files.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.filters import Filter
from ruvllm.memory.naming import title_of
from ruvllm.memory.records import EdgeArrays, Found, Neighbourhood, Node, Vector, Walk
from ruvllm.memory.retrieval.words import tokens
from ruvllm.memory.store import Memory

_KEPT = 20_000  # nodes whose words are remembered

_EDGES = """
    SELECT src, dst, memory.relation_code(rel), confidence,
        (extract(epoch FROM %(now)s - last_used_at) / 86400)::float4
    FROM memory.edges WHERE src = ANY(%(ids)s) AND dst = ANY(%(ids)s)
"""
_AGES = """
    SELECT id, version, confidence, (extract(epoch FROM %(now)s - created_at) / 86400)::float4
    FROM memory.nodes WHERE id = ANY(%(ids)s)
"""


@dataclass(frozen=True, eq=False)
class NodeFacts:
    """What features need of nodes, in the order asked for."""

    vectors: Vector  # (n, d)
    terms: Sequence[frozenset[str]]
    titles: Sequence[frozenset[str]]
    confidence: NDArray[np.float32]  # (n,)
    age_days: NDArray[np.float32]  # (n,)


@dataclass(frozen=True, eq=False)
class EdgeFacts:
    """(e,) each, in the order of the edges asked for."""

    confidence: NDArray[np.float32]
    age_days: NDArray[np.float32]


class Source(Protocol):
    """What attention asks of a memory."""

    def nearest(self, vector: Vector, k: int) -> Found: ...

    def words(self, text: str, k: int) -> Found: ...

    def walk(self, seeds: Sequence[int], how: Walk) -> Neighbourhood: ...

    def vectors(self, ids: Sequence[int]) -> Vector: ...

    def facts(self, ids: Sequence[int], vectors: Vector, edges: EdgeArrays) -> tuple[NodeFacts, EdgeFacts]: ...


@dataclass
class TermCache:
    """Words of a text and of its title, by a key that changes with the text. Safe among threads, bounded."""

    limit: int = _KEPT
    _kept: OrderedDict[object, tuple[frozenset[str], frozenset[str]]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, key: object) -> tuple[frozenset[str], frozenset[str]] | None:
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
            return found

    def learn(self, key: object, text: str, context: str = "") -> tuple[frozenset[str], frozenset[str]]:
        made = frozenset(tokens(text)), frozenset(tokens(title_of(text, context)))
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return made


class MemorySource:
    """Reads one tenant's memory. `reader` sees untrusted nodes of their own; `token` is a write that must be seen."""

    def __init__(self, memory: Memory, reader: str = "", token: int = 0, terms: TermCache | None = None) -> None:
        self.memory, self.reader, self.token = memory, reader, token
        self._terms = terms or TermCache()

    def nearest(self, vector: Vector, k: int) -> Found:
        return self.memory.find(vector, k, Filter(reader=self.reader), self.token)

    def words(self, text: str, k: int) -> Found:
        return self.memory.find_words(text, k, Filter(reader=self.reader), self.token)

    def walk(self, seeds: Sequence[int], how: Walk) -> Neighbourhood:
        return self.memory.walk(seeds, how, self.token)

    def vectors(self, ids: Sequence[int]) -> Vector:
        return self.memory.vectors(ids)

    def facts(self, ids: Sequence[int], vectors: Vector, edges: EdgeArrays) -> tuple[NodeFacts, EdgeFacts]:
        """Of nodes and of the edges among them, in one round trip; texts are read only of nodes whose words are not
        remembered. A node that went meanwhile is without confidence, an edge is full of doubt and old besides."""
        nodes, met = self._rows(ids)
        found = self._terms_of([(id, nodes[id][0]) for id in ids])
        keys = zip(edges.src.tolist(), edges.dst.tolist(), edges.relation.tolist(), strict=True)
        pairs = np.array([met.get(key, (0.0, 1e4)) for key in keys], dtype=np.float32).reshape(-1, 2)
        return NodeFacts(
            vectors,
            [terms for terms, _ in found],
            [titles for _, titles in found],
            np.array([nodes[id][1] for id in ids], dtype=np.float32),
            np.array([nodes[id][2] for id in ids], dtype=np.float32),
        ), EdgeFacts(pairs[:, 0], pairs[:, 1])

    def _terms_of(self, keys: Sequence[tuple[int, int]]) -> list[tuple[frozenset[str], frozenset[str]]]:
        found = [self._terms.known(key) for key in keys]
        missing = [key for key, each in zip(keys, found, strict=True) if each is None]
        if not missing:
            return [each for each in found if each is not None]
        nodes = {node.id: node for node in self.memory.get([id for id, _ in missing])}
        learnt = {key: self._terms.learn(key, *_texts_of(nodes.get(key[0]))) for key in missing}
        return [learnt[key] if each is None else each for key, each in zip(keys, found, strict=True)]

    def _rows(
        self, ids: Sequence[int]
    ) -> tuple[dict[int, tuple[int, float, float]], dict[tuple[int, int, int], tuple[float, float]]]:
        """Version, confidence and age in days by node; confidence and age by source, target and relation."""
        given = {"ids": list(ids), "now": datetime.now(UTC)}
        with self.memory.database.transaction() as connection:
            nodes, edges = connection.cursor(binary=True), connection.cursor(binary=True)
            with connection.pipeline():
                nodes.execute(_AGES, given)
                edges.execute(_EDGES, given)
            found = {id: (version, confidence, days) for id, version, confidence, days in nodes.fetchall()}
            met = {(src, dst, code): (confidence, days) for src, dst, code, confidence, days in edges.fetchall()}
        return {id: found.get(id, (0, 0.0, 0.0)) for id in ids}, met


def _texts_of(node: Node | None) -> tuple[str, str]:
    if node is None:
        return "", ""
    context = node.metadata.get("context", "")
    return node.text, context if isinstance(context, str) else ""
