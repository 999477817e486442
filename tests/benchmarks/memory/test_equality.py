"""Replica and pgvector answer alike: random filtered searches while others write, each pair under one snapshot.

    python -m pytest -m benchmark tests/benchmarks/memory/test_equality.py --n 10000 --keep FOLDER

Each search exports Postgres' snapshot, lets the replica follow to exactly that, and asks both, exactly and
approximately. Half-way the replica changes over to a new base. An exact scan by SQL is most of what this costs: some
5 ms a search at 10,000 nodes, 60 ms at 100,000.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.memory import hnsw
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import KINDS, TRUSTS, Found
from ruvllm.memory.replica import Replica, ReplicaOptions, source
from ruvllm.memory.retrieval import search
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.loading import server
from tests.benchmarks.memory.report import Report
from tests.benchmarks.memory.vectors import Corpus

pytestmark = pytest.mark.benchmark
SEARCHES = 10_000
KS = (1, 10, 64)
TIE = 1e-3  # what half precision and two orders of addition can differ by
DOMAINS = tuple(f"domain{i}" for i in range(20))
TAGS = tuple(f"tag{i}" for i in range(40))
WRITERS = ("", "eve", "bob")
START = datetime(2026, 1, 1, tzinfo=UTC)
# a new base only when this says so: the builder's would be of a later snapshot than the one under test
OPTIONS = ReplicaOptions(poll_s=0, max_staleness_s=3600, rebuild_least=10**9, rebuild_most=10**9, words=False)


def random_row(random: np.random.Generator) -> tuple[object, ...]:
    """kind, domain, trust, confidence, created_at, writer, tags; some of each are rare."""
    rank = int(min(random.zipf(1.5), len(DOMAINS))) - 1
    tags = [tag for tag in (TAGS[int(min(random.zipf(1.3), len(TAGS))) - 1] for _ in range(int(random.integers(4))))]
    trust = str(random.choice(TRUSTS, p=[0.7, 0.2, 0.1]))
    created = START + timedelta(minutes=int(random.integers(43_200)))
    kind, confidence, writer = str(random.choice(KINDS)), float(random.random()), str(random.choice(WRITERS))
    return kind, DOMAINS[rank], trust, confidence, created, writer, sorted(set(tags))


def random_filter(random: np.random.Generator) -> Filter:
    """Each condition one time in four: from everything down to nothing passes."""

    def some(values: tuple[str, ...], most: int) -> tuple[str, ...]:
        if random.random() > 0.25:
            return ()
        return tuple(random.choice(values, int(random.integers(1, most + 1)), replace=False).tolist())

    days = np.sort(random.integers(0, 31, 2)).tolist()
    return Filter(
        kinds=some(KINDS, 3),
        exclude_kinds=some(KINDS, 2),
        domains=some(DOMAINS, 3),
        tags=some(TAGS, 2),
        trusts=some(TRUSTS, 2),
        since=START + timedelta(days=days[0]) if random.random() < 0.25 else None,
        until=START + timedelta(days=days[1]) if random.random() < 0.25 else None,
        min_confidence=float(random.random()) if random.random() < 0.25 else 0.0,
        reader=str(random.choice([*WRITERS, "stranger"])),
    )


def insert(connection: psycopg.Connection, vector: NDArray[np.float16], random: np.random.Generator) -> None:
    kind, domain, trust, confidence, created, writer, tags = random_row(random)
    connection.execute(
        "WITH node AS (INSERT INTO memory.nodes"
        " (tenant, kind, domain, trust, content_hash, embedding, confidence, created_at)"
        " VALUES ('default', %s, %s, %s, %s, %s, %s, %s) RETURNING id, tenant)"
        " INSERT INTO memory.node_texts (node, tenant, text, source, writer, tags, metadata)"
        " SELECT id, tenant, 'text', '', %s, %s, %s FROM node",
        [kind, domain, trust, random.bytes(32), HalfVector(vector), confidence, created, writer, tags, Jsonb({})],
    )


@pytest.fixture
def filled(options: Options, corpus: Corpus) -> Iterator[Database]:
    """`--n` nodes with something to filter by; made anew, for the writers change them."""
    with server(options.keep / "equality", corpus) as postgres:
        name = f"equality_{hashlib.sha256(corpus.name.encode()).hexdigest()[:12]}"
        admin = postgres.create_database("postgres")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        dsn = postgres.create_database(name)
        upgrade(dsn, "equality", corpus.dim)
        with psycopg.connect(dsn) as connection:
            register_vector(connection)
            connection.execute("SELECT set_config('app.tenant', 'default', false)")
            random = np.random.default_rng(0)
            for vector in corpus.vectors:
                insert(connection, np.asarray(vector), random)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE memory.nodes")
            connection.execute("VACUUM ANALYZE memory.node_texts")
        database = Database(dsn)
        yield database
        database.close()


class Writers:
    """Two threads that insert, archive, bring back and change nodes, as fast as they can."""

    def __init__(self, database: Database, corpus: Corpus) -> None:
        self._database, self._corpus, self._stop = database, corpus, threading.Event()
        self.writes = 0
        self._failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in (1, 2)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._failures == []

    def _run(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            while not self._stop.wait(0.01):  # or two cores do nothing else
                with self._database.transaction() as connection:
                    self._write(connection, random)
                self.writes += 1
        except Exception as error:
            self._failures.append(error)

    def _write(self, connection: psycopg.Connection, random: np.random.Generator) -> None:
        if random.random() < 0.5:
            base = np.asarray(self._corpus.vectors[random.integers(self._corpus.n)], dtype=np.float32)
            moved = base + 0.05 * random.standard_normal(self._corpus.dim).astype(np.float32)
            insert(connection, (moved / np.linalg.norm(moved)).astype(np.float16), random)
            return
        change = (
            "archived_at = CASE WHEN archived_at IS NULL THEN now() END",
            "confidence = random(), trust = 'system'",
        )
        node = int(random.integers(1, self._corpus.n + 1))
        connection.execute(f"UPDATE memory.nodes SET {change[int(random.integers(2))]} WHERE id = %s", [node])


@dataclass
class Tally:
    """Over all searches."""

    unequal: list[str] = field(default_factory=list)
    short: int = 0  # approximate answers with fewer than k where k exist
    replica: list[float] = field(default_factory=list)  # recall of each approximate answer, ties counted
    postgres: list[float] = field(default_factory=list)


def test_equality(filled: Database, corpus: Corpus, options: Options, report: Report, tmp_path: Path) -> None:
    replica, tally, random = Replica.open(filled, tmp_path, OPTIONS), Tally(), np.random.default_rng(9)
    with Writers(filled, corpus) as writers:
        for i in range(SEARCHES):
            if i == SEARCHES // 2:
                replica.rebuild()
            vector, k = corpus.queries[i % len(corpus.queries)], int(random.choice(KS))
            compare(filled, replica, vector, k, random_filter(random), corpus.n, tally)
    state = replica.state
    replica.close()
    ours, theirs = float(np.mean(tally.replica)), float(np.mean(tally.postgres))
    report.table(
        "Replica beside pgvector",
        (
            "searches",
            "writes meanwhile",
            "unequal in exact mode",
            "short answers",
            "recall, replica",
            "recall, pgvector",
        ),
        [(SEARCHES, writers.writes, len(tally.unequal), tally.short, ours, theirs)],
        f"k of {KS}, filters that pass from everything to nothing; at the end {state.delta:,} rows of delta and "
        f"{state.tombstones:,} tombstones. First unequal: {tally.unequal[:1] or 'none'}.",
    )
    report.target(
        "exact mode, same ids up to ties within 1e-3", "0 unequal", str(len(tally.unequal)), not tally.unequal
    )
    close = ours >= theirs - 0.01
    report.target("mean approximate recall, replica below pgvector by", "<= 0.01", f"{theirs - ours:+.4f}", close)
    assert not tally.unequal
    assert tally.short == 0
    assert close


def compare(
    database: Database, replica: Replica, vector: NDArray[np.float32], k: int, wanted: Filter, n: int, tally: Tally
) -> None:
    with source.snapshot(database) as connection:
        (exported,) = connection.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
        replica.follow(exported)
        truth = search.search(connection, vector, k, wanted, exact=True)
        near = search.search(connection, vector, k, wanted, hnsw.ef_search(k, n))
    exact, found = replica.search(vector, k, wanted, exact=True), replica.search(vector, k, wanted)
    if (why := difference(exact, truth)) is not None:
        tally.unequal.append(f"{wanted}, k {k}: {why}")
    tally.short += len(found.ids) != len(truth.ids)
    if len(truth.ids):
        tally.replica.append(recall(found, truth))
        tally.postgres.append(recall(near, truth))


def difference(ours: Found, theirs: Found) -> str | None:
    """Why two exact answers differ by more than ties do; None where they do not."""
    if len(ours.ids) != len(theirs.ids):
        return f"{len(ours.ids)} nodes and {len(theirs.ids)}"
    if not np.allclose(ours.similarities, theirs.similarities, atol=TIE):
        return f"similarities {ours.similarities} and {theirs.similarities}"
    for one, other in ((ours, theirs), (theirs, ours)):
        sure = one.ids[one.similarities > one.similarities.min(initial=2) + TIE]
        if missing := set(sure.tolist()) - set(other.ids.tolist()):
            return f"ids {sorted(missing)[:5]} are in one alone"
    return None


def recall(found: Found, truth: Found) -> float:
    """Share of the k places that were filled with something as near as the k-th nearest."""
    return float(np.sum(found.similarities >= truth.similarities[-1] - 1e-5)) / len(truth.ids)
