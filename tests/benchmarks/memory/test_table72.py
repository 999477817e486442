"""Specification 7.2 row by row: what each optimisation brings, what it costs, and whether it is on.

    python -m pytest -m benchmark tests/benchmarks/memory/test_table72.py --n 100000 --keep FOLDER

Graphs are faiss' at the band's M and efConstruction, single thread; edges and cache are memory's own.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from ruvllm.database.dsn import with_database
from ruvllm.memory import edges
from ruvllm.memory.records import Neighbourhood, Walk
from tests.benchmarks.memory import libraries
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.libraries import Library, rows_of
from tests.benchmarks.memory.loading import Loaded
from tests.benchmarks.memory.ours import Replica, SqlMemory, ef_of, memory_over, replica_folder
from tests.benchmarks.memory.report import Report
from tests.benchmarks.memory.timing import interleaved
from tests.benchmarks.memory.vectors import Corpus

pytestmark = pytest.mark.benchmark
GRAPH = "faiss-half"


def _kept(name: str, corpus: Corpus, options: Options) -> tuple[Library, libraries.Cost]:
    return libraries.kept(name, corpus, options.band, options.keep, options.build_threads)


# -- HNSW tuning


def test_ef_search(corpus: Corpus, options: Options, report: Report) -> None:
    graph, _ = _kept(GRAPH, corpus, options)
    rows = [_at(graph, corpus, ef) for ef in (32, 64, 128, 256)]
    report.table(
        "HNSW tuning: efSearch",
        ("efSearch", "k 10 p50 ms", "k 10 CPU ms", "recall@10", "k 64 p50 ms", "recall@64"),
        rows,
        "On: efSearch = max(k, what the latency budget allows, else the band's). A beam of 32 with k = 64 runs as 64.",
    )


def _at(graph: Library, corpus: Corpus, ef: int) -> tuple[Any, ...]:
    graph.width(ef)
    ten = interleaved({"ten": lambda i: graph.search(corpus.queries[i], 10)}, len(corpus.queries))["ten"]
    narrow = corpus.recall(rows_of(graph.search, corpus.queries, 10), 10)
    graph.width(max(ef, 64))
    wide = interleaved({"wide": lambda i: graph.search(corpus.queries[i], 64)}, len(corpus.queries))["wide"]
    recall = corpus.recall(rows_of(graph.search, corpus.queries, 64), 64)
    return (ef, ten.p(0.5), ten.cpu_ms, round(narrow, 4), wide.p(0.5), round(recall, 4))


# -- quantisation


def test_quantisation(corpus: Corpus, options: Options, report: Report) -> None:
    """Bytes a vector beside float32, and the recall that they cost, in the same graph."""
    dim = corpus.dim
    size = {"faiss": 4 * dim, GRAPH: 2 * dim, "faiss-byte": dim, "faiss-pq-2": dim // 2, "faiss-pq-4": dim // 4}
    graphs = {name: _kept(name, corpus, options) for name in [*size, "faiss-binary"]}
    for graph, _ in graphs.values():
        graph.width(ef_of(10, options.n))
    opened: dict[str, Any] = {name: graph for name, (graph, _) in graphs.items()}
    for name, wider in SECOND_LOOKS.items():
        opened[f"{name}{_AGAIN}{wider} k rows"] = libraries.SecondLook(graphs[name][0], corpus.vectors, wider)
    calls = {name: partial(_ask, graph, corpus) for name, graph in opened.items()}
    timings = interleaved(calls, len(corpus.queries))
    recalls = {name: corpus.recall(rows_of(graph.search, corpus.queries, 10), 10) for name, graph in opened.items()}
    rows = []
    for name in opened:
        storage = name.partition(_AGAIN)[0]
        bits, files = size.get(storage, dim // 8), graphs[storage][1].size_bytes
        loss = 1 - recalls[name] / recalls["faiss"]
        rows.append((name, bits, 4 * dim / bits, round(files / 1e6, 1), timings[name].p(0.5), timings[name].cpu_ms,
                     timings["faiss"].ratio(timings[name])[0], round(recalls[name], 4), f"{loss:.2%}"))  # fmt: skip
    columns = ("storage", "bytes a vector", "factor", "file MB", "p50 ms", "CPU ms", "speed-up", "recall@10", "lost")
    report.table("Quantisation", columns, rows, _QUANTISED)
    again = f"faiss-pq-2{_AGAIN}{SECOND_LOOKS['faiss-pq-2']} k rows"
    plain, looked = (1 - recalls[name] / recalls["faiss"] for name in ("faiss-pq-2", again))
    measured = f"8 x, {plain:.1%} lost; with a second look {looked:.2%}"
    report.target("7.2 product quantisation (off)", "4 to 8 x memory, < 5 % lost", measured, min(plain, looked) < 0.05)


_QUANTISED = (
    "Factor beside float32, without links; a second look ranks a multiple of k by exact halves, which stay on disk. "
    "`faiss-pq-2`, `-4`: product quantisation of two, four dimensions a byte. **On: half precision** (Postgres holds "
    "halves too) and, above a size, 8 bits with a second look. **Off: product quantisation**: it has to learn its "
    "codebooks before the first node and again when topics change, and the links (M 32: 260 bytes a node) then weigh "
    "more than the codes, so that it saves less of the whole than its factor says. Binary is for the warm tier."
)
_AGAIN = ", second look at "
SECOND_LOOKS = {"faiss-byte": 2, "faiss-pq-2": 4, "faiss-pq-4": 4, "faiss-binary": 8}  # times k


def _ask(graph: Library, corpus: Corpus, number: int) -> object:
    return graph.search(corpus.queries[number], 10)


# -- edges

_CUT = """
    UPDATE memory.adjacency AS a SET (neighbours, weights, relations) = (
        SELECT coalesce(array_agg(e.n ORDER BY e.place), '{}'), coalesce(array_agg(e.w ORDER BY e.place), '{}'),
               coalesce(array_agg(e.r ORDER BY e.place), '{}')
        FROM unnest(a.neighbours, a.weights, a.relations) WITH ORDINALITY AS e (n, w, r, place) WHERE e.w >= %s)
