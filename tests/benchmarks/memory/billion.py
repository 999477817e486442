"""The warm tier in partitions: binary HNSW and rerank over rows that need not be in memory. Knows nothing of tenants.

`run` can be stopped and started again with the same state folder: vectors are kept, each partition is copied in one
transaction and indexed in another, and measuring begins when all are there. The data stays until the folder is removed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.sql import SQL, Composed, Identifier, Literal

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.memory import hnsw
from ruvllm.memory.shards.simulation import cpu_s
from ruvllm.progress import Progress
from ruvllm.settings import load_settings
from tests.benchmarks.memory import vectors
from tests.benchmarks.memory.vectors import Corpus, Floats

WARM_M, WARM_EF = 16, 64
CANDIDATES = (50, 100, 200, 400, 800)  # of each partition, to be ranked again; pgvector's ef_search ends at 1000
K = 10
_CHUNK = 20_000


@dataclass(frozen=True)
class Plan:
    """What to run. `state` keeps everything; `buffers` and `work_mem` are Postgres's, as it writes them."""

    n: int
    dim: int
    partitions: int
    state: Path
    queries: int = 200
    buffers: str = "2GB"
    work_mem: str = "2GB"
    workers: int = 1  # beside the leader, that build an index

    @property
    def rows(self) -> list[range]:
        """Each partition's rows of the corpus."""
        edges = np.linspace(0, self.n, self.partitions + 1).astype(int)
        return [range(int(a), int(b)) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class Search:
    candidates: int  # of each partition
    recall: float  # @10, against exact
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server, a query


@dataclass(frozen=True)
class Figures:
    """What the arithmetic is made of. Bytes are of all partitions together; CPU seconds of the server."""

    n: int
    dim: int
    partitions: int
    queries: int
    heap_bytes: int
    warm_bytes: int  # of the binary indexes
    copy_cpu_s: float
    build_cpu_s: float
    build_wall_s: float
    rss_bytes: int  # of all the server's processes after the searches, shared pages counted once
    searches: tuple[Search, ...]
    cold_cpu_ms: float  # of one partition without an index, exactly, a query
    hot_rows: int = 0  # of the partition that was given a halfvec index too, to compare
    hot_bytes: int = 0
    hot_build_cpu_s: float = 0.0
    hot_cpu_ms: float = 0.0
    hot_recall: float = 0.0


def run(plan: Plan, hot: bool, progress: Progress) -> Figures:
    """Fill, index and measure, going on where an earlier run was stopped. The server is stopped at the end."""
    plan.state.mkdir(parents=True, exist_ok=True)
    plan.state.chmod(0o755)
    corpus = vectors.made(plan.n, plan.dim, plan.queries, plan.state / "vectors")
    with server(plan) as (dsn, running):
        stages = Stages(dsn, running)
        for number, rows in enumerate(plan.rows):
            stages.do(f"copy {number}", lambda c, i=number, r=rows: _copy(c, i, corpus, r))
            progress(number + 1, plan.partitions, "partitions copied")
        for number in range(plan.partitions):
            with _build_progress(dsn, number, progress):
                stages.do(f"index {number}", lambda c, i=number: _index(c, i, plan))
        done = stages.kept()
        figures = _figures(plan, corpus, dsn, running, done)
        return _hot(plan, corpus, dsn, running, figures, stages) if hot else figures


@contextmanager
def server(plan: Plan) -> Iterator[tuple[str, EmbeddedPostgres]]:
    settings = {"shared_buffers": plan.buffers, "max_wal_size": "8GB", "max_parallel_workers": "8",
                "checkpoint_timeout": "30min"}  # fmt: skip
    running = EmbeddedPostgres(load_settings({}, state_dir=plan.state / "server"), settings)
    try:
        dsn = running.ensure()
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("CREATE TABLE IF NOT EXISTS stages (name text PRIMARY KEY, wall_s real, cpu_s real)")
        yield dsn, running
    finally:
        running.stop()


@dataclass(frozen=True)
class Stages:
    """Steps that are done once: a step and the note that it is done are one transaction."""

    dsn: str
    running: EmbeddedPostgres

    def do(self, name: str, step: Callable[[psycopg.Connection], None]) -> None:
        with psycopg.connect(self.dsn) as connection:
            register_vector(connection)
            if connection.execute("SELECT FROM stages WHERE name = %s", [name]).fetchone() is not None:
                return
            cpu, wall = cpu_s(self.running), time.monotonic()
            step(connection)
            spent = (time.monotonic() - wall, cpu_s(self.running) - cpu)
            connection.execute("INSERT INTO stages VALUES (%s, %s, %s)", [name, *spent])

    def kept(self) -> dict[str, tuple[float, float]]:
        """By name: seconds of wall-clock and of CPU."""
        with psycopg.connect(self.dsn) as connection:
            return {name: (wall, cpu) for name, wall, cpu in connection.execute("SELECT * FROM stages")}


def rss_bytes(running: EmbeddedPostgres) -> int:
    """Proportional set size of all processes: shared buffers count once."""
    pid = running.status().pid
    assert pid is not None
    total = 0
    for each in [psutil.Process(pid), *psutil.Process(pid).children()]:
        with suppress(psutil.NoSuchProcess):  # a worker that ended just now
            total += each.memory_full_info().pss
    return int(total)


def load(path: Path) -> Figures:
    """Figures that `save` kept."""
    body = json.loads(path.read_text(encoding="utf-8"))
    return Figures(**{**body, "searches": tuple(Search(**each) for each in body["searches"])})


def save(figures: Figures, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(figures), indent=1), encoding="utf-8")
    partial.replace(path)


