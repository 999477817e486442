"""The base: a tenant's live nodes as files, made from Postgres under one snapshot, opened by mapping. Never changed.

Knows nothing of what came after it (view.py) or of when a new one is made (replica.py). A folder holds

    manifest.json   whose base this is, of when, and size and SHA-256 of every other file
    graph.faiss     vectors and HNSW (exact.npy beside it where the vectors in it are int8)
    columns/        what filters ask, by name
    adjacency/      packed rows of edges
    texts/          what `nodes` hands back
    words/          BM25, where it is wanted
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError
from ruvllm.memory import hnsw
from ruvllm.memory.changes import Position
from ruvllm.memory.replica import files, graph, source, texts
from ruvllm.memory.replica.adjacency import Adjacency
from ruvllm.memory.replica.columns import Columns, Names
from ruvllm.memory.replica.graph import Graph, Halves, Shape
from ruvllm.memory.replica.options import ReplicaOptions, storage
from ruvllm.memory.replica.pinned import Pinned
from ruvllm.memory.replica.source import EdgesRow, Head, NodeRow
from ruvllm.memory.replica.texts import Texts
from ruvllm.memory.retrieval.words import WordIndex
from ruvllm.progress import Progress, silent

LAYOUT = 1  # of the files; a base of another number is built anew
_CHUNK = 2_000
_VECTORS = "vectors.f16"  # while a base is made


@dataclass(frozen=True)
class Base:
    """An opened base. Its columns and adjacency are the view's to write to: they are copies or are appended to."""

    path: Path
    identity: dict[str, object]  # whose it is
    shape: Shape
    position: Position
    graph: Graph
    columns: Columns
    adjacency: Adjacency
    texts: Texts
    words: WordIndex | None
    pinned: Pinned  # unlocks when the base is let go


def folder_of(root: Path, tenant: str, head: Head, options: ReplicaOptions) -> Path:
    """Where the bases of a tenant, an encoder and a log lie; their names may hold what a path may not.

    With words and without lie apart: two processes that differ in it would set each other's aside.
    """
    parts = (tenant, f"{head.encoder}\n{head.dimension}", f"{head.log}\n{options.words}")
    return root.joinpath(*(hashlib.sha256(part.encode()).hexdigest()[:16] for part in parts))


def latest(folder: Path, tenant: str, head: Head, options: ReplicaOptions) -> Base | None:
    """The newest base in `folder` that is whole and this memory's; one that was harmed is set aside."""
    for path in files.published(folder):
        try:
            about = files.verified(path)
        except (ArtifactError, OSError):
            files.set_aside(path)
            continue
        try:
            return _opened(path, about, tenant, head, options)
        except ArtifactError:  # as it was published, and of no use any more; it holds texts
            files.remove(path)
    return None


def open_base(path: Path, tenant: str, head: Head, options: ReplicaOptions) -> Base:
    """
    Raises:
        ArtifactError: a byte differs from what was written, or the base is another memory's, or of another time.
    """
    return _opened(path, files.verified(path), tenant, head, options)


def _opened(path: Path, about: dict[str, object], tenant: str, head: Head, options: ReplicaOptions) -> Base:
    _same({**_identity(tenant, head), "words": options.words}, about, str(path))
    _reachable(Position.of(str(about["position"])), head, str(path))
    shape = about["shape"]
    assert isinstance(shape, dict)
    return Base(
        path=path,
        identity=_identity(tenant, head),
        shape=Shape(**shape),
        position=Position.of(str(about["position"])),
        graph=Graph.open(path),
        columns=Columns.open(path / "columns"),
        adjacency=Adjacency.open(path / "adjacency"),
        texts=Texts(path / "texts"),
        words=WordIndex.open(path / "words") if about["words"] else None,
        pinned=Pinned([path / name for name in (graph.FILE, graph.EXACT) if options.lock and (path / name).exists()]),
    )


def check_grown(base: Base, position: Position, head: Head) -> None:
    """That the log of `head` leads from `position` to now.

    Raises:
        ArtifactError: it does not: another database answers, it was restored, or the log was pruned.
    """
    _same(_identity(str(base.identity["tenant"]), head), base.identity, "the base")
    _reachable(position, head, "the base")


def _same(wanted: dict[str, object], got: dict[str, object], what: str) -> None:
    for name, value in wanted.items():
        if got.get(name) != value:
            raise ArtifactError(f"{what}: its {name} is {got.get(name)!r}, want {value!r}")


def _reachable(position: Position, head: Head, what: str) -> None:
    if position.xmin > head.position.xmax:
        raise ArtifactError(f"{what}: is of transaction {position.xmin}, the server is at {head.position.xmax}")
    if position.xmin < head.whole_from:
        raise ArtifactError(f"{what}: is of transaction {position.xmin}, the log begins at {head.whole_from}")


