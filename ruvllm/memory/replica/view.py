"""One base and what came after it: a delta searched row by row, and tombstones. Knows nothing of Postgres or of time.

One writer at a time (`apply`) and any number of readers. The lock is held for what takes microseconds: to write a
batch, to make the bits of a filter, to walk. The search itself runs outside of it, on bits and arrays that are not
changed any more, so a search sees the state of one moment.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory import hnsw
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, Neighbourhood, Node, NodeColumns, Vector, Walk
from ruvllm.memory.replica import texts
from ruvllm.memory.replica.base import Base, same_vector
from ruvllm.memory.replica.columns import Names
from ruvllm.memory.replica.graph import Allowed, inner_products
from ruvllm.memory.replica.options import ENOUGH, scan_is_cheaper, widened
from ruvllm.memory.replica.order import best_first
from ruvllm.memory.replica.source import EdgesRow, NodeRow
from ruvllm.memory.retrieval.words import Counted

_KEPT_SELECTIONS = 32  # filters whose bits are kept until the next change
_SPARSE = 0.5  # share of selected rows below which a graph search is checked for having met enough of them

_STAMPS = itertools.count(1)  # among all views of the process


@dataclass(frozen=True)
class Selection:
    """What one filter lets a search find, at one moment; never changed."""

    base: Allowed
    whole: bool  # every row of the graph
    fresh: NDArray[np.int64]  # (f,) rows of the delta
    vectors: Vector  # (m, d) the delta's
    owners: Names  # (m,) whose they are
    ids: Names  # (count,) by name


@dataclass(frozen=True)
class Held:
    """How much a view holds, counted when it changes."""

    nodes: int  # live
    delta: int  # that came or changed since the base, and rows that were replaced again
    tombstones: int  # rows of the graph that no search may find any more
    bytes: int  # vectors, graph and arrays; texts stay on disk, but for those that came after the base


class View:
    """A tenant's memory as of one snapshot after another."""

    def __init__(self, base: Base) -> None:
        self.base, self.position = base, base.position
        self.stamp = next(_STAMPS)  # of what a search can see: the same stamp, the same answers
        self._columns, self._adjacency = base.columns, base.adjacency
        self._lock = threading.Lock()
        n = base.graph.n
        self._stays = np.ones(n, dtype=bool)  # (n,) whether a name of the base still has its own row of the graph
        self._places: dict[int, int] = {}  # of the other names: rows of the delta, from n on
        self._fresh: Vector = np.empty((0, base.graph.dimension), dtype=np.float32)
        self._owners: Names = np.empty(0, dtype=np.int64)
        self._standing = np.zeros(0, dtype=bool)  # (m,) whether the row still is its owner's
        self._m = 0  # rows of the delta
        self._changed: dict[int, bytes] = {}  # records by name
        self._counted: dict[int, Counted] = {}
        self._selections: OrderedDict[Filter, Selection] = OrderedDict()
        self.held = self._measured()
        self.base_holes = self.held.tombstones  # rows of the graph whose nodes were gone when it was made

    # -- what came

    def apply(self, nodes: Sequence[NodeRow], gone: Iterable[int], edges: Sequence[EdgesRow]) -> None:
        """Write live nodes and packed rows as they are now, forget `gone` ids. The same again changes nothing."""
        records = [texts.pack(node.record) for node in nodes]
        with self._lock:
            self.stamp = next(_STAMPS)  # before and after: what is read in between is of a stamp that nobody asks for
            names = self._columns.named([node.id for node in nodes])
            self._columns.fill(names, nodes)
            for name, node, record in zip(names.tolist(), nodes, records, strict=True):
                self._changed[name] = record
                self._counted.pop(name, None)
                self._put(name, node)
            self._bury(list(gone))
            self._adjacency.fill(edges, self._columns)
            self._selections.clear()
            self.held = self._measured()
            self.stamp = next(_STAMPS)

    def _measured(self) -> Held:
        n = self.base.graph.n
        own = int(np.count_nonzero(self._columns.live(slice(n)) & self._stays))
        arrays = (self._fresh, self._owners, self._standing, self._stays)
        size = sum(array.nbytes for array in arrays) + self._columns.nbytes + self._adjacency.nbytes
        size += self.base.graph.nbytes + (self.base.words.nbytes if self.base.words else 0)
        return Held(
            nodes=int(np.count_nonzero(self._columns.live())),
            delta=max(self._m, len(self._changed)),
            tombstones=n - own,
            bytes=size + sum(map(len, self._changed.values())),
        )

    def _put(self, name: int, node: NodeRow) -> None:
        """Where the vector is another one now, the old row is left and a new one added."""
        place = self._place_of(name)
        if place is not None and same_vector(self._vector_at(place), node.vector):
            return
        if self._m == len(self._fresh):
            self._grow(max(64, self._m // 2))
        self._fresh[self._m], self._owners[self._m], self._standing[self._m] = node.vector, name, True
        if place is not None and place >= self.base.graph.n:
            self._standing[place - self.base.graph.n] = False
        self._move(name, self.base.graph.n + self._m)
        self._m += 1

    def _grow(self, rows: int) -> None:
        """New arrays: a search under way keeps the old ones, which are not written to where it reads."""
        self._fresh = np.concatenate([self._fresh, np.zeros((rows, self._fresh.shape[1]), dtype=np.float32)])
        self._owners = np.concatenate([self._owners, np.zeros(rows, dtype=np.int64)])
        self._standing = np.concatenate([self._standing, np.zeros(rows, dtype=bool)])

    def _bury(self, ids: Sequence[int]) -> None:
        names = self._columns.names(ids)
        names = names[names >= 0]
        self._columns.bury(names)
        self._adjacency.forget(names)
        for name in names.tolist():
            self._changed.pop(name, None)
            self._counted.pop(name, None)

    def _place_of(self, name: int) -> int | None:
        return self._places.get(name, name if name < self.base.graph.n else None)

    def _move(self, name: int, place: int) -> None:
        self._places[name] = place
        if name < self.base.graph.n:
            self._stays[name] = False

    def _vector_at(self, place: int) -> NDArray[np.float16]:
        n = self.base.graph.n
        vector: NDArray[np.float16] = (
            self.base.graph.halves[place] if place < n else self._fresh[place - n].astype(np.float16)
        )
        return vector

    # -- what is asked

    def search(
        self, vectors: Vector, k: int, wanted: Filter, ef: int | None = None, exact: bool = False, threads: int = 1
    ) -> list[Found]:
        """For each of `vectors` (q, d) the k nearest that pass `wanted`: k whenever there are k."""
        chosen = self._selection(wanted)
        vectors = np.ascontiguousarray(vectors, dtype=np.float16).astype(np.float32)  # as Postgres rounds a query
        similarities, rows = self._in_base(
            vectors, k, chosen, ef or hnsw.ef_search(k, self.base.graph.n), exact, threads
        )
        return [self._merged(*each, k, chosen) for each in zip(vectors, similarities, rows, strict=True)]

    def words(self, query: str, k: int, wanted: Filter) -> Found:
        """The k best by BM25 among those that share a word with `query`; the scores are the similarities."""
        assert self.base.words is not None
        scores = np.array(self.base.words.scores(query), dtype=np.float32)
        with self._lock:
            mask = self._columns.mask(wanted)
            changed = [name for name in self._changed if mask[name]]
            mask[list(self._changed)] = False  # the base's words of them may be others
            counted, ids = [self._words_of(name) for name in changed], self._columns.rows["ids"]
        found = np.flatnonzero(mask[: len(scores)] & (scores > 0))
        names = np.concatenate([found, np.array(changed, dtype=np.int64)])
        score = np.concatenate([scores[found], self.base.words.scores_of(query, counted)])
        return _best(ids[names[score > 0]], score[score > 0], k)

    def walk(self, seeds: Sequence[int] | Names, walk: Walk) -> Neighbourhood:
        with self._lock:
            return self._adjacency.walk(self._columns.names(seeds), walk, self._columns)

    def get(self, ids: Sequence[int] | Names) -> list[Node]:
        """Live nodes, in the order of `ids`; others are left out."""
        with self._lock:
            packed = self._packed(self._live_names(ids))
        return texts.unpack(packed)

    def columns(self, ids: Sequence[int] | Names) -> NodeColumns:
        """Of the nodes that `get` gives, in that order."""
        with self._lock:
            return self._columns.of(self._live_names(ids))

    def _live_names(self, ids: Sequence[int] | Names) -> Names:
        names = self._columns.names(ids)
        names = names[names >= 0]
        return names[self._columns.live(names)]

    def vectors(self, ids: Sequence[int] | Names) -> tuple[Vector, NDArray[np.bool_]]:
        """(n, d) vectors of live nodes, and which of `ids` (n,) they are; zeros for the others."""
        n, out = self.base.graph.n, np.zeros((len(ids), self.base.graph.dimension), dtype=np.float32)
        with self._lock:
            names = self._columns.names(ids)
            live = (names >= 0) & self._columns.live(names)
            own = live & (names < n)
            own[own] = self._stays[names[own]]
            for place in np.flatnonzero(live & ~own):
                at = self._place_of(int(names[place]))
                assert at is not None  # every live name has a vector
                out[place] = self._vector_at(at)
        out[own] = self.base.graph.halves[names[own]]
        return out, live

    # -- how it is found

    def _selection(self, wanted: Filter) -> Selection:
        with self._lock:
            if (kept := self._selections.get(wanted)) is not None:
                self._selections.move_to_end(wanted)
                return kept
            made = self._selections[wanted] = self._select(wanted)
            if len(self._selections) > _KEPT_SELECTIONS:
                self._selections.popitem(last=False)
            return made

    def _select(self, wanted: Filter) -> Selection:
        n, mask = self.base.graph.n, self._columns.mask(wanted)
        base = Allowed(mask[:n] & self._stays)
        owners = self._owners[: self._m]
        fresh = np.flatnonzero(mask[owners] & self._standing[: self._m])
        return Selection(base, base.count == n, fresh, self._fresh[: self._m], owners, self._columns.rows["ids"])

    def _in_base(
        self, vectors: Vector, k: int, chosen: Selection, ef: int, exact: bool, threads: int
    ) -> tuple[Any, Any]:
        """Similarities and rows of the graph (q, k), -1 where there are no more."""
        graph, allowed = self.base.graph, None if chosen.whole else chosen.base
        if not chosen.base.count:
            return np.zeros((len(vectors), 0), dtype=np.float32), np.zeros((len(vectors), 0), dtype=np.int64)
        k = min(k, chosen.base.count)
        if exact or (allowed and scan_is_cheaper(graph.n, allowed.count, ef)):
            return graph.scan(vectors, k, allowed, threads)
        share = chosen.base.count / graph.n
        asked = min(k if share > _SPARSE else max(k, ENOUGH * ef), chosen.base.count)
        similarities, rows = graph.search(vectors, asked, widened(ef, share) if allowed else ef, allowed, threads)
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            similarities, rows = similarities[:, :k], rows[:, :k]
            similarities[short], rows[short] = graph.scan(vectors[short], k, allowed, threads)
        return similarities[:, :k], rows[:, :k]

    def _merged(self, vector: Vector, similarities: Vector, rows: Names, k: int, chosen: Selection) -> Found:
        """With the delta's, nearest first."""
        found = rows >= 0
        ids, similarities = chosen.ids[rows[found]], similarities[found]
        if not len(chosen.fresh):
            return Found(ids, similarities)
        fresh = inner_products(chosen.vectors, vector)[chosen.fresh]
        ids = np.concatenate([ids, chosen.ids[chosen.owners[chosen.fresh]]])
        return _best(ids, np.concatenate([similarities, fresh]), k)

    def _packed(self, names: Names) -> list[bytes]:
        if not self._changed:
            return self.base.texts.packed(names)
        changed = [self._changed.get(name) for name in names.tolist()]
        rest = iter(self.base.texts.packed(names[[each is None for each in changed]]))
        return [next(rest) if each is None else each for each in changed]

    def _words_of(self, name: int) -> Counted:
        if name not in self._counted:
            self._counted[name] = Counted.of(texts.text_of(self._changed[name]))
        return self._counted[name]


def _best(ids: Names, scores: Vector, k: int) -> Found:
    order = best_first(scores, ids, k)
    return Found(ids[order], scores[order])