# -- filling


def _copy(connection: psycopg.Connection, number: int, corpus: Corpus, rows: range) -> None:
    """The vector is stored out of line nowhere: PLAIN keeps it in the row that a rerank reads."""
    table = _table(number)
    connection.execute(
        SQL("CREATE TABLE {} (id bigint NOT NULL, embedding halfvec({}) STORAGE PLAIN NOT NULL)").format(
            table, Literal(corpus.dim)
        )
    )
    with connection.cursor().copy(SQL("COPY {} FROM STDIN WITH (FORMAT BINARY)").format(table)) as copy:
        copy.set_types(["int8", "halfvec"])
        for start in range(rows.start, rows.stop, _CHUNK):
            block = np.asarray(corpus.vectors[start : min(start + _CHUNK, rows.stop)])
            for i, vector in enumerate(block):
                copy.write_row((start + i, HalfVector(vector)))


def _index(connection: psycopg.Connection, number: int, plan: Plan) -> None:
    connection.execute(SQL("SET LOCAL maintenance_work_mem = {}").format(Literal(plan.work_mem)))
    connection.execute(SQL("SET LOCAL max_parallel_maintenance_workers = {}").format(Literal(plan.workers)))
    connection.execute(
        SQL("CREATE INDEX {} ON {} USING hnsw ((binary_quantize(embedding)::bit({})) bit_hamming_ops)"
            " WITH (m = {}, ef_construction = {})").format(
            Identifier(f"warm_{number}"), _table(number), Literal(plan.dim), Literal(WARM_M), Literal(WARM_EF))
    )  # fmt: skip


