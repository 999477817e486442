"""Search by SQL beside a search written out in numpy: every filter, k whenever k exist, no sequential scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as property_settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import KINDS, TRUSTS, NewNode, Vector
from ruvllm.memory.retrieval import fulltext, search
from ruvllm.memory.retrieval.rank import Ranking
from ruvllm.memory.store import Memory

T0 = datetime(2026, 1, 1, tzinfo=UTC)
RNG = np.random.default_rng(3)


def units(n: int) -> Vector:
    raw = RNG.normal(size=(n, 384)).astype(np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a memory was filled with, place by place."""

    memory: Memory
    ids: tuple[int, ...]
    nodes: tuple[NewNode, ...]
    vectors: Vector  # (n, d), as halfvec keeps them
    created: tuple[datetime, ...]

    def passes(self, filter: Filter) -> list[int]:
        """Places of the nodes that `filter` lets through, from its meaning alone."""
        return [i for i, node in enumerate(self.nodes) if _passes(filter, node, self.created[i])]

    def nearest(self, vector: Vector, k: int, filter: Filter) -> list[float]:
        wanted = np.asarray(vector, np.float16).astype(np.float32)
        return sorted((float(self.vectors[i] @ wanted) for i in self.passes(filter)), reverse=True)[:k]


def _passes(filter: Filter, node: NewNode, created: datetime) -> bool:
    return (
        (node.trust != "untrusted" or node.writer == filter.reader)
        and (not filter.kinds or node.kind in filter.kinds)
        and node.kind not in filter.exclude_kinds
        and (not filter.domains or node.domain in filter.domains)
        and set(filter.tags) <= set(node.tags)
        and (not filter.trusts or node.trust in filter.trusts)
        and (filter.since is None or created >= filter.since)
        and (filter.until is None or created < filter.until)
        and node.confidence >= np.float32(filter.min_confidence)
    )


