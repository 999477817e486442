"""Fills a real Postgres with a corpus, fast: COPY into memory.nodes and memory.edges, triggers on; knows no contender.

Each stage is noted in the database when it is done, so a killed run goes on with the next one. Each corpus has a
database of its own; one that was kept is migrated to the newest schema.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from ruvllm.database import migrate
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.pool import Database
from ruvllm.memory import hnsw
from ruvllm.memory.likeness.minhash import BANDS, bands
from ruvllm.memory.records import KINDS, RELATIONS
from ruvllm.memory.rows import content_hash
from ruvllm.settings import load_settings
from tests.benchmarks.memory.vectors import SEED, Corpus, clusters

ENCODER = "benchmark"
EDGES_A_NODE = 10
_SLAB = 10_000  # nodes a COPY
_BANDS_UP_TO = 200_000  # nodes: MinHash bands of a million texts would be 16 million rows that only writes read
_WORDS = 40  # of a text
TENANT = "default"


@dataclass(frozen=True)
class Loaded:
    """A filled database, and what filling it took: stage -> {"wall_s", "cpu_s", "rows"}."""

    dsn: str
    corpus: Corpus
    band: hnsw.Band
    stages: dict[str, dict[str, float]]

    def database(self, tenant: str = TENANT) -> Database:
        return Database(self.dsn, tenant)

    def connect(self) -> psycopg.Connection:
        """As the owner, with vectors, autocommit."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        register_vector(connection)
        return connection


