"""The replica and Postgres agree: on searches with any filter under one exported snapshot, and on walks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from replica_nodes import ALONE, archive, insert, link, node, units

from ruvllm.database.pool import Database
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import KINDS, RELATIONS, TRUSTS, Edge, Walk
from ruvllm.memory.replica import Replica, source
from ruvllm.memory.replica.columns import Places
from ruvllm.memory.rows import half

DOMAINS, TAGS, WRITERS = ("", "law", "art"), ("a", "b", "c"), ("", "eve", "bob")
START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 400

EXACT = """
    SELECT n.id, -(n.embedding <#> %(vector)s) FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL AND (n.trust <> 'untrusted' OR t.writer = %(reader)s)
      AND (%(kinds)s::text[] = '{}' OR n.kind = ANY(%(kinds)s)) AND n.kind <> ALL(%(exclude_kinds)s)
      AND (%(domains)s::text[] = '{}' OR n.domain = ANY(%(domains)s))
      AND (%(trusts)s::text[] = '{}' OR n.trust = ANY(%(trusts)s)) AND t.tags @> %(tags)s::text[]
      AND (%(since)s::timestamptz IS NULL OR n.created_at >= %(since)s)
      AND (%(until)s::timestamptz IS NULL OR n.created_at < %(until)s) AND n.confidence >= %(min_confidence)s::real
    ORDER BY (n.embedding <#> %(vector)s) + 0 LIMIT %(k)s
"""  # + 0: no index, so exact


def drawn(random: np.random.Generator, vector: np.ndarray) -> dict[str, object]:
    return {
        "kind": str(random.choice(KINDS)),
        "domain": str(random.choice(DOMAINS)),
        "trust": str(random.choice(TRUSTS)),
        "writer": str(random.choice(WRITERS)),
        "tags": tuple(tag for tag in TAGS if random.random() < 0.4),
        "confidence": float(random.choice([0.0, 0.3, 0.7, 1.0])),
        "embedding": vector,
    }


def topical(rows: int, seed: int) -> np.ndarray:
    """(rows, 384) in twelve clusters, some vectors twice: ties are ordinary."""
    random = np.random.default_rng(seed)
    rows_of = units(12, seed=1)[random.integers(12, size=rows)] + 0.7 * units(rows, seed=seed + 2)
    rows_of /= np.linalg.norm(rows_of, axis=1, keepdims=True)
    rows_of[1::10] = rows_of[::10]
    return rows_of.astype(np.float16).astype(np.float32)


@pytest.fixture
def filled(database: Database) -> Database:
    random = np.random.default_rng(0)
    for day in range(4):
        nodes = [node(v, **drawn(random, v)) for v in topical(ROWS // 4, seed=day)]
        with database.transaction() as connection:
            insert(connection, nodes, START + timedelta(days=day))
    return database


filters = st.builds(
    Filter,
    kinds=st.lists(st.sampled_from(KINDS), max_size=2, unique=True).map(tuple),
    exclude_kinds=st.lists(st.sampled_from(KINDS), max_size=1).map(tuple),
    domains=st.lists(st.sampled_from((*DOMAINS, "unknown")), max_size=2, unique=True).map(tuple),
    tags=st.lists(st.sampled_from((*TAGS, "unknown")), max_size=2, unique=True).map(tuple),
    trusts=st.lists(st.sampled_from(TRUSTS), max_size=2, unique=True).map(tuple),
    since=st.none() | st.integers(0, 3).map(lambda day: START + timedelta(days=day)),
    until=st.none() | st.integers(1, 4).map(lambda day: START + timedelta(days=day)),
    min_confidence=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    reader=st.sampled_from((*WRITERS, "stranger")),
)


class Writers:
    """Two threads that insert, change, archive and delete until they are stopped."""

    def __init__(self, database: Database) -> None:
        self._database, self._stop = database, threading.Event()
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
            while not self._stop.is_set():
                with self._database.transaction() as connection:
                    self._write(connection, random)
        except Exception as error:
            self._failures.append(error)

    def _write(self, connection: Connection, random: np.random.Generator) -> None:
        (vector,) = topical(1, seed=int(random.integers(1 << 30)))
        insert(connection, [node(vector, **drawn(random, vector))], START + timedelta(hours=int(random.integers(96))))
        # one row: two that are locked in two orders by two writers would be a deadlock
        for change in (
            "archived_at = CASE WHEN archived_at IS NULL THEN now() END",
            f"trust = '{random.choice(TRUSTS)}', confidence = 0.7",
            "embedding = (SELECT embedding FROM memory.nodes ORDER BY random() LIMIT 1)",
        )[int(random.integers(4)) :][:1]:
            connection.execute(
                f"UPDATE memory.nodes SET {change} WHERE id = (SELECT id FROM memory.nodes ORDER BY random() LIMIT 1)"
            )


@pytest.fixture
def replica(filled: Database, tmp_path: Path) -> Iterator[Replica]:
    opened = Replica.open(filled, tmp_path / "replica", ALONE)
    yield opened
    opened.close()


def in_postgres(connection: Connection, vector: np.ndarray, k: int, wanted: Filter) -> list[tuple[int, float]]:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(wanted).items()}
    return connection.execute(EXACT, {**values, "vector": half(vector), "k": k}).fetchall()


def assert_equal_up_to_ties(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> None:
    """Same similarities place by place; the same ids but for those within 1e-3 of the last one."""
    assert len(ours) == len(theirs)
    assert np.allclose([s for _, s in ours], [s for _, s in theirs], atol=1e-3)
    edge = (theirs[-1][1] if theirs else 0) + 1e-3
    assert {id for id, s in theirs if s > edge} <= {id for id, _ in ours}
    assert {id for id, s in ours if s > edge} <= {id for id, _ in theirs}


def test_exact_mode_equals_postgres_under_one_snapshot_while_others_write(filled: Database, replica: Replica) -> None:
    vectors = topical(50, seed=99)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(wanted=filters, k=st.sampled_from([1, 7, 64, 500]), query=st.integers(0, 49))
    def check(wanted: Filter, k: int, query: int) -> None:
        with source.snapshot(filled) as connection:
            (exported,) = connection.execute("SELECT pg_export_snapshot()").fetchone()
            replica.follow(exported)
            found = replica.search(vectors[query], k, wanted, exact=True)
            theirs = in_postgres(connection, vectors[query], k, wanted)
        assert_equal_up_to_ties(list(zip(found.ids.tolist(), found.similarities.tolist(), strict=True)), theirs)
        near = replica.search(vectors[query], k, wanted)
        assert len(near.ids) == len(theirs)  # always k where there are k

    with Writers(filled):
        check()
    assert replica.state.delta > 0


def test_approximate_mode_finds_what_exact_mode_finds(replica: Replica) -> None:
    random, recalls = np.random.default_rng(5), []
    vectors = topical(200, seed=77)
    for vector in vectors:
        wanted = Filter(kinds=tuple(random.choice(KINDS, int(random.integers(3)), replace=False).tolist()))
        exact = replica.search(vector, 10, wanted, exact=True)
        found = replica.search(vector, 10, wanted)
        recalls.append(np.mean(found.similarities >= exact.similarities[-1] - 1e-4))  # of ties any will do
    assert np.mean(recalls) >= 0.99


def test_a_batch_gives_what_single_searches_give(replica: Replica) -> None:
    vectors, wanted = topical(20, seed=3), Filter(exclude_kinds=("Fact",), reader="eve")
    for vector, batched in zip(vectors, replica.search_batch(vectors, 12, wanted), strict=True):
        single = replica.search(vector, 12, wanted)
        assert np.allclose(single.similarities, batched.similarities)


def test_a_filter_that_one_row_passes_finds_it(filled: Database, replica: Replica) -> None:
    (vector,) = units(1, seed=1234)
    with filled.transaction() as connection:
        (only,) = insert(connection, [node(vector, tags=("rare",))])
    replica.follow()
    for query in topical(5, seed=8):
        assert replica.search(query, 10, Filter(tags=("rare",))).ids.tolist() == [only]
    replica.rebuild()  # now it is in the graph
    for query in topical(5, seed=8):
        assert replica.search(query, 10, Filter(tags=("rare",))).ids.tolist() == [only]
        assert replica.search(query, 10, Filter(tags=("rare", "a"))).ids.tolist() == []


# -- walks


def naive_walk(connection: Connection, seeds: list[int], walk: Walk) -> tuple[list[tuple[int, int, float]], list[Edge]]:
    """Walk's docstring in loops, over memory.adjacency as it is."""
    rows = {
        id: list(zip(far, weight, relation, strict=True))
        for id, far, weight, relation in connection.execute(
            "SELECT node, neighbours, weights, relations FROM memory.adjacency"
        )
    }
    seen = {
        id
        for (id,) in connection.execute(
            "SELECT n.id FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id"
            " WHERE archived_at IS NULL AND (trust <> 'untrusted' OR writer = %s)",
            [walk.reader],
        )
    }
    reached = {seed: (0, 1.0) for seed in seeds if seed in seen}
    last, met = dict(reached), set()
    for hop in range(1, walk.hops + 1):
        frontier = sorted(last, key=lambda id: (-last[id][1], id))[: walk.frontier]
        last = {}
        for near in frontier:
            wanted = [e for e in rows.get(near, []) if not walk.relations or RELATIONS[abs(e[2]) - 1] in walk.relations]
            for far, weight, relation in wanted[: walk.fan]:
                if far not in seen:
                    continue
                ends = (near, far) if relation > 0 else (far, near)
                met.add((*ends, abs(relation), weight))
                if far not in reached:
                    way = reached[near][1] * weight
                    last[far] = (hop, max(way, last.get(far, (hop, -1.0))[1]))
        reached |= last
    kept = sorted(reached, key=lambda id: (reached[id][0], -reached[id][1], id))[: walk.limit]
    edges = sorted((e for e in met if {e[0], e[1]} <= set(kept)), key=lambda e: (-e[3], *e[:3]))
    return [(id, *reached[id]) for id in kept], [(src, dst, RELATIONS[r - 1], w) for src, dst, r, w in edges]


@pytest.fixture
def linked(filled: Database) -> tuple[Database, list[int]]:
    """Edges with many equal weights, zeros among them, and a hub."""
    with filled.transaction() as connection:
        ids = [id for (id,) in connection.execute("SELECT id FROM memory.nodes ORDER BY id")]
        random, made = np.random.default_rng(3), {}
        for _ in range(1500):
            src, dst = random.choice(ids[:150], 2, replace=False).tolist()
            src = ids[0] if random.random() < 0.05 else src
            if src != dst:
                made[src, dst, str(random.choice(RELATIONS))] = float(random.choice([0.0, 0.25, 0.5, 0.5, 1.0]))
        link(connection, [(*ends, weight) for ends, weight in made.items()])
        archive(connection, ids[5:15])
    return filled, ids


walks = st.builds(
    Walk,
    hops=st.integers(0, 3),
    fan=st.integers(1, 40),
    frontier=st.integers(1, 70),
    limit=st.integers(1, 120),
    relations=st.lists(st.sampled_from(RELATIONS), max_size=3, unique=True).map(tuple),
    reader=st.sampled_from(WRITERS),
)


def test_a_walk_is_what_its_description_says(linked: tuple[Database, list[int]], open_replica: Callable) -> None:
    database, ids = linked
    replica = open_replica()
    with database.transaction() as connection:  # some rows after the base: both kinds of row are walked
        connection.execute("DELETE FROM memory.edges WHERE src = %s", [ids[30]])
        link(connection, [(ids[31], ids[300], "Cites", 0.5), (ids[300], ids[32], "Follows", 0.75)])
        archive(connection, ids[40:43])
    replica.follow()

    @settings(max_examples=100, deadline=None)
    @given(walk=walks, seeds=st.lists(st.sampled_from([*ids[:160], 10**9]), max_size=20))
    def check(walk: Walk, seeds: list[int]) -> None:
        with database.transaction() as connection:
            nodes, edges = naive_walk(connection, seeds, walk)
        found = replica.walk(seeds, walk)
        assert found.ids.tolist() == [id for id, _, _ in nodes]
        assert found.hops.tolist() == [hop for _, hop, _ in nodes]
        assert np.allclose(found.scores, [score for _, _, score in nodes])
        assert list(found.edges) == edges

    check()


def test_a_walk_in_sql_is_the_same_walk(linked: tuple[Database, list[int]], open_replica: Callable) -> None:
    edges = pytest.importorskip("ruvllm.memory.edges")
    if not hasattr(edges, "walk"):
        pytest.skip("edges.walk is not written yet")
    database, ids = linked
    replica = open_replica()

    @settings(max_examples=40, deadline=None)
    @given(walk=walks, seeds=st.lists(st.sampled_from([*ids[:160], 10**9]), max_size=20))
    def check(walk: Walk, seeds: list[int]) -> None:
        with database.transaction() as connection:
            sql = edges.walk(connection, seeds, walk)
        found = replica.walk(seeds, walk)
        assert found.ids.tolist() == sql.ids.tolist()
        assert found.hops.tolist() == sql.hops.tolist()
        assert np.allclose(found.scores, sql.scores)
        assert found.edges == sql.edges

    check()


def test_columns_and_vectors_are_those_of_the_nodes(linked: tuple[Database, list[int]], open_replica: Callable) -> None:
    """Of the base, of what came after it and of what was changed; archived and unknown ones are left out alike."""
    database, ids = linked
    replica = open_replica()
    with database.transaction() as connection:
        added = insert(connection, [node(units(1, seed=9)[0], domain="a new domain", confidence=0.25)], START)
        connection.execute(
            "UPDATE memory.nodes SET domain = 'another', embedding = %s::real[]::halfvec WHERE id = %s",
            [units(1, seed=10)[0].tolist(), ids[20]],
        )
        archive(connection, ids[30:33])
    replica.follow()
    asked = [added[0], 10**9, *ids[60:0:-1]]
    nodes, columns = replica.nodes(asked), replica.columns(np.array(asked))
    assert columns.ids.tolist() == [each.id for each in nodes]
    assert [KINDS[code] for code in columns.kind] == [each.kind for each in nodes]
    assert [TRUSTS[code] for code in columns.trust] == [each.trust for each in nodes]
    assert [columns.domains[code] for code in columns.domain] == [each.domain for each in nodes]
    assert np.allclose(columns.confidence, [each.confidence for each in nodes])
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT id, created_at, embedding FROM memory.nodes WHERE id = ANY(%s)", [columns.ids.tolist()]
        ).fetchall()
    created, vectors = {row[0]: row[1] for row in rows}, {row[0]: row[2].to_numpy() for row in rows}
    since = datetime(1970, 1, 1, tzinfo=UTC)
    assert [since + timedelta(microseconds=us) for us in columns.created.tolist()] == [created[i] for i in columns.ids]
    assert np.array_equal(replica.vectors(columns.ids), np.array([vectors[i] for i in columns.ids], dtype=np.float32))


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.one_of(st.just(0), st.integers(1, 60), st.integers(1, 2**62)), max_size=30),
    wanted=st.lists(st.one_of(st.integers(-5, 70), st.integers(-(2**62), 2**62)), max_size=30),
)
def test_ids_are_found_where_they_stand(ids: list[int], wanted: list[int]) -> None:
    """Ids that lie close together and ids that do not; 0 stands nowhere."""
    ids = [id for place, id in enumerate(ids) if id == 0 or id not in ids[:place]]
    wanted = [*wanted, *ids, 0]
    found = Places(np.array(ids, dtype=np.int64)).find(np.array(wanted, dtype=np.int64))
    assert found.tolist() == [ids.index(id) if id > 0 and id in ids else -1 for id in wanted]
