"""The HNSW graph and its vectors: built, written, mapped, searched. Knows nothing of nodes, filters or Postgres.

faiss, and not usearch. Over half precision they are equal in recall and size, both map their file, and faiss is
somewhat faster to build and to ask. It was chosen for what usearch's Python binding has not: it takes a bitmap of the
rows that are allowed into the search itself, and compares allowed rows one by one over the same stored vectors, so that
exact search and the narrow filter need no second copy. tests/benchmarks/memory measures both beside each other.

Inner product of unit vectors throughout. Threads: a search of one vector starts none. faiss's number of OpenMP threads
belongs to the calling thread, and is set where a batch or a build needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import ArtifactError
from ruvllm.memory.records import Vector
from ruvllm.progress import Progress

Rows = NDArray[np.int64]
Halves = NDArray[np.float16]

FILE, EXACT = "graph.faiss", "exact.npy"  # EXACT: the vectors themselves, where the graph's are coarser
_FEWEST = 256  # to learn the ranges of int8 from; below, half precision
_ADD = 1_000  # rows between two reports of progress


class Allowed:
    """Rows that a search may find, as bits: of row 0 the lowest of the first byte. Never changed."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.bits = np.packbits(mask, bitorder="little")  # (ceil(n / 8),)
        self.count = int(np.count_nonzero(mask))
        self.selector = _faiss().IDSelectorBitmap(self.bits)  # faiss keeps pointers: bits and selector live as long


class Graph:
    """A mapped graph of `n` vectors. Safe among threads: it is never changed."""

    def __init__(self, index: Any, exact: Halves | None) -> None:
        faiss = _faiss()
        self._faiss, self._index, self._storage = faiss, index, faiss.downcast_index(index.storage)
        self.n, self.dimension = int(index.ntotal), int(index.d)
        self.halves = exact if exact is not None else self._stored()  # (n, d)
        self._coarse = exact is not None
        self.nbytes = int(self._storage.code_size) * self.n + _links_bytes(index.hnsw)

    @classmethod
    def open(cls, folder: Path) -> Graph:
        """
        Raises:
            ArtifactError: faiss cannot read the file. Its hash is to be verified before: faiss trusts what it reads.
        """
        faiss = _faiss()
        try:
            index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ArtifactError(f"{folder / FILE}: {str(error).splitlines()[0]}") from error
        exact = np.load(folder / EXACT, mmap_mode="r", allow_pickle=False) if (folder / EXACT).exists() else None
        return cls(index, exact)

    def search(self, vectors: Vector, k: int, ef: int, allowed: Allowed | None, threads: int = 1) -> tuple[Any, Rows]:
        """Similarities (q, k) float32 and rows (q, k), nearest first; row -1 where fewer were met."""
        parameters = self._faiss.SearchParametersHNSW(efSearch=max(ef, k), **_selected(allowed))
        if len(vectors) == 1:  # faiss starts no thread
            similarities, rows = self._index.search(vectors, k, params=parameters)
        else:
            with omp_threads(threads):
                similarities, rows = self._index.search(vectors, k, params=parameters)
        return self._again(vectors, rows) if self._coarse else (similarities, rows)

    def scan(self, vectors: Vector, k: int, allowed: Allowed | None, threads: int = 1) -> tuple[Any, Rows]:
        """As `search`, but every allowed row is compared: exact."""
        if self._coarse:
            return self._scan_halves(vectors, k, allowed)
        parameters = self._faiss.SearchParameters(**_selected(allowed))
        with omp_threads(threads):
            similarities, rows = self._storage.search(vectors, k, params=parameters)
        return similarities, rows

    def _stored(self) -> Halves:
        """The vectors inside the mapped index, without a copy."""
        size = self.n * self.dimension * 2
        if not size:
            return np.empty((0, self.dimension), dtype=np.float16)
        codes = self._faiss.rev_swig_ptr(self._storage.codes.data(), size)
        halves: Halves = codes.view(np.float16).reshape(self.n, self.dimension)
        return halves

    def _again(self, vectors: Vector, rows: Rows) -> tuple[Any, Rows]:
        """Exact similarities of what coarse vectors found, in their order."""
        out = np.full(rows.shape, -np.inf, dtype=np.float32)
        for i, found in enumerate(rows):
            here = found >= 0
            out[i, here] = self.halves[found[here]].astype(np.float32) @ vectors[i]
        order = np.argsort(-out, axis=1, kind="stable")
        return np.take_along_axis(out, order, 1), np.take_along_axis(rows, order, 1)

    def _scan_halves(self, vectors: Vector, k: int, allowed: Allowed | None) -> tuple[Any, Rows]:
        """By blocks over the exact vectors."""
        best = np.full((len(vectors), k), -np.inf, dtype=np.float32)
        rows = np.full((len(vectors), k), -1, dtype=np.int64)
        mask = None if allowed is None else np.unpackbits(allowed.bits, count=self.n, bitorder="little").astype(bool)
        for start in range(0, self.n, 50_000):
            names = np.arange(start, min(start + 50_000, self.n))
            names = names if mask is None else names[mask[names]]
            scores = vectors @ self.halves[names].astype(np.float32).T  # (q, block)
            scores, names = np.hstack([best, scores]), np.hstack([rows, np.broadcast_to(names, scores.shape)])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(names, order, 1)
        return best, rows