@contextmanager
def server(keep: Path, corpus: Corpus) -> Iterator[EmbeddedPostgres]:
    """The benchmarks' server, stopped at the end; its cache holds the corpus, as that of a server sized for it does."""
    buffers = min(6144, max(512, corpus.n * corpus.dim * 2 * 4 // 2**20))  # MiB: vectors, two graphs, edges
    overrides = {"shared_buffers": f"{buffers}MB", "max_wal_size": "8GB", "checkpoint_timeout": "15min"}
    postgres = EmbeddedPostgres(load_settings({}, state_dir=keep / "postgres"), overrides)
    postgres.ensure()
    try:
        yield postgres
    finally:
        postgres.stop()


def fill(postgres: EmbeddedPostgres, corpus: Corpus, build_threads: int) -> Loaded:
    """The database of `corpus`, with what is missing in it added."""
    dsn = postgres.create_database(f"memory_{_digest(corpus)}")
    migrate.upgrade(dsn, ENCODER, corpus.dim)
    band = hnsw.band(corpus.n)
    done = Loaded(dsn, corpus, band, {})
    with done.connect() as connection:
        _fill(connection, done, build_threads)
    return done


def _digest(corpus: Corpus) -> str:
    return hashlib.sha256(f"{corpus.name} {EDGES_A_NODE}".encode()).hexdigest()[:16]


def _fill(connection: psycopg.Connection, done: Loaded, build_threads: int) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS public.stages (name text PRIMARY KEY, cost jsonb NOT NULL)")
    done.stages.update(connection.execute("SELECT name, cost FROM public.stages").fetchall())
    corpus, band = done.corpus, done.band
    stages: dict[str, Callable[[], int]] = {
        "unindexed": lambda: _drop_index(connection),
        "nodes": lambda: _copy_nodes(connection, corpus),
        "bands": lambda: _copy_bands(connection, corpus),
        "edges": lambda: _copy_edges(connection, corpus),
        "index": lambda: _build_index(connection, corpus.n, band, build_threads),
        "analyze": lambda: _settle(connection),
    }
    if "analyze" in done.stages:
        _restore(connection, corpus.n)
    for name, work in stages.items():
        if name not in done.stages:
            done.stages[name] = _staged(connection, name, work)


def _restore(connection: psycopg.Connection, n: int) -> None:
    """Take out what an earlier run's tests wrote, so that the nodes are the corpus again."""
    connection.execute("TRUNCATE memory.ingest")
    merged = connection.execute(
        "UPDATE memory.nodes SET archived_at = NULL, superseded_by = NULL WHERE id <= %s AND archived_at IS NOT NULL",
        [n],
    ).rowcount
    added = connection.execute("DELETE FROM memory.nodes WHERE id > %s", [n]).rowcount
    if merged or added:
        _settle(connection)


def _staged(connection: psycopg.Connection, name: str, work: Callable[[], int]) -> dict[str, float]:
    """Work and its note commit together, but where the work cannot be in a transaction."""
    cpu, wall = server_cpu(connection), time.perf_counter()
    rows = work()
    cost = {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(server_cpu(connection) - cpu, 1),
        "rows": rows,
        "load": round(os.getloadavg()[0], 1),
    }
    connection.execute("INSERT INTO public.stages VALUES (%s, %s)", [name, Jsonb(cost)])
    return cost


def server_cpu(connection: psycopg.Connection) -> float:
    """CPU seconds that the connection's backend has used."""
    times = psutil.Process(connection.info.backend_pid).cpu_times()
    return times.user + times.system


# -- nodes


def kind_of(rows: NDArray[np.int64]) -> list[str]:
    """Mostly Documents and Facts, some of each other kind."""
    places = np.array([1, 1, 1, 1, 1, 3, 3, 3, 0, 2])[rows % 10]
    return [KINDS[place] for place in places]


def texts(start: int, count: int) -> list[str]:
    """Made passages of 40 words, frequent words frequent, each one's number in it so that no two are equal."""
    random = np.random.default_rng((SEED, 7, start))
    words = random.zipf(1.3, size=(count, _WORDS)) % 30_000
    return [f"Passage {start + i}. " + " ".join(f"w{word}" for word in row) for i, row in enumerate(words.tolist())]


def _copy_nodes(connection: psycopg.Connection, corpus: Corpus) -> int:
    with connection.transaction():
        for start in range(0, corpus.n, _SLAB):
            _copy_slab(connection, corpus, start, texts(start, min(_SLAB, corpus.n - start)))
        connection.execute("SELECT setval(pg_get_serial_sequence('memory.nodes', 'id'), %s)", [corpus.n])
    return corpus.n


def _copy_slab(connection: psycopg.Connection, corpus: Corpus, start: int, passages: Sequence[str]) -> None:
    kinds = kind_of(np.arange(start, start + len(passages)))
    vectors = np.asarray(corpus.vectors[start : start + len(passages)])
    columns = ("id", "tenant", "kind", "domain", "trust", "content_hash", "embedding", "confidence")
    types = ("int8", "text", "text", "text", "text", "bytea", "halfvec", "float4")
    with connection.cursor() as cursor, cursor.copy(_copy("memory.nodes", columns)) as copy:
        copy.set_types(types)
        for i, (kind, text, vector) in enumerate(zip(kinds, passages, vectors, strict=True), start + 1):
            hash = content_hash(kind, text)
            copy.write_row((i, TENANT, kind, f"domain{i % 20}", "system", hash, HalfVector(vector), 1.0))
    columns, types = ("node", "tenant", "text", "source", "metadata"), ("int8", "text", "text", "text", "jsonb")
    with connection.cursor() as cursor, cursor.copy(_copy("memory.node_texts", columns)) as copy:
        copy.set_types(types)
        for i, text in enumerate(passages, start + 1):
            copy.write_row((i, TENANT, text, "benchmark", Jsonb({"row": i - 1})))


def _copy(table: str, columns: Sequence[str]) -> str:
    return f"COPY {table} ({', '.join(columns)}) FROM STDIN (FORMAT BINARY)"


def _copy_bands(connection: psycopg.Connection, corpus: Corpus) -> int:
    """MinHash bands, which a write-back looks duplicates up in; left out of a big corpus."""
    if corpus.n > _BANDS_UP_TO:
        return 0
    statement = _copy("memory.minhash_bands", ("node", "tenant", "band", "hash"))
    with connection.transaction(), connection.cursor() as cursor:
        connection.execute("TRUNCATE memory.minhash_bands")
        with cursor.copy(statement) as copy:
            copy.set_types(("int8", "text", "int2", "int8"))
            for start in range(0, corpus.n, _SLAB):
                for i, text in enumerate(texts(start, min(_SLAB, corpus.n - start)), start + 1):
                    for band, hash in enumerate(bands(text)):
                        copy.write_row((i, TENANT, band, hash))
    return corpus.n * BANDS


# -- edges


def edges(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], NDArray[np.float32]]:
    """src, dst (ids, from 1), relation, weight: of a node's ten edges eight end near it, two anywhere.

    Near is by place in the corpus' topics, not by an index' answer, so that walks do not repeat a search.
    """
    random = np.random.default_rng((SEED, 8))
    order = np.argsort(_topics(corpus), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(corpus.n)
    src = np.repeat(np.arange(corpus.n), EDGES_A_NODE)
    near = (place[src] + random.integers(1, 40, len(src)) * random.choice([-1, 1], len(src))) % corpus.n
    dst = np.where(np.arange(len(src)) % EDGES_A_NODE < 8, order[near], random.integers(0, corpus.n, len(src)))
    code = np.arange(len(src)) % 5  # every relation but Contains
    _, first = np.unique((src * corpus.n + dst) * 5 + code, return_index=True)
    kept = np.sort(first[src[first] != dst[first]])
    weight = random.uniform(0.2, 1.0, len(src)).astype(np.float32)
    return src[kept] + 1, dst[kept] + 1, [RELATIONS[each] for each in code[kept]], weight[kept]


def _topics(corpus: Corpus) -> NDArray[np.int64]:
    """(n,) the nearest of some rows: a topic for a corpus that was given as well."""
    anchors = np.random.default_rng((SEED, 9)).choice(corpus.n, size=clusters(corpus.n), replace=False)
    centres = np.asarray(corpus.vectors[np.sort(anchors)], dtype=np.float32)
    parts = [
        np.argmax(np.asarray(corpus.vectors[start : start + _SLAB], dtype=np.float32) @ centres.T, axis=1)
        for start in range(0, corpus.n, _SLAB)
    ]
    return np.concatenate(parts)


def _copy_edges(connection: psycopg.Connection, corpus: Corpus) -> int:
    """In slabs, a transaction each, the packed rows refreshed by the triggers; begins anew where it was cut off."""
    connection.execute("TRUNCATE memory.edges")
    src, dst, relations, weights = edges(corpus)
    statement = _copy("memory.edges", ("tenant", "src", "dst", "rel", "weight", "created_by"))
    for start in range(0, len(src), _SLAB):
        cut = slice(start, start + _SLAB)
        with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(("text", "int8", "int8", "text", "float4", "text"))
            rows = zip(src[cut].tolist(), dst[cut].tolist(), relations[cut], weights[cut].tolist(), strict=True)
            for source, target, relation, weight in rows:
                copy.write_row((TENANT, source, target, relation, weight, "benchmark"))
    return len(src)


# -- the index


def vector_index(connection: psycopg.Connection) -> tuple[str, str]:
    """Name and definition of the one HNSW index of memory.nodes."""
    rows = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'memory' AND tablename = 'nodes'"
        " AND indexdef LIKE '%USING hnsw%'"
    ).fetchall()
    assert len(rows) == 1, f"memory.nodes has {len(rows)} HNSW indexes, want one"
    return rows[0][0], rows[0][1]


def _drop_index(connection: psycopg.Connection) -> int:
    """Kept as a comment, so that the definition comes back as the migrations wrote it."""
    name, definition = vector_index(connection)
    with connection.transaction():
        connection.execute("CREATE TABLE public.index_definition AS SELECT %s::text AS definition", [definition])
        connection.execute(f"DROP INDEX memory.{name}")
    return 0


def _build_index(connection: psycopg.Connection, n: int, band: hnsw.Band, threads: int) -> int:
    """The migrations' index with the parameters of the band."""
    row = connection.execute("SELECT definition FROM public.index_definition").fetchone()
    assert row is not None
    _make_room(connection, n, threads)
    connection.execute(with_band(row[0], band))
    return n


def with_band(definition: str, band: hnsw.Band) -> str:
    """An index definition with the band's M and efConstruction."""
    options = f"WITH (m='{band.m}', ef_construction='{band.ef_construction}')"
    changed, times = re.subn(r"WITH \([^)]*\)", options, definition)
    assert times == 1, definition
    return changed


def _make_room(connection: psycopg.Connection, n: int, threads: int) -> None:
    """The graph has to fit into maintenance_work_mem while it is built, or building takes several times as long."""
    megabytes = max(512, n * 6 // 1000)
    connection.execute(f"SET maintenance_work_mem = '{megabytes}MB'")
    connection.execute(f"SET max_parallel_maintenance_workers = {threads - 1}")


def _settle(connection: psycopg.Connection) -> int:
    connection.execute("VACUUM ANALYZE memory.nodes")
    for table in ("node_texts", "edges", "adjacency", "minhash_bands", "changes"):
        connection.execute(f"VACUUM ANALYZE memory.{table}")
    connection.execute("CHECKPOINT")
    return 0


# -- raw pgvector


def raw(postgres: EmbeddedPostgres, corpus: Corpus, threads: int) -> tuple[str, dict[str, float]]:
    """The DSN of a database with nothing but `raw (id, embedding)`, indexed by the band, and what the index took."""
    dsn = postgres.create_database(f"raw_{hashlib.sha256(corpus.name.encode()).hexdigest()[:16]}", ("vector",))
    with psycopg.connect(dsn, autocommit=True) as connection:
        register_vector(connection)
        connection.execute("CREATE TABLE IF NOT EXISTS stages (name text PRIMARY KEY, cost jsonb NOT NULL)")
        found = dict(connection.execute("SELECT name, cost FROM stages").fetchall())
        if "index" not in found:
            found["index"] = _staged_raw(connection, corpus, threads)
    return dsn, found["index"]


def _staged_raw(connection: psycopg.Connection, corpus: Corpus, threads: int) -> dict[str, float]:
    connection.execute("DROP TABLE IF EXISTS raw")
    connection.execute(f"CREATE TABLE raw (id bigint PRIMARY KEY, embedding halfvec({corpus.dim}) NOT NULL)")
    with connection.cursor() as cursor, cursor.copy(_copy("raw", ("id", "embedding"))) as copy:
        copy.set_types(("int8", "halfvec"))
        for row in range(corpus.n):
            copy.write_row((row, HalfVector(np.asarray(corpus.vectors[row]))))
    band = hnsw.band(corpus.n)
    _make_room(connection, corpus.n, threads)
    definition = with_band("CREATE INDEX raw_embedding ON raw USING hnsw (embedding halfvec_ip_ops) WITH ()", band)

    def build() -> int:
        connection.execute(definition)
        connection.execute("VACUUM ANALYZE raw")
        return corpus.n

    return _staged(connection, "index", build)