@contextmanager
def _build_progress(dsn: str, number: int, progress: Progress) -> Iterator[None]:
    """Tells every ten seconds how far the index is, as Postgres says it."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(10):
            with psycopg.connect(dsn) as connection:
                row = connection.execute(
                    "SELECT tuples_done, tuples_total, blocks_done, blocks_total FROM pg_stat_progress_create_index"
                ).fetchone()
            if row is not None:
                done, total = (row[0], row[1]) if row[1] else (row[2], row[3])
                progress(int(done), int(total), f"index of partition {number}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _table(number: int) -> Identifier:
    return Identifier(f"part_{number}")


# -- searching


def warm_query(partitions: int, dim: int) -> Composed:
    """Of each partition the nearest by Hamming distance through its index, ranked again by the stored halves."""
    branch = SQL(
        "(SELECT id, embedding <#> %(v)s AS d FROM (SELECT id, embedding FROM {} ORDER BY"
        " binary_quantize(embedding)::bit({}) <~> binary_quantize(%(v)s)::bit({}) LIMIT %(c)s) AS near"
        " ORDER BY d LIMIT %(k)s)"
    )
    size = Literal(dim)
    branches = [branch.format(_table(number), size, size) for number in range(partitions)]
    return SQL("SELECT id FROM ({}) AS found ORDER BY d LIMIT %(k)s").format(SQL(" UNION ALL ").join(branches))


def _figures(
    plan: Plan, corpus: Corpus, dsn: str, running: EmbeddedPostgres, done: dict[str, tuple[float, float]]
) -> Figures:
    builds = [done[f"index {number}"] for number in range(plan.partitions)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        register_vector(connection)
        query = warm_query(plan.partitions, plan.dim)
        searches = tuple(_search(connection, running, corpus, query, count) for count in CANDIDATES)
        return Figures(
            plan.n, plan.dim, plan.partitions, plan.queries,
            heap_bytes=_size(connection, "part_"), warm_bytes=_size(connection, "warm_"),
            copy_cpu_s=sum(done[f"copy {number}"][1] for number in range(plan.partitions)),
            build_cpu_s=sum(cpu for _, cpu in builds), build_wall_s=sum(wall for wall, _ in builds),
            rss_bytes=rss_bytes(running), searches=searches, cold_cpu_ms=_cold(connection, running, corpus),
        )  # fmt: skip


def _search(
    connection: psycopg.Connection, running: EmbeddedPostgres, corpus: Corpus, query: Composed, candidates: int
) -> Search:
    connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(candidates)])
    connection.execute("SET enable_sort = off; SET jit = off; SET max_parallel_workers_per_gather = 0")
    found, times, cpu = _ask(connection, running, query, corpus.queries, {"c": candidates})
    recall = corpus.recall(found, K)
    return Search(candidates, recall, float(np.median(times)), float(np.quantile(times, 0.99)), cpu)


def _ask(
    connection: psycopg.Connection,
    running: EmbeddedPostgres,
    query: Composed,
    queries: Floats,
    values: dict[str, object],
) -> tuple[NDArray[np.int64], list[float], float]:
    """Rows found (q, K), milliseconds of each query, the server's CPU milliseconds a query; a first round warms up."""
    found, times, before = [], [], 0.0
    for warm in (True, False):
        found, times, before = [], [], cpu_s(running)
        for vector in queries[:20] if warm else queries:
            started = time.perf_counter()
            rows = connection.execute(query, {**values, "v": HalfVector(vector.astype(np.float16)), "k": K}).fetchall()
            times.append(1e3 * (time.perf_counter() - started))
            found.append([id for (id,) in rows] + [-1] * (K - len(rows)))
    return np.array(found), times, 1e3 * (cpu_s(running) - before) / len(queries)


def _cold(connection: psycopg.Connection, running: EmbeddedPostgres, corpus: Corpus) -> float:
    """An archive partition has no index: all its rows are read. Five queries."""
    query = SQL("SELECT id FROM part_0 ORDER BY (embedding <#> %(v)s) + 0 LIMIT %(k)s")
    return _ask(connection, running, query, corpus.queries[:5], {})[2]


def _size(connection: psycopg.Connection, prefix: str) -> int:
    row = connection.execute(
        "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname ~ ('^' || %s || '[0-9]+$')", [prefix]
    ).fetchone()
    return int(row[0]) if row and row[0] else 0


# -- the hot tier beside it


def _hot(plan: Plan, corpus: Corpus, dsn: str, running: EmbeddedPostgres, figures: Figures, stages: Stages) -> Figures:
    """Partition 0 with an index of halves too, by its band: what warm saves and what it costs."""
    rows = plan.rows[0]
    stages.do("hot 0", lambda c: _hot_index(c, plan, hnsw.band(len(rows))))
    near, _ = vectors.exact(corpus.vectors[rows.start : rows.stop], corpus.queries, K)
    query = SQL("SELECT id FROM part_0 ORDER BY embedding <#> %(v)s LIMIT %(k)s")
    with psycopg.connect(dsn, autocommit=True) as connection:
        register_vector(connection)
        ef = hnsw.ef_search(K, len(rows))
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(ef)])
        connection.execute("SET enable_sort = off")
        found, _, cpu = _ask(connection, running, query, corpus.queries, {})
        size = _size(connection, "hot_")
    recall = float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, near + rows.start, strict=True)]))
    return replace(figures, hot_rows=len(rows), hot_bytes=size, hot_build_cpu_s=stages.kept()["hot 0"][1],
                   hot_cpu_ms=cpu, hot_recall=recall)  # fmt: skip


def _hot_index(connection: psycopg.Connection, plan: Plan, sized: hnsw.Band) -> None:
    connection.execute(SQL("SET LOCAL maintenance_work_mem = {}").format(Literal(plan.work_mem)))
    connection.execute(SQL("SET LOCAL max_parallel_maintenance_workers = {}").format(Literal(plan.workers)))
    connection.execute(
        SQL("CREATE INDEX hot_0 ON part_0 USING hnsw (embedding halfvec_ip_ops) WITH (m = {}, ef_construction = {})")
        .format(Literal(sized.m), Literal(sized.ef_construction))
    )  # fmt: skip