@dataclass(frozen=True)
class Shape:
    """How a graph is built."""

    kind: str  # fp16 | 8bit
    m: int
    ef_construction: int
    seed: int


def write(
    folder: Path, vectors: Halves, shape: Shape, threads: int, progress: Progress, old: Graph | None = None
) -> None:
    """Build the graph of `vectors` (n, d) into `folder`.

    With `old`, whose vectors are the first of `vectors` and whose shape is the same, only the others are linked:
    0.5 ms a vector instead of all of them again.
    """
    faiss = _faiss()
    index = _copy(old) if old is not None else _empty(vectors, shape)
    index.hnsw.efConstruction = shape.ef_construction
    with omp_threads(threads):
        for start in range(index.ntotal, len(vectors), _ADD):
            index.add(vectors[start : start + _ADD].astype(np.float32))
            progress(index.ntotal, len(vectors), "linked")
    faiss.write_index(index, str(folder / FILE))
    if shape.kind == "8bit":
        np.save(folder / EXACT, vectors, allow_pickle=False)


def shape_for(kind: str, vectors: int, m: int, ef_construction: int, seed: int) -> Shape:
    return Shape(kind if vectors >= _FEWEST else "fp16", m, ef_construction, seed)


def inner_products(rows: Vector, vector: Vector) -> Vector:
    """(m,) inner products of contiguous float32 rows (m, d) with `vector` (d,), without a thread."""
    faiss = _faiss()
    out = np.empty(len(rows), dtype=np.float32)
    if len(rows):
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(out), faiss.swig_ptr(vector), faiss.swig_ptr(rows), rows.shape[1], len(rows)
        )
    return out


@contextmanager
def omp_threads(threads: int) -> Iterator[None]:
    """Within the block, this thread's faiss calls use `threads`; no other thread's do."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    if before == threads:
        yield
        return
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _selected(allowed: Allowed | None) -> dict[str, Any]:
    return {} if allowed is None else {"sel": allowed.selector}


def _faiss() -> Any:
    """0.1 s, so only where there is a replica; Any, because its stubs leave out half of what it has."""
    import faiss

    return faiss


def _empty(vectors: Halves, shape: Shape) -> Any:
    faiss = _faiss()
    kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "8bit": faiss.ScalarQuantizer.QT_8bit}
    index = faiss.IndexHNSWSQ(vectors.shape[1], kinds[shape.kind], shape.m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.rng = faiss.RandomGenerator(shape.seed)
    if shape.kind == "8bit":
        index.train(np.asarray(vectors[:: max(1, len(vectors) // 50_000)], dtype=np.float32))
    index.is_trained = True
    return index


def _copy(old: Graph) -> Any:
    """In memory, so that it can grow: a mapped index cannot."""
    faiss = _faiss()
    return faiss.deserialize_index(faiss.serialize_index(old._index))


def _links_bytes(hnsw: Any) -> int:
    """Neighbours (int32), offsets (int64) and levels (int32), which are read into memory."""
    return int(hnsw.neighbors.size()) * 4 + int(hnsw.offsets.size()) * 8 + int(hnsw.levels.size()) * 4
