"""The libraries that memory is measured beside, each behind one small face. Knows nothing of memory or of Postgres.

    hnswlib     HNSW over float32, inner product
    faiss       HNSW over float32; `faiss-half` over float16, `faiss-byte` over 8 bits: what a replica could map
    usearch     HNSW over float32; `usearch-half`, `usearch-byte` likewise
    ruvector    PyPI's ruvector 0.1: an HNSW in Rust (hnsw_rs behind ruvector_core), in memory only: it cannot be saved
                as a graph, so every run builds it anew; `ruvector-rabitq` is its other index, no graph but a scan of
                all rows in one bit a dimension with an exact second look: its time grows with n

An index that can be saved is kept in a folder beside a record of what building it cost, and opened from there.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from ruvllm.memory.hnsw import Band
from tests.benchmarks.memory.vectors import Corpus, Floats

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Cost:
    """What building an index took."""

    cpu_s: float
    wall_s: float
    threads: int
    size_bytes: int  # the saved file, or the growth of the process where nothing can be saved
    load: float  # load average when it was done


class Library(Protocol):
    """One index. `search` hands out row numbers of the corpus, nearest first."""

    def build(self, vectors: Floats, threads: int) -> None: ...

    def save(self, path: Path) -> bool:
        """False where the library cannot."""
        ...

    def load(self, path: Path) -> None: ...

    def width(self, ef: int) -> None:
        """The beam of the searches that follow."""
        ...

    def search(self, vector: Floats, k: int) -> Ids: ...


class Hnswlib:
    def __init__(self, dim: int, band: Band) -> None:
        import hnswlib

        self._band, self._index = band, hnswlib.Index(space="ip", dim=dim)

    def build(self, vectors: Floats, threads: int) -> None:
        self._index.init_index(len(vectors), ef_construction=self._band.ef_construction, M=self._band.m)
        self._index.add_items(vectors, num_threads=threads)
        self._index.set_num_threads(1)

    def save(self, path: Path) -> bool:
        self._index.save_index(str(path))
        return True

    def load(self, path: Path) -> None:
        self._index.load_index(str(path))
        self._index.set_num_threads(1)

    def width(self, ef: int) -> None:
        self._index.set_ef(ef)

    def search(self, vector: Floats, k: int) -> Ids:
        return np.asarray(self._index.knn_query(vector, k=k)[0][0], dtype=np.int64)


class Faiss:
    """`storage`: float32 | half | byte."""

    def __init__(self, dim: int, band: Band, storage: str = "float32") -> None:
        import faiss

        self._faiss = faiss
        kinds = {"half": faiss.ScalarQuantizer.QT_fp16, "byte": faiss.ScalarQuantizer.QT_8bit}
        ip = faiss.METRIC_INNER_PRODUCT
        self._index = (
            faiss.IndexHNSWFlat(dim, band.m, ip)
            if storage == "float32"
            else faiss.IndexHNSWSQ(dim, kinds[storage], band.m, ip)
        )
        self._index.hnsw.efConstruction = band.ef_construction

    def build(self, vectors: Floats, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index.train(vectors)
        self._index.add(vectors)
        self._faiss.omp_set_num_threads(1)

    def save(self, path: Path) -> bool:
        self._faiss.write_index(self._index, str(path))
        return True

    def load(self, path: Path) -> None:
        self._faiss.omp_set_num_threads(1)
        self._index = self._faiss.read_index(str(path))

    def width(self, ef: int) -> None:
        self._index.hnsw.efSearch = ef

    def search(self, vector: Floats, k: int) -> Ids:
        return self._index.search(vector[None], k)[1][0]


class Usearch:
    """`storage`: f32 | f16 | i8."""

    def __init__(self, dim: int, band: Band, storage: str = "f32") -> None:
        from usearch.index import Index

        # usearch keeps `connectivity` links on the upper levels and twice that on the base: hnswlib's and faiss's M
        self._index = Index(
            ndim=dim, metric="ip", dtype=storage, connectivity=band.m, expansion_add=band.ef_construction
        )

    def build(self, vectors: Floats, threads: int) -> None:
        self._index.add(np.arange(len(vectors)), vectors, threads=threads)

    def save(self, path: Path) -> bool:
        self._index.save(str(path))
        return True

    def load(self, path: Path) -> None:
        self._index.load(str(path))

    def width(self, ef: int) -> None:
        self._index.expansion_search = ef

    def search(self, vector: Floats, k: int) -> Ids:
        return self._index.search(vector, k, threads=1).keys.astype(np.int64)


class Ruvector:
    """Cosine, which for unit vectors is inner product; measured faster here than its `dot`."""

    def __init__(self, dim: int, band: Band) -> None:
        import ruvector

        self._index = ruvector.HnswIndex.create(
            dim, metric="cosine", m=band.m, ef_construction=band.ef_construction, ef_search=band.ef_search
        )
        self._ef = band.ef_search

    def build(self, vectors: Floats, threads: int) -> None:
        for start in range(0, len(vectors), 10_000):
            part = vectors[start : start + 10_000]
            self._index.insert_batch([str(start + i) for i in range(len(part))], part)

    def save(self, path: Path) -> bool:
        return False

    def load(self, path: Path) -> None:
        raise NotImplementedError("ruvector's HNSW has no file of its own")

    def width(self, ef: int) -> None:
        self._ef = ef

    def search(self, vector: Floats, k: int) -> Ids:
        return np.array([int(id) for id, _, _ in self._index.search(vector, k, ef_search=self._ef)], dtype=np.int64)


class RuvectorRabitq:
    """A scan, so neither M nor a beam: `width` is not used; it looks again at 20 k rows."""

    def __init__(self, dim: int, band: Band) -> None:
        import ruvector

        self._kind, self._index = ruvector.RabitqIndex, None

    def build(self, vectors: Floats, threads: int) -> None:
        self._index = self._kind.build(np.ascontiguousarray(vectors))

    def save(self, path: Path) -> bool:
        self._index.save(str(path))
        return True

    def load(self, path: Path) -> None:
        self._index = self._kind.load(str(path))

    def width(self, ef: int) -> None: ...

    def search(self, vector: Floats, k: int) -> Ids:
        return np.array([id for id, _ in self._index.search(vector, k)], dtype=np.int64)


class FaissPq:
    """Product quantisation inside the graph: `parts` bytes a vector, compared through tables.

    L2, which orders unit vectors as inner product does: faiss builds a graph of product codes by L2 in any case, and
    searched by inner product such a graph finds a third of what it should (measured).
    """

    def __init__(self, dim: int, band: Band, parts: int) -> None:
        import faiss

        self._faiss = faiss
        self._index = faiss.IndexHNSWPQ(dim, parts, band.m, 8)
        self._index.hnsw.efConstruction = band.ef_construction

    def build(self, vectors: Floats, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index.train(vectors[:: max(1, len(vectors) // 20_000)])
        self._index.add(vectors)
        self._faiss.omp_set_num_threads(1)

    def save(self, path: Path) -> bool:
        self._faiss.write_index(self._index, str(path))
        return True

    def load(self, path: Path) -> None:
        self._faiss.omp_set_num_threads(1)
        self._index = self._faiss.read_index(str(path))

    def width(self, ef: int) -> None:
        self._index.hnsw.efSearch = ef

    def search(self, vector: Floats, k: int) -> Ids:
        return self._index.search(vector[None], k)[1][0]


class FaissBinary:
    """One bit a dimension, its sign: the graph compares Hamming distances."""

    def __init__(self, dim: int, band: Band) -> None:
        import faiss

        self._faiss = faiss
        self._index = faiss.IndexBinaryHNSW(dim, band.m)
        self._index.hnsw.efConstruction = band.ef_construction

    def build(self, vectors: Floats, threads: int) -> None:
        self._faiss.omp_set_num_threads(threads)
        self._index.add(np.packbits(vectors > 0, axis=1))
        self._faiss.omp_set_num_threads(1)

    def save(self, path: Path) -> bool:
        self._faiss.write_index_binary(self._index, str(path))
        return True

    def load(self, path: Path) -> None:
        self._faiss.omp_set_num_threads(1)
        self._index = self._faiss.read_index_binary(str(path))

    def width(self, ef: int) -> None:
        self._index.hnsw.efSearch = ef

    def search(self, vector: Floats, k: int) -> Ids:
        return self._index.search(np.packbits(vector > 0)[None], k)[1][0]


class SecondLook:
    """`wider` times as many rows as were asked for out of a coarse index, ranked by the exact rows (n, d) on disk."""

    def __init__(self, coarse: Library, exact: NDArray[np.float16], wider: int) -> None:
        self._coarse, self._exact, self._wider = coarse, exact, wider

    def search(self, vector: Floats, k: int) -> Ids:
        rows = self._coarse.search(vector, k * self._wider)
        rows = rows[rows >= 0]
        scores = self._exact[rows].astype(np.float32) @ vector
        return rows[np.argsort(-scores)[:k]]


MAKERS: dict[str, Callable[[int, Band], Library]] = {
    "hnswlib": Hnswlib,
    "faiss": Faiss,
    "faiss-half": lambda dim, band: Faiss(dim, band, "half"),
    "faiss-byte": lambda dim, band: Faiss(dim, band, "byte"),
    "usearch": Usearch,
    "usearch-half": lambda dim, band: Usearch(dim, band, "f16"),
    "usearch-byte": lambda dim, band: Usearch(dim, band, "i8"),
    "ruvector": Ruvector,
    "ruvector-rabitq": RuvectorRabitq,
}

# For table 7.2; the others of its rows are above.
QUANTISED: dict[str, Callable[[int, Band], Library]] = {
    "faiss-pq-2": lambda dim, band: FaissPq(dim, band, dim // 2),
    "faiss-pq-4": lambda dim, band: FaissPq(dim, band, dim // 4),
    "faiss-binary": FaissBinary,
}


def installed(name: str) -> bool:
    """Whether the library behind `name` can be imported: `pip install -e '.[bench]'` brings them."""
    return find_spec(name.partition("-")[0]) is not None


def kept(name: str, corpus: Corpus, band: Band, folder: Path, threads: int = 1) -> tuple[Library, Cost]:
    """The index `name` over `corpus`: opened from `folder` where an earlier run left it, else built and left there."""
    library = {**MAKERS, **QUANTISED}[name](corpus.dim, band)
    path = folder / f"{corpus.name}-{name}-m{band.m}-c{band.ef_construction}.index"
    record = path.with_suffix(".json")
    if path.exists() and record.exists():
        library.load(path)
        return library, Cost(**json.loads(record.read_text()))
    cost = _build(library, corpus, path, threads)
    record.write_text(json.dumps(asdict(cost)))
    return library, cost


def _build(library: Library, corpus: Corpus, path: Path, threads: int) -> Cost:
    vectors = corpus.floats()
    gc.collect()
    before, cpu, wall = psutil.Process().memory_info().rss, time.process_time(), time.perf_counter()
    library.build(vectors, threads)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    size = psutil.Process().memory_info().rss - before
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if library.save(partial):
        partial.replace(path)
        size = path.stat().st_size
    return Cost(round(cpu, 1), round(wall, 1), threads, size, round(os.getloadavg()[0], 1))


def rows_of(search: Callable[[Floats, int], Ids], queries: Floats, k: int) -> Ids:
    """(q, k) rows; -1 where fewer than k came."""
    found = np.full((len(queries), k), -1, dtype=np.int64)
    for place, query in enumerate(queries):
        rows = search(query, k)[:k]
        found[place, : len(rows)] = rows
    return found


def chosen(names: str, known: Sequence[str]) -> list[str]:
    """Names out of a list with commas; all that are known where it is empty."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    return [name for name in known if name in wanted]