def _made(i: int, vector: Vector) -> NewNode:
    return NewNode(
        f"text {i} about gold and cocoa",
        kind=KINDS[i % 3],
        domain=f"d{i % 7}",
        trust=TRUSTS[(i // 3) % 3],
        writer=("ann", "bob")[i % 2],
        tags=tuple({f"t{i % 5}", f"u{i % 3}"}) + (("rare",) if i == 77 else ()),
        confidence=round((i % 11) / 10, 2),
        embedding=vector,
    )


@pytest.fixture
def corpus(memory: Memory) -> Corpus:
    vectors = units(420)
    nodes = tuple(_made(i, vector) for i, vector in enumerate(vectors))
    ids = memory.add(nodes).ids
    created = tuple(T0 + timedelta(hours=i) for i in range(len(ids)))
    with memory.database.transaction() as connection:
        for id, when in zip(ids, created, strict=True):
            connection.execute("UPDATE memory.nodes SET created_at = %s WHERE id = %s", [when, id])
    halves = vectors.astype(np.float16).astype(np.float32)
    return Corpus(memory, ids, nodes, halves, created)


FILTERS = st.builds(
    Filter,
    kinds=st.sampled_from([(), ("Fact",), ("Query", "Document"), ("AgentStep", "Query")]),
    exclude_kinds=st.sampled_from([(), (), ("Query",)]),
    domains=st.sampled_from([(), (), ("d1",), ("d1", "d2", "d6"), ("nowhere",)]),
    tags=st.sampled_from([(), (), ("t1",), ("t1", "u2"), ("rare",), ("no such tag",)]),
    trusts=st.sampled_from([(), ("system",), ("system", "untrusted")]),
    since=st.sampled_from([None, T0 + timedelta(hours=100)]),
    until=st.sampled_from([None, T0 + timedelta(hours=300)]),
    min_confidence=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    reader=st.sampled_from(["", "ann", "eve"]),
)


@property_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filter=FILTERS, k=st.sampled_from([1, 10, 64, 1000]), seed=st.integers(0, 10**6))
def test_every_filter_means_what_it_says_and_k_come_where_k_exist(
    corpus: Corpus, filter: Filter, k: int, seed: int
) -> None:
    vector = np.random.default_rng(seed).normal(size=384).astype(np.float32)
    vector /= np.linalg.norm(vector)
    wanted, allowed = corpus.nearest(vector, k, filter), {corpus.ids[i] for i in corpus.passes(filter)}
    with corpus.memory.database.transaction() as connection:
        exact = search.search(connection, vector, k, filter, exact=True)
        near = search.search(connection, vector, k, filter)
        [batched] = search.search_batch(connection, vector[None], k, filter)
    assert_allclose(exact.similarities, wanted, atol=1e-3)
    assert set(exact.ids.tolist()) <= allowed
    for found in (near, batched):
        ids = found.ids.tolist()
        assert len(set(ids)) == len(ids) == len(wanted)
        assert set(ids) <= allowed
        assert (np.diff(found.similarities) <= 1e-6).all()
        assert np.isin(exact.ids, found.ids).mean() >= 0.6 if len(wanted) else True


@pytest.mark.parametrize(
    "filter",
    [
        Filter(),
        Filter(reader="ann"),
        Filter(kinds=("Fact",)),
        Filter(exclude_kinds=("Fact",), min_confidence=0.5),
        Filter(domains=("d1",), tags=("t1",)),
        Filter(domains=("nowhere",)),
        Filter(tags=("rare",)),
        Filter(trusts=("corroborated",), since=T0, until=T0 + timedelta(hours=5)),
    ],
)
def test_no_search_reads_a_whole_table(corpus: Corpus, filter: Filter) -> None:
    """Even where the planner has no statistics, and where the filter leaves less than k."""
    with corpus.memory.database.transaction() as connection:
        found = search.search(connection, units(1)[0], 300, filter)
        search.hits(connection, found)
        search.search_batch(connection, units(3), 300, filter)
        fulltext.search_words(connection, "cocoa and gold of text 77", 300, filter)
        scans = connection.execute(
            "SELECT relname, seq_scan FROM pg_stat_xact_all_tables WHERE schemaname = 'memory' AND seq_scan > 0"
        ).fetchall()
    assert [row for row in scans if row[0] in ("nodes", "node_texts", "node_words", "edges")] == []


def _plan(connection: Connection, filter: Filter) -> str:
    where, values = search.conditions(filter)
    values |= {"vector": search.rows.half(units(1)[0]), "k": 10}
    statement = search.SQL("EXPLAIN ") + search._SEARCH.format(where=where)
    return "\n".join(row[0] for row in connection.execute(statement, values))


def test_a_search_is_one_walk_of_the_vectors_index(corpus: Corpus) -> None:
    with corpus.memory.database.transaction() as connection:
        search._walk_index(connection, 10, None)
        for filter in (Filter(), Filter(kinds=("Fact",), domains=("d1",), tags=("t1",), since=T0, min_confidence=0.1)):
            assert "Index Scan using nodes_embedding" in _plan(connection, filter)


def test_k_come_even_when_the_walk_gives_up(corpus: Corpus) -> None:
    """As with a filter that lets one row in a million through."""
    filter = Filter(min_confidence=1.0, trusts=("corroborated",))
    assert 10 <= len(corpus.passes(filter)) < 20
    with corpus.memory.database.transaction() as connection:
        connection.execute("SET LOCAL hnsw.max_scan_tuples = 1")
        connection.execute("SET LOCAL hnsw.scan_mem_multiplier = 1")
        vector = units(1)[0]
        found = search.search(connection, vector, 10, filter)
        few = search.search_batch(connection, np.stack([vector, -vector]), 10, filter)
    assert_allclose(found.similarities, corpus.nearest(vector, 10, filter), atol=1e-3)
    assert [len(each.ids) for each in few] == [10, 10]


def test_a_small_tenant_in_a_large_table_finds_all_it_has(corpus: Corpus, settings, database_url: str) -> None:
    database = Database(database_url, tenant="small")
    small = Memory(database, corpus.memory.embedder, settings)
    ids = small.add([NewNode(f"mine {i}", tags=("t1",)) for i in range(5)]).ids
    vector = small.embedder.embed_one("mine 3")
    assert {hit.node.id for hit in small.search(vector, 300)} == set(ids)
    assert {hit.node.id for hit in small.search(vector, 300, filter=Filter(tags=("t1",)))} == set(ids)
    assert {hit.node.id for hit in small.search_words("mine text gold", 300)} == set(ids)
    assert corpus.memory.search_words("mine", 300) == []
    database.close()


@pytest.fixture
def stored(memory: Memory) -> Memory:
    memory.add([NewNode(f"the capital of country{i} is city{i}", tags=("geo",)) for i in range(80)])
    return memory


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.zeros(384, np.float32), "got length 0, want a unit vector"),
        (np.full(384, np.nan, np.float32), "got length nan"),
        (np.full(384, np.inf, np.float32), "got length inf"),
        (np.ones(383, np.float32), r"got shape \(383,\), want \(384,\) of encoder test-encoder"),
        (np.ones((1, 384), np.float32), r"got shape \(1, 384\)"),
    ],
)
def test_what_is_no_vector_is_refused_by_name(memory: Memory, broken: Vector, message: str) -> None:
    doors: list[Callable[[], object]] = [
        lambda: memory.search(broken, 1),
        lambda: memory.hybrid("x", 1, vector=broken),
        lambda: memory.concept_first(broken, 1),
    ]
    for door in doors:
        with pytest.raises(InputError, match=message):
            door()
    with pytest.raises(InputError, match="vector"):
        memory.search_batch(np.stack([broken]), 1)


