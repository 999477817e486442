"""Memory's own faces as contenders, by SQL and by replica, and raw pgvector. Knows nothing of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory import edges, hnsw, rows
from ruvllm.memory.records import Hit, Vector, Walk
from ruvllm.memory.retrieval import search
from ruvllm.memory.store import Memory
from ruvllm.settings import load_settings
from tests.benchmarks.memory.loading import ENCODER, Loaded, server_cpu

Ids = NDArray[np.int64]
_RAW = "SELECT id, embedding <#> %(v)s FROM raw ORDER BY embedding <#> %(v)s LIMIT %(k)s"
_ON_NODES = """
    SELECT id - 1, embedding <#> %(v)s FROM memory.nodes WHERE archived_at IS NULL
    ORDER BY embedding <#> %(v)s LIMIT %(k)s
"""


class RawPgvector:
    """What pgvector takes by itself: one connection, one prepared statement, ids and distances in binary.

    With `on_nodes` over memory's own table and index as the superuser, whom row-level security does not touch: what the
    index takes without what memory asks around it.
    """

    def __init__(self, dsn: str, on_nodes: bool = False) -> None:
        self._statement = _ON_NODES if on_nodes else _RAW
        self.connection = psycopg.connect(dsn, autocommit=True)
        register_vector(self.connection)
        self._cursor = self.connection.cursor(binary=True)

    def width(self, ef: int) -> None:
        self.connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(ef)])

    def search(self, vector: Vector, k: int) -> Ids:
        found = self._cursor.execute(self._statement, {"v": rows.half(vector), "k": k}, prepare=True).fetchall()
        return np.array([row[0] for row in found], dtype=np.int64)

    def plan(self, vector: Vector, k: int) -> str:
        found = self.connection.execute(f"EXPLAIN {self._statement}", {"v": rows.half(vector), "k": k}).fetchall()
        return "\n".join(row[0] for row in found)

    def cpu_s(self) -> float:
        return server_cpu(self.connection)

    def close(self) -> None:
        self.connection.close()


class SqlMemory:
    """Memory without a replica: row-level security and filters; `hits` with texts and vectors of what is found."""

    def __init__(self, loaded: Loaded) -> None:
        self.database: Database = loaded.database()
        self.memory = memory_over(self.database, loaded.corpus.dim)
        with self.database.transaction() as connection:
            self._backend = connection  # kept by the pool: one thread uses one connection
        self._n = loaded.corpus.n

    def _ef(self, k: int) -> int:
        return ef_of(k, self._n)

    def hits(self, vector: Vector, k: int) -> list[Hit]:
        return self.memory.search(vector, k)

    def search(self, vector: Vector, k: int) -> Ids:
        return search.nearest(self.database, vector, k, ef=self._ef(k)).ids - 1

    def search_batch(self, vectors: Vector, k: int) -> object:
        with self.database.transaction() as connection:
            return search.search_batch(connection, vectors, k, ef=self._ef(k))

    def whole(self, vector: Vector, k: int) -> Ids:
        return np.array([hit.node.id for hit in self.hits(vector, k)], dtype=np.int64) - 1

    def walk(self, seeds: Sequence[int], walk: Walk) -> object:
        return edges.walked(self.database, seeds, walk)

    def cpu_s(self) -> float:
        return server_cpu(self._backend)

    def close(self) -> None:
        self.database.close()


def memory_over(database: Database, dim: int) -> Memory:
    """The facade; its encoder is never asked, for every vector is given."""
    return Memory(database, EmbeddingAdapter(HashingEncoder(dim, ENCODER)), load_settings({}))


def ef_of(k: int, n: int) -> int:
    """The beam that memory uses for `k` of `n` nodes."""
    return hnsw.ef_search(k, n)


def replica_folder(keep: Path, loaded: Loaded) -> Path:
    """Where the replica of this database is kept."""
    return keep / f"replica-{loaded.dsn.partition('?')[0].rpartition('/')[2]}"


class Replica:
    """The replica of the loaded database, opened from `folder`, built there where it is not."""

    def __init__(self, loaded: Loaded, folder: Path, build_threads: int = 1) -> None:
        from ruvllm.memory.replica import Replica as Opened
        from ruvllm.memory.replica import ReplicaOptions

        self.database = loaded.database()
        self.replica = Opened.open(self.database, folder, ReplicaOptions(build_threads=build_threads))

    def search(self, vector: Vector, k: int) -> Ids:
        return np.asarray(self.replica.search(vector, k).ids, dtype=np.int64) - 1

    def with_neighbours(self, vector: Vector, k: int) -> object:
        """What an answer's context is chosen from: k nearest, two hops around them, the top 256 with their metadata."""
        return self.replica.columns(self._around(vector, k))

    def with_texts(self, vector: Vector, k: int) -> object:
        """The same as whole nodes with their texts, which are read from disk and decoded."""
        return self.replica.nodes(self._around(vector, k))

    def _around(self, vector: Vector, k: int) -> Ids:
        return self.replica.walk(self.replica.search(vector, k).ids, Walk(hops=2, limit=256)).ids

    def close(self) -> None:
        self.replica.close()
        self.database.close()
