"""Shards on this machine: real servers in folders of their own, filled, searched, measured. Knows nothing of routers.

Cores are shared by all servers here, so wall-clock says little of machines of their own. What is measured is the CPU
time that a shard's own processes spend on a query, and beside it the coordinator's: with one machine a shard, the
former is spent in parallel and the latter is what a query costs more for each shard that is added.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.sql import SQL, Literal

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.errors import InputError
from ruvllm.memory.hnsw import Band, band
from ruvllm.memory.shards.layout import create, open_tenant, owner
from ruvllm.memory.shards.records import Shard, ShardSet
from ruvllm.memory.shards.routing import route_node
from ruvllm.memory.shards.search import Shards
from ruvllm.progress import Progress, silent
from ruvllm.settings import load_settings

Floats = NDArray[np.float32]
TENANT = "simulation"
_SERVER = {"shared_buffers": "64MB", "max_connections": "20", "fsync": "off", "io_method": "sync"}
_BATCH = 5_000
_SEED = 7


@dataclass(frozen=True)
class SimulationReport:
    """Figures of one size. CPU in milliseconds a query, medians of wall-clock beside their number."""

    shards: int
    nodes: int
    dimension: int
    k: int
    queries: int
    pushed: bool  # every shard was sent ORDER BY and LIMIT
    exact_equal: float  # share of queries whose exact answer is that of one server with everything
    recall: float  # of the index's answers, against the exact ones
    p50_ms: float
    p99_ms: float
    shard_cpu_ms: tuple[float, ...]  # of each shard, a query
    coordinator_cpu_ms: float  # a query
    one_shard_p50_ms: float  # one shard asked directly, without a coordinator: the same index, k and rows
    build_cpu_s: tuple[float, ...]  # index build, each shard
    bytes: tuple[int, ...]  # of each shard's database


def simulate(
    folder: Path,
    nodes: int = 10_000,
    dimension: int = 128,
    shards: int = 4,
    queries: int = 200,
    k: int = 10,
    progress: Progress = silent,
) -> SimulationReport:
    """Make `shards` servers and a coordinator in `folder`, fill them with clustered unit vectors, search, measure.

    The servers are stopped at the end; the caller removes the folder.
    """
    if nodes < 10 * shards or queries < 1:
        raise InputError(f"simulation: got {nodes} nodes and {queries} queries; want ten nodes a shard and a query")
    vectors, asked = made(nodes, dimension, queries)
    with servers(folder, shards) as (found, running):
        spread = ShardSet(
            found[0], tuple(Shard(f"s{i}", dsn) for i, dsn in enumerate(found[1:])), band(nodes).ef_search
        )
        create(spread, "simulation", dimension)
        built = [_load(shard, spread, vectors, running[i + 1], progress) for i, shard in enumerate(spread.shards)]
        open_tenant(spread, TENANT)
        with closing(Shards(spread, TENANT)) as opened:
            return _measure(opened, vectors, asked, k, running, tuple(built))


def made(nodes: int, dimension: int, queries: int) -> tuple[Floats, Floats]:
    """(n, d) clustered unit vectors that half precision holds, and (q, d) queries near some of them; seeded."""
    random = np.random.default_rng(_SEED)
    centres = _units(random.standard_normal((max(8, round(nodes**0.5)), dimension)))
    which = random.integers(len(centres), size=nodes)
    vectors = _units(centres[which] + _units(random.standard_normal((nodes, dimension))))
    near = vectors[random.integers(nodes, size=queries)]
    return vectors, _units(near + 0.35 * _units(random.standard_normal((queries, dimension))))


def exact(vectors: Floats, queries: Floats, k: int) -> NDArray[np.int64]:
    """(q, k) rows of the nearest vectors, as one server with all of them would sort."""
    blocks = [queries[i : i + 64] @ vectors.T for i in range(0, len(queries), 64)]  # (64, n) each
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k] for block in blocks])


@contextmanager
def servers(folder: Path, shards: int) -> Iterator[tuple[list[str], list[EmbeddedPostgres]]]:
    """The coordinator first, then the shards; addresses and servers, all running."""
    with ExitStack() as stack:
        names = ["coordinator", *(f"shard-{i}" for i in range(shards))]
        running = [EmbeddedPostgres(load_settings({}, state_dir=folder / name), _SERVER) for name in names]
        addresses = []
        for server in running:
            stack.callback(server.stop)
            addresses.append(server.ensure())
        yield addresses, running


def cpu_s(server: EmbeddedPostgres) -> float:
    """CPU seconds of a server since its start: the living processes' and, through the postmaster, the ended ones'."""
    pid = server.status().pid
    if pid is None:
        return 0.0
    postmaster, total = psutil.Process(pid), 0.0
    for child in postmaster.children():
        with suppress(psutil.NoSuchProcess):  # it ended just now: its time is the postmaster's by the next line
            spent = child.cpu_times()
            total += spent.user + spent.system
    own = postmaster.cpu_times()
    return float(total + own.user + own.system + own.children_user + own.children_system)


def _load(shard: Shard, shards: ShardSet, vectors: Floats, server: EmbeddedPostgres, progress: Progress) -> float:
    """Rows by COPY, then the index; CPU seconds of the build."""
    mine = [i for i in range(len(vectors)) if route_node(shards, "Fact", _text(i)) == shard]
    with owner(shard.dsn) as connection:
        register_vector(connection)
        connection.execute("DROP INDEX memory.nodes_embedding")
        for start in range(0, len(mine), _BATCH):
            _copy(connection, mine[start : start + _BATCH], vectors)
            progress(start, len(mine), f"shard {shard.name}: rows")
    before = cpu_s(server)
    with owner(shard.dsn) as connection:  # one process, that is measured while it lives
        connection.execute("SET maintenance_work_mem = '512MB'; SET max_parallel_maintenance_workers = 0")
        connection.execute(_index(band(len(mine))))
        connection.execute("ANALYZE memory.nodes, memory.node_texts")
        built = cpu_s(server) - before
    progress(len(mine), len(mine), f"shard {shard.name}: index")
    return built


def _copy(connection: psycopg.Connection, rows: Sequence[int], vectors: Floats) -> None:
    columns = "tenant, kind, trust, content_hash, embedding"
    with connection.cursor() as cursor:
        with cursor.copy(SQL("COPY memory.nodes ({}) FROM STDIN").format(SQL(columns))) as copy:
            for i in rows:
                vector = HalfVector(vectors[i].astype(np.float16)).to_text()
                digest = "\\x" + hashlib.sha256(_text(i).encode()).hexdigest()
                copy.write_row((TENANT, "Fact", "system", digest, vector))
        cursor.execute(
            "INSERT INTO memory.node_texts (node, tenant, text, source)"
            " SELECT n.id, n.tenant, t.text, 'simulation' FROM unnest(%s::text[]) AS t (text)"
            " JOIN memory.nodes n ON n.content_hash = sha256(t.text::bytea)",
            [[_text(i) for i in rows]],
        )


def _index(sized: Band) -> psycopg.sql.Composed:
    return SQL(
        "CREATE INDEX nodes_embedding ON memory.nodes USING hnsw (embedding halfvec_ip_ops)"
        " WITH (m = {}, ef_construction = {}) WHERE archived_at IS NULL"
    ).format(Literal(sized.m), Literal(sized.ef_construction))


def _measure(
    opened: Shards,
    vectors: Floats,
    asked: Floats,
    k: int,
    running: list[EmbeddedPostgres],
    built: tuple[float, ...],
) -> SimulationReport:
    truth = exact(vectors, asked, k)
    pushed = all(plan.pushed for plan in opened.plan(asked[0], k))
    _answers(opened, asked[:20], k)  # connections made, pages read
    before = [cpu_s(server) for server in running]
    found, times = _answers(opened, asked, k)
    spent = [1e3 * (cpu_s(server) - past) / len(asked) for server, past in zip(running, before, strict=True)]
    few = asked[: min(50, len(asked))]
    exactly, _ = _answers(opened, few, k, exact=True)
    return SimulationReport(
        shards=len(opened.shards.shards),
        nodes=len(vectors),
        dimension=vectors.shape[1],
        k=k,
        queries=len(asked),
        pushed=pushed,
        exact_equal=float(np.mean([_same(a, b, q, vectors) for a, b, q in zip(exactly, truth, few, strict=False)])),
        recall=float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth, strict=True)])),
        p50_ms=float(np.median(times)),
        p99_ms=float(np.quantile(times, 0.99)),
        shard_cpu_ms=tuple(spent[1:]),
        coordinator_cpu_ms=spent[0],
        one_shard_p50_ms=_alone(opened, asked, k),
        build_cpu_s=built,
        bytes=tuple(status.bytes for status in opened.status()),
    )


def _answers(opened: Shards, asked: Floats, k: int, exact: bool = False) -> tuple[list[list[int]], list[float]]:
    """Rows found by each query, and milliseconds of each."""
    rows, times = [], []
    for query in asked:
        started = time.perf_counter()
        hits = opened.search(query, k, exact=exact)
        times.append(1e3 * (time.perf_counter() - started))
        rows.append([int(hit.node.text.removeprefix("node ")) for hit in hits])
    return rows, times


def _same(found: Sequence[int], wanted: Sequence[int], query: Floats, vectors: Floats) -> bool:
    """The same rows up to ties within what half precision can tell apart."""
    return len(found) == len(wanted) and bool(
        np.allclose(vectors[list(found)] @ query, vectors[list(wanted)] @ query, atol=1e-3)
    )


def _alone(opened: Shards, asked: Floats, k: int) -> float:
    """Median milliseconds of one shard, asked by its own coordinator-less set of one."""
    shard = opened.shards.shards[0]
    query = SQL("SELECT * FROM memory.shard_nodes ORDER BY embedding <#> %s LIMIT %s")
    times = []
    with owner(shard.dsn) as connection:
        register_vector(connection)
        connection.execute("SET ROLE ruvllm_app")
        connection.execute("SELECT set_config('app.tenant', %s, false)", [TENANT])
        connection.execute("SET hnsw.iterative_scan = strict_order; SET enable_sort = off")
        connection.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(opened.shards.ef_search)])
        for vector in asked:
            started = time.perf_counter()
            connection.execute(query, [HalfVector(vector.astype(np.float16)), k]).fetchall()
            times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[min(20, len(times) - 1) :]))


def _text(row: int) -> str:
    return f"node {row}"


def _units(rows: NDArray[np.float64] | Floats) -> Floats:
    """Unit vectors that half precision holds."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(units.astype(np.float16), dtype=np.float32)