@pytest.mark.parametrize("text", ["", "a\x00b", "a\ud800", "x" * 100_000_000])
def test_what_is_no_text_is_refused(memory: Memory, text: str) -> None:
    for door in (memory.search_text, memory.search_words, memory.hybrid):
        with pytest.raises(InputError, match="text: got"):
            door(text, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 1001}, "k: got 1001, want 1 to 1000"),
        ({"k": 1, "ef": 0}, "ef: got 0"),
        ({"k": 1, "budget_ms": 0.0}, "latency budget: got 0.0 ms"),
        ({"k": 1, "budget_ms": float("nan")}, "latency budget: got nan"),
        ({"k": 1, "reader": "ann", "filter": Filter()}, "inside the filter"),
    ],
)
def test_parameters_out_of_bounds_are_refused(memory: Memory, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        memory.search(units(1)[0], **arguments)  # type: ignore[arg-type]


def test_a_latency_budget_buys_ef_search(stored: Memory) -> None:
    budgets = [0.1, 1.6, 2.0, 4.0, 100.0]
    assert [search.ef_for(budget) for budget in budgets] == [32, 32, 64, 128, 256]
    vector = stored.embedder.embed_one("capital")
    with stored.database.transaction() as connection:
        search.search(connection, vector, 40, ef=search.ef_for(0.1))
        row = connection.execute("SELECT current_setting('hnsw.ef_search')").fetchone()
    assert row == ("40",)  # at least k
    assert len(stored.search(vector, 5, budget_ms=1.0)) == 5


def test_a_batch_finds_what_single_searches_find(stored: Memory) -> None:
    vectors = stored.embedder.embed([f"the capital of country{i}" for i in (3, 30, 3)])
    batch = stored.search_batch(vectors, 7)
    for vector, found in zip(vectors, batch, strict=True):
        assert [hit.node.id for hit in stored.search(vector, 7)] == found.ids.tolist()
    assert stored.search_batch(vectors[:0], 7) == []
    assert len(stored.search_batch(vectors, 500, Filter(tags=("geo",)))[0].ids) == 80
    with pytest.raises(InputError, match=r"vectors: got shape \(384,\)"):
        stored.search_batch(vectors[0], 7)


def test_vectors_come_in_the_order_asked_for(stored: Memory) -> None:
    [first, second] = [hit.node.id for hit in stored.search_text("capital of country3", 2)]
    assert_allclose(
        stored.vectors([second, first, second])[1], stored.search_text("capital of country3", 1)[0].embedding
    )
    assert stored.vectors([]).shape == (0, 384)
    with pytest.raises(InputError, match="node 999999999: memory holds no such node"):
        stored.vectors([999999999])


@pytest.fixture
def aged(memory: Memory) -> tuple[Memory, int, int]:
    """Two nodes of one text but for a word: an old one, used often, and a fresh one."""
    old, fresh = memory.add([NewNode("gold price rises in ghana"), NewNode("gold price rises in ghana today")]).ids
    with memory.database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET created_at = now() - interval '300 days' WHERE id = %s", [old])
    return memory, old, fresh


def test_freshness_and_use_rank_only_where_they_are_asked_for(aged: tuple[Memory, int, int]) -> None:
    memory, old, fresh = aged
    vector = memory.embedder.embed_one("gold price rises in ghana")
    assert [hit.node.id for hit in memory.search(vector, 2)] == [old, fresh]
    by_age = memory.search(vector, 2, ranking=Ranking(recency=1.0, half_life_days=30))
    assert [hit.node.id for hit in by_age] == [fresh, old]
    assert by_age[1].similarity > by_age[0].similarity  # still the cosine
    memory.touch([old, old])
    assert memory.search(vector, 1, ranking=Ranking(recency=1.0, strength=1.0))[0].node.id == old
    with pytest.raises(InputError, match="half-life over 0"):
        Ranking(half_life_days=0)


def test_the_ranking_is_the_formula() -> None:
    ranking = Ranking(recency=0.5, half_life_days=10, strength=0.25)
    got = ranking.scores(np.array([0.9, 0.1], np.float32), np.array([20.0, -3.0]), np.array([0.0, np.e - 1]))
    assert_allclose(got, [0.9 + 0.5 / 4, 0.1 + 0.5 + 0.25 * 0.5], rtol=1e-6)