"""


def test_edge_pruning(loaded: Loaded, corpus: Corpus, options: Options, report: Report) -> None:
    """Packed rows without edges under a weight, in a copy of the database: what a walk gains, what it no longer finds.

    Weights are even over [0.2, 1], so the floor of 0.36 takes a fifth of the edges and 0.6 half of them.
    """
    seeds = [(near + 1).tolist() for near in corpus.truth[:200]]
    with _walker(loaded, 0.0) as whole, _walker(loaded, 0.36) as fifth, _walker(loaded, 0.6) as half:
        walkers = {"all": whole, "weight >= 0.36": fifth, "weight >= 0.6": half}
        calls = {name: partial(_walk, connection, seeds) for name, connection in walkers.items()}
        timings = interleaved(calls, len(seeds), 25)
        reached = {name: [call(i) for i in range(len(seeds))] for name, call in calls.items()}
    rows = [
        (name, timing.p(0.5), timings["all"].ratio(timing)[0], *_kept_of(reached["all"], reached[name]))
        for name, timing in timings.items()
    ]
    columns = ("edges", "two hops by SQL, p50 ms", "speed-up", "of the best 64 reached still", "of the 256")
    report.table("Graph pruning by edge weight", columns, rows, _PRUNING)
    _, _, faster, best, _ = rows[1]
    met = faster >= 1.2 and float(best.rstrip("%")) > 99
    report.target("7.2 a fifth of the edges pruned", "1.2 to 1.5 x, < 1 % lost", f"{faster:.2f} x, {best} kept", met)


_PRUNING = (
    "On in two ways: a walk goes out by the 32 heaviest edges of a node and from the 64 best nodes of a hop, and "
    "maintenance fades edges that are not used and removes what falls below 0.05. A higher floor, as here, is **off**: "
    "weights of real edges are not even over a range, and what a removed edge would have led to later is not measured."
)


@contextmanager
def _walker(loaded: Loaded, floor: float) -> Iterator[psycopg.Connection]:
    """A connection, as the application, to a copy of the database whose packed rows have no edge under `floor`."""
    name = loaded.dsn.partition("?")[0].rpartition("/")[2]
    copy = f"{name}_{int(floor * 100)}"
    admin = with_database(loaded.dsn, "postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {copy}")
        connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name} STRATEGY FILE_COPY")
    try:
        with psycopg.connect(with_database(loaded.dsn, copy), autocommit=True) as connection:
            _cut(connection, floor)
            connection.execute("SET ROLE ruvllm_app")
            connection.execute("SET app.tenant = 'default'")
            yield connection
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")


def _cut(connection: psycopg.Connection, floor: float) -> None:
    """Both packed again, so that only the edges differ, not how the rows lie."""
    connection.execute(_CUT, [floor])
    connection.execute("VACUUM FULL ANALYZE memory.adjacency")


def _walk(connection: psycopg.Connection, seeds: list[list[int]], number: int) -> Neighbourhood:
    with connection.transaction():
        return edges.walk(connection, seeds[number], Walk(hops=2, limit=256))


def _kept_of(before: list[Neighbourhood], now: list[Neighbourhood]) -> tuple[str, str]:
    """Of what was reached beyond the seeds, the best by score."""
    shares = []
    for count in (64, 256):
        kept = [len(np.intersect1d(_best(a, count), b.ids)) / max(1, len(_best(a, count)))
                for a, b in zip(before, now, strict=True)]  # fmt: skip
        shares.append(f"{np.mean(kept):.1%}")
    return shares[0], shares[1]


def _best(walked: Neighbourhood, count: int) -> NDArray[np.int64]:
    beyond = walked.hops > 0
    order = np.argsort(-walked.scores[beyond], kind="stable")[:count]
    return walked.ids[beyond][order]


# -- batches


def test_batch(loaded: Loaded, replica: Replica, corpus: Corpus, report: Report) -> None:
    """32 queries at once, in the replica and by SQL."""
    batches = [corpus.queries[start : start + 32] for start in range(0, len(corpus.queries) - 31, 32)]
    sql, plain = SqlMemory(loaded), replica.replica
    cores = os.cpu_count() or 1

    def in_process(number: int, threads: int) -> object:
        plain.options = dataclasses.replace(plain.options, batch_threads=threads)
        return plain.search_batch(batches[number], 10)

    calls: dict[str, Any] = {
        "replica, one by one": lambda i: [plain.search(query, 10) for query in batches[i]],
        "replica, one call": partial(in_process, threads=1),
        f"replica, one call, {cores} threads": partial(in_process, threads=cores),
        "SQL, one by one": lambda i: [sql.search(query, 10) for query in batches[i]],
        "SQL, one call": lambda i: sql.search_batch(batches[i], 10),
    }
    timings = interleaved(calls, len(batches), 8)
    sql.close()
    rows = []
    for name, timing in timings.items():
        first = f"{name.partition(',')[0]}, one by one"
        rows.append((name, timing.p(0.5), timings[first].ratio(timing)[0], f"{timing.load:.1f}"))
    columns = ("how", "p50 ms a batch", "speed-up", "load")
    report.table("Batch retrieval, 32 queries, k = 10", columns, rows, _BATCHES)
    for face in ("replica", "SQL"):
        most = max(row[2] for row in rows if row[0].startswith(face))
        report.target(f"7.2 batch retrieval, {face}", "2 to 3 x, nothing lost", f"{most:.2f} x", most >= 2)


_BATCHES = (
    "On: a batch is one call, as of one moment, and finds what single searches find. By SQL it saves round trips; in "
    "the replica `ReplicaOptions.batch_threads` says over how many threads: 1 unless set, for the cores serve others."
)


@pytest.fixture(scope="module")
def replica(loaded: Loaded, options: Options) -> Iterator[Replica]:
    opened = Replica(loaded, replica_folder(options.keep, loaded))
    yield opened
    opened.close()


# -- cache


def test_cache(replica: Replica, corpus: Corpus, report: Report) -> None:
    """5,000 searches as people repeat them (Zipf, exponent 1.1), whole hits, through memory's own cache."""
    memory = memory_over(replica.database, corpus.dim)
    memory.use_replica(replica.replica)
    drawn = np.random.default_rng(0).zipf(1.1, size=50_000) - 1
    asked = drawn[drawn < len(corpus.queries)][:5_000].tolist()
    seconds, was_hit, answers = [], [], {}
    for number in asked:
        hits = memory.reading.cache.hits
        started = time.perf_counter()
        found = memory.search(corpus.queries[number], 10)
        seconds.append(time.perf_counter() - started)
        was_hit.append(memory.reading.cache.hits > hits)
        answers.setdefault(number, []).append([hit.node.id for hit in found])
    fresh = {number: replica.replica.search(corpus.queries[number], 10).ids.tolist() for number in answers}
    lost = sum(row != fresh[number] for number, rows in answers.items() for row in rows)
    hit, times = np.array(was_hit), np.array(seconds) * 1e3
    report.table("Cache of searches (LRU + TTL)", ("what", "measured"), _cached(hit, times, lost), _CACHED)
    faster = float(np.median(times[~hit]) / np.median(times[hit]))
    measured = f"{faster:.1f} x, {lost} answers differ"
    report.target("7.2 cache, on a hit", "10 x, nothing lost", measured, faster >= 10 and not lost)


def _cached(hit: NDArray[np.bool_], times: NDArray[np.float64], lost: int) -> list[tuple[str, Any]]:
    found, missed = np.median(times[hit]), np.median(times[~hit])
    return [
        ("searches that were asked before and answered from the cache", f"{hit.mean():.1%}"),
        ("p50 of a hit, ms", float(found)),
        ("p50 of a miss, ms", float(missed)),
        ("speed-up of a hit", float(missed / found)),
        ("mean over all, ms", float(times.mean())),
        ("answers that differ from a fresh search", lost),
    ]


_CACHED = (
    "On, in front of the replica. The key holds how far the replica has read the change log, so that no answer from "
    "before a write that was seen is handed out again: nothing is lost, and a memory that is written to all the time "
    "has few hits."
)
