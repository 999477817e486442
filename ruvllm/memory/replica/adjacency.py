"""Packed rows of edges as arrays, and the walk over them. Knows nothing of vectors or texts.

`Walk` in ruvllm/memory/records.py says what a walk is; ruvllm/memory/edges.py walks the same rows in SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.records import RELATIONS, EdgeArrays, Neighbourhood, Walk
from ruvllm.memory.replica.columns import Columns, Growing, Mask, Names
from ruvllm.memory.replica.order import best_first
from ruvllm.memory.replica.source import EdgesRow

_FLAT: dict[str, type[np.generic]] = {"far": np.int32, "weight": np.float32, "relation": np.int8}
_ROWS: dict[str, type[np.generic]] = {"start": np.int64, "length": np.int32}


@dataclass(frozen=True)
class Met:
    """Edges that a walk met, (e,) each; `near` (f,) are the nodes that were gone out from, the place-th by each."""

    near: Names
    place: Names
    at: Names  # where relation and weight stand
    far: Names

    def only(self, keep: Mask) -> Met:
        if keep.all():
            return self
        kept = np.flatnonzero(keep)
        return Met(self.near, self.place[kept], self.at[kept], self.far[kept])


_REACHED, _RETURNED = -1, -2  # marks; 0: not met


class Adjacency:
    """Rows by name: the base's mapped, later ones appended. Readers and the writer are kept apart by the caller."""

    def __init__(self, base: dict[str, NDArray[Any]], rows: Growing) -> None:
        self._base, self._size = base, len(base["far"])
        self._rows, self._later = rows, Growing(_FLAT)
        # by name, kept between walks so that a walk costs what it meets and not what there is
        self._mark = np.zeros(0, dtype=np.int32)

    @classmethod
    def open(cls, folder: Path) -> Adjacency:
        flat = Growing.mapped(folder, _FLAT)
        return cls({name: flat[name] for name in _FLAT}, Growing.mapped(folder, _ROWS))

    @classmethod
    def empty(cls) -> Adjacency:
        return cls({name: np.zeros(0, dtype) for name, dtype in _FLAT.items()}, Growing(_ROWS))

    def save(self, folder: Path, names: int) -> None:
        """The rows of an `empty` one that was filled, for `names` in all."""
        folder.mkdir()
        self._rows.extend(names - self._rows.count)
        for dtypes, growing in ((_FLAT, self._later), (_ROWS, self._rows)):
            for name in dtypes:
                np.save(folder / f"{name}.npy", growing[name], allow_pickle=False)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes + self._later.nbytes + sum(array.nbytes for array in self._base.values())

    def fill(self, rows: Iterable[EdgesRow], columns: Columns) -> None:
        """Write packed rows; ends that were never heard of are given names."""
        rows = list(rows)
        if not rows:
            return
        names = columns.named([row.id for row in rows])
        lengths = np.array([len(row.neighbours) for row in rows])
        place = self._later.extend(int(lengths.sum()))
        self._later["far"][place] = columns.named([far for row in rows for far in row.neighbours])
        self._later["weight"][place] = [weight for row in rows for weight in row.weights]
        self._later["relation"][place] = [relation for row in rows for relation in row.relations]
        self._rows.extend(columns.count - self._rows.count)
        self._rows["start"][names] = self._size + place.start + np.cumsum(lengths) - lengths
        self._rows["length"][names] = lengths

    def forget(self, names: Names) -> None:
        """They have no edges from here on."""
        self._rows["length"][names[names < self._rows.count]] = 0

    def walk(self, seeds: Names, walk: Walk, columns: Columns) -> Neighbourhood:
        """From the names `seeds` (n,), those never heard of (-1) among them."""
        if self._rows.count < columns.count:
            self._rows.extend(columns.count - self._rows.count)
        if len(self._mark) < columns.count:
            self._mark = np.zeros(columns.count + columns.count // 4, dtype=np.int32)
        way = _Way(walk.limit)
        try:
            self._go(way, np.unique(seeds[seeds >= 0]), walk, columns)
            return self._found(way, columns.rows["ids"])
        finally:
            self._mark[np.concatenate(way.reached)] = 0

    def _go(self, way: _Way, names: Names, walk: Walk, columns: Columns) -> None:
        ids, score = columns.rows["ids"], np.ones(len(names))
        seen = columns.seen_by(walk.reader, names)
        names, score = names[seen], score[seen]
        self._mark[names] = _REACHED
        for hop in range(walk.hops + 1):
            order = best_first(score, ids[names], max(way.room, walk.frontier))
            way.reach(names, names[order], score[order])
            if hop == walk.hops or not len(names):
                return
            edges = self._out_of(names[order[: walk.frontier]], walk)
            way.met.append(edges)
            if hop + 1 < walk.hops or way.room:
                edges = edges.only(columns.seen_by(walk.reader, edges.far) & (self._mark[edges.far] == 0))
                names, score = self._reached(edges, score[order])
            else:  # nothing that the last hop reaches is handed back, only edges that it met
                names, score = names[:0], score[:0]

    def _out_of(self, names: Names, walk: Walk) -> Met:
        """The `fan` heaviest edges of each node that have a wanted relation."""
        starts, lengths = self._rows["start"][names], self._rows["length"][names]
        if not walk.relations:
            lengths = np.minimum(lengths, walk.fan)
        met = self._gathered(names, starts, lengths)
        if not walk.relations or not len(met.far):
            return met
        codes = [RELATIONS.index(relation) + 1 for relation in walk.relations]
        wanted = np.isin(np.abs(self._at("relation", met.at)), codes)
        before: Names = np.cumsum(wanted) - wanted  # wanted edges before each, of all rows
        row_start: Names = np.repeat(before[np.minimum(np.cumsum(lengths) - lengths, max(len(before) - 1, 0))], lengths)
        return met.only(wanted & (before - row_start < walk.fan))

    def _gathered(self, names: Names, starts: NDArray[np.int64], lengths: NDArray[np.int32]) -> Met:
        """The first `lengths` (n,) edges of rows that begin at `starts` (n,)."""
        ends = np.cumsum(lengths)
        place = np.repeat(np.arange(len(names)), lengths)
        at = np.arange(len(place)) + (starts - (ends - lengths))[place]
        return Met(names, place, at, self._at("far", at).astype(np.int64))  # as indices, once

    def _at(self, name: str, at: Names) -> NDArray[Any]:
        """Values of one flat array, the base's part or what came later."""
        if not self._later.count:
            return self._base[name][at]
        out = np.empty(len(at), dtype=_FLAT[name])
        late = at >= self._size
        out[~late] = self._base[name][at[~late]]
        out[late] = self._later[name][at[late] - self._size]
        return out

    def _reached(self, edges: Met, score: NDArray[np.float64]) -> tuple[Names, NDArray[np.float64]]:
        """Nodes that `edges` lead to, each with its best score among them; marks them as reached."""
        ways = score[edges.place] * self._at("weight", edges.at)  # double precision
        order = np.argsort(ways)
        far, ways = edges.far[order], ways[order]
        turn = np.arange(1, len(far) + 1, dtype=np.int32)
        self._mark[far] = turn  # of a node that is met more than once, the last way stays: its best
        best = np.flatnonzero(self._mark[far] == turn)
        reached = far[best]
        self._mark[reached] = _REACHED
        return reached, ways[best]

    def _found(self, way: _Way, ids: Names) -> Neighbourhood:
        kept, score = np.concatenate(way.names), np.concatenate(way.scores)
        hop = np.repeat(np.arange(len(way.names), dtype=np.int8), [len(names) for names in way.names])
        self._mark[kept] = _RETURNED
        return Neighbourhood(ids[kept], hop, score.astype(np.float32), self._edges(way.met, ids))

    def _edges(self, met: list[Met], ids: Names) -> EdgeArrays:
        """Those among nodes that are handed back, each once: the heaviest first, then by src, dst and relation."""
        met = [each.only(self._both(each)) for each in met]
        if not met:
            return EdgeArrays.of(())
        near, far = np.concatenate([each.near[each.place] for each in met]), np.concatenate([each.far for each in met])
        at = np.concatenate([each.at for each in met])
        relation, weight = self._at("relation", at), self._at("weight", at)
        backwards = relation < 0
        src, dst, relation = ids[np.where(backwards, far, near)], ids[np.where(backwards, near, far)], np.abs(relation)
        order = np.lexsort((relation, dst, src, -weight))
        src, dst, relation, weight = src[order], dst[order], relation[order], weight[order]
        fresh = np.ones(len(src), dtype=bool)  # an edge that was met from both ends stands twice in a row
        fresh[1:] = (src[1:] != src[:-1]) | (dst[1:] != dst[:-1]) | (relation[1:] != relation[:-1])
        return EdgeArrays(src[fresh], dst[fresh], relation[fresh], weight[fresh])

    def _both(self, met: Met) -> Mask:
        """Whether both ends are handed back."""
        near, far = self._mark[met.near] == _RETURNED, self._mark[met.far] == _RETURNED
        both: Mask = far if near.all() else far & near[met.place]
        return both


class _Way:
    """What a walk has gathered so far, a list entry a hop."""

    def __init__(self, room: int) -> None:
        self.room = room  # for nodes to hand back
        self.reached: list[Names] = []
        self.names: list[Names] = []  # handed back
        self.scores: list[NDArray[np.float64]] = []
        self.met: list[Met] = []

    def reach(self, reached: Names, best: Names, scores: NDArray[np.float64]) -> None:
        """A hop's nodes, and as many of them as may be needed, the best first."""
        self.reached.append(reached)
        self.names.append(best[: self.room])
        self.scores.append(scores[: self.room])
        self.room -= len(self.names[-1])