def _identity(tenant: str, head: Head) -> dict[str, object]:
    return {
        "layout": LAYOUT,
        "tenant": tenant,
        "encoder": head.encoder,
        "dimension": head.dimension,
        "log": head.log,
        "system": head.system,
        "timeline": head.timeline,
    }


def build(
    database: Database, folder: Path, options: ReplicaOptions, old: Base | None = None, progress: Progress = silent
) -> Path:
    """Read everything under one snapshot and publish a base of it in `folder`; call it with the builder's lock held.

    With `old`, the vectors that it has already are not linked again; where their nodes are gone, they stay as holes.
    """
    with files.staging(folder) as staged:
        old = old if old is not None and _reusable(old, options) else None
        with source.snapshot(database) as connection:
            head = source.head(connection)
            making = _Making(staged, head.dimension, old)
            making.read_nodes(source.nodes(connection), progress)
            making.read_edges(source.edges(connection))
        shape = making.write_graph(options, progress)
        if options.words:
            WordIndex.build(Texts(staged / "texts"), staged / "words")
        about = {
            **_identity(database.tenant, head),
            "words": options.words,
            "position": str(head.position),
            "nodes": making.live,
            "rows": making.rows,
            "shape": vars(shape),
            "made with": {name: version(name) for name in ("faiss-cpu", "numpy", "msgpack", "bm25s")},
        }
        path = files.publish(staged, about)
    files.tidy(folder, keep=path)
    return path


class _Making:
    """A base in its staging folder, on the way."""

    def __init__(self, folder: Path, dimension: int, old: Base | None) -> None:
        self._folder, self._dimension, self._old = folder, dimension, old
        self.rows = old.graph.n if old else 0  # of the graph
        self.live = 0
        self._columns, self._adjacency = Columns(), Adjacency.empty()

    def read_nodes(self, nodes: Iterator[NodeRow], progress: Progress) -> None:
        with texts.Writer(self._folder / "texts") as records, (self._folder / _VECTORS).open("wb") as vectors:
            while chunk := list(islice(nodes, _CHUNK)):
                names = self._names(chunk, vectors)
                self._columns.place(names, [node.id for node in chunk])
                self._columns.fill(names, chunk)
                for name, node in zip(names.tolist(), chunk, strict=True):
                    records.add(name, texts.pack(node.record))
                self.live += len(chunk)
                progress(self.live, 0, "read")
            records.finish(self.rows)
        self._columns.rows.extend(max(0, self.rows - self._columns.count))  # the last rows of an old base may be holes
        self._columns.settle()

    def read_edges(self, rows: Iterator[EdgesRow]) -> None:
        """Of live nodes only."""
        while chunk := list(islice(rows, _CHUNK)):
            names = self._columns.names([row.id for row in chunk])
            here = (names >= 0) & (names < self.rows)
            self._adjacency.fill([row for row, is_here in zip(chunk, here, strict=True) if is_here], self._columns)
        self._adjacency.save(self._folder / "adjacency", self._columns.count)
        self._columns.save(self._folder / "columns")

    def write_graph(self, options: ReplicaOptions, progress: Progress) -> Shape:
        path = self._folder / _VECTORS
        new = np.fromfile(path, dtype=np.float16).reshape(-1, self._dimension)
        path.unlink()
        if self._old is None:
            shape = _shape(self.rows, options)
            graph.write(self._folder, new, shape, options.build_threads, progress)
        else:
            shape, old = self._old.shape, self._old.graph
            graph.write(self._folder, np.concatenate([old.halves, new]), shape, options.build_threads, progress, old)
        return shape

    def _names(self, nodes: Sequence[NodeRow], vectors: BinaryIO) -> Names:
        """(n,) the row of each node: the old base's where it has this vector, else the next."""
        names = self._old_names(nodes)
        new = names < 0
        names[new] = np.arange(self.rows, self.rows + int(new.sum()))
        for node in (node for node, is_new in zip(nodes, new, strict=True) if is_new):
            vectors.write(node.vector.tobytes())
        self.rows += int(new.sum())
        return names

    def _old_names(self, nodes: Sequence[NodeRow]) -> Names:
        if self._old is None:
            return np.full(len(nodes), -1, dtype=np.int64)
        old = self._old
        names = old.columns.names([node.id for node in nodes])
        names[names >= old.graph.n] = -1
        same = np.array([name >= 0 and same_vector(old.graph.halves[name], node.vector)
                         for name, node in zip(names.tolist(), nodes, strict=True)])  # fmt: skip
        names[~same] = -1
        return names


def same_vector(one: Halves, other: Halves) -> bool:
    return bool(np.array_equal(one, other))


def _reusable(old: Base, options: ReplicaOptions) -> bool:
    """Whether a graph of that many rows would be built alike today, in another band of parameters for one."""
    return old.shape == _shape(old.graph.n, options)


def _shape(rows: int, options: ReplicaOptions) -> Shape:
    band = hnsw.band(rows)
    return graph.shape_for(storage(rows), rows, band.m, band.ef_construction, options.seed)
