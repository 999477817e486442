"""Walks over packed rows against the same walk in plain Python; and edges that several transactions write at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError
from ruvllm.memory import edges
from ruvllm.memory.records import RELATIONS, Edge, Neighbourhood, NewNode, Walk
from ruvllm.memory.store import Memory

WEIGHTS = (0.25, 0.5, 0.5, 0.75, 1.0, 1e-40)  # ties, and one whose square is no float32


@dataclass
class Graph:
    """What a walk may look at, by place: places become ids when the graph is written."""

    edges: dict[tuple[int, int, str], float]  # in the order of their ids
    hidden: dict[int, str] = field(default_factory=dict)  # "" for archived, else the writer of an untrusted node

    def packed(self, node: int) -> list[tuple[int, str, float, bool]]:
        """(other end, relation, weight, whether `node` is src) of the 64 heaviest edges, ties in order of ids."""
        near = [(s, d, r, w) for (s, d, r), w in self.edges.items() if node in (s, d)]
        near.sort(key=lambda edge: -edge[3])
        return [(d if s == node else s, r, w, s == node) for s, d, r, w in near[:64]]

    def seen_by(self, node: int, reader: str) -> bool:
        return node not in self.hidden or (self.hidden[node] != "" and self.hidden[node] == reader)


def naive(graph: Graph, nodes: int, seeds: Sequence[int], how: Walk) -> tuple[list[tuple[int, int, float]], list[Edge]]:
    """Walk's docstring, word by word: [(node, hop, score)] and edges."""
    found: list[tuple[int, int, float]] = []
    met: set[Edge] = set()
    ways = {seed: 1.0 for seed in seeds}
    reached: set[int] = set()
    for hop in range(how.hops + 1):
        visible = [n for n in ways if 0 <= n < nodes and graph.seen_by(n, how.reader)]
        best = sorted(visible, key=lambda node: (-ways[node], node))
        found += [(node, hop, ways[node]) for node in best]
        reached |= ways.keys()
        onward: dict[int, float] = {}
        for node in best[: how.frontier] if hop < how.hops else ():
            wanted = [e for e in graph.packed(node) if not how.relations or e[1] in how.relations]
            for other, relation, weight, outward in wanted[: how.fan]:
                met.add((node, other, relation, weight) if outward else (other, node, relation, weight))
                if other not in reached:
                    onward[other] = max(onward.get(other, 0.0), ways[node] * weight)
        ways = onward
    found = found[: how.limit]
    kept = {node for node, _, _ in found}
    order = {relation: place for place, relation in enumerate(RELATIONS)}
    both = [edge for edge in met if edge[0] in kept and edge[1] in kept]
    return found, sorted(both, key=lambda edge: (-edge[3], edge[0], edge[1], order[edge[2]]))


def write(memory: Memory, graph: Graph, nodes: int) -> list[int]:
    """Ids by place, ascending."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(nodes, memory.embedder.dimension))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    trusts = ["untrusted" if graph.hidden.get(n) else "system" for n in range(nodes)]
    new = [
        NewNode(f"n{n}", trust=trusts[n], writer=graph.hidden.get(n, ""), embedding=vectors[n]) for n in range(nodes)
    ]
    ids = list(memory.add(new).ids)
    assert ids == sorted(ids)
    with memory.database.transaction() as connection:
        for (src, dst, relation), weight in graph.edges.items():
            assert edges.link(connection, [(ids[src], ids[dst], relation, weight)], "test") == 1
        archived = [ids[node] for node, writer in graph.hidden.items() if not writer]
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = ANY(%s)", [archived])
    return ids


def clear(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("DELETE FROM memory.nodes")


def check(memory: Memory, graph: Graph, ids: list[int], seeds: Sequence[int], how: Walk) -> None:
    with memory.database.transaction() as connection:
        got = edges.walk(connection, [ids[s] if s < len(ids) else 10**12 for s in seeds], how)
    nodes, met = naive(graph, len(ids), seeds, how)
    assert got.ids.tolist() == [ids[node] for node, _, _ in nodes]
    assert got.hops.tolist() == [hop for _, hop, _ in nodes]
    assert_allclose(got.scores, np.array([score for *_, score in nodes]).astype(np.float32), rtol=0)
    places = {id: place for place, id in enumerate(ids)}
    assert [(places[s], places[d], r, w) for s, d, r, w in got.edges] == met


NODES = 14
places = st.integers(0, NODES - 1)
graphs = st.builds(
    Graph,
    st.dictionaries(
        st.tuples(places, places, st.sampled_from(RELATIONS)).filter(lambda edge: edge[0] != edge[1]),
        st.sampled_from(WEIGHTS).map(lambda weight: float(np.float32(weight))),
        max_size=60,
    ),
    st.dictionaries(places, st.sampled_from(("", "ada", "bob")), max_size=5),
)
walks = st.builds(
    Walk,
    hops=st.integers(0, 4),
    fan=st.integers(1, 6),
    frontier=st.integers(1, 6),
    limit=st.integers(1, 20),
    relations=st.lists(st.sampled_from(RELATIONS), unique=True, max_size=3).map(tuple),
    reader=st.sampled_from(("", "ada", "bob")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    graph=graphs,
    asked=st.lists(st.tuples(st.lists(st.integers(0, NODES), max_size=9), walks), min_size=1, max_size=6),
)
def test_a_walk_is_what_its_record_says(memory: Memory, graph: Graph, asked: list[tuple[list[int], Walk]]) -> None:
    clear(memory.database)
    ids = write(memory, graph, NODES)
    for seeds, how in asked:
        check(memory, graph, ids, seeds, how)


def test_a_hub_is_walked_through_its_64_heaviest_edges(memory: Memory) -> None:
    graph = Graph({(0, n, "Cites") if n % 2 else (n, 0, "Follows"): n / 128 for n in range(1, 100)})
    ids = write(memory, graph, 100)
    for how in (Walk(fan=100, limit=300), Walk(fan=3), Walk(fan=40, relations=("Follows",)), Walk(hops=3, frontier=2)):
        check(memory, graph, ids, [0], how)
        check(memory, graph, ids, [1, 99, 99, 2], how)


def test_a_walk_stays_in_its_tenant(memory: Memory) -> None:
    graph = Graph({(0, 1, "Cites"): 1.0})
    ids = write(memory, graph, 2)
    with memory.database.transaction("other") as connection:
        found = edges.walk(connection, ids, Walk())
    assert (found.ids.size, found.edges) == (0, ())


@pytest.mark.parametrize(
    "wrong", [{"hops": 7}, {"hops": -1}, {"fan": 0}, {"frontier": 0}, {"limit": 0}, {"relations": ("Knows",)}]
)
def test_an_impossible_walk_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"walk {next(iter(wrong))}: got"):
        replace(Walk(), **wrong)  # type: ignore[arg-type]


def neighbourhood_of(database: Database, node: int) -> Neighbourhood:
    with database.transaction() as connection:
        return edges.walk(connection, [node], Walk(hops=1, fan=64))


def test_writers_at_one_node_lose_nothing(memory: Memory) -> None:
    hub, *spokes = memory.add([NewNode(f"node {n}") for n in range(41)]).ids

    def link(spoke: int) -> None:
        memory.link(*((hub, spoke) if spoke % 2 else (spoke, hub)), "Cites", 0.5, "test")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(link, spokes))
    assert sorted(neighbourhood_of(memory.database, hub).ids.tolist()) == sorted([hub, *spokes])


def test_the_same_edges_in_other_orders_end_in_no_deadlock(memory: Memory) -> None:
    ids = memory.add([NewNode(f"node {n}") for n in range(30)]).ids
    new: list[Edge] = [(src, dst, "Cites", 0.5) for src in ids for dst in ids[::3] if src != dst]
    orders = [new, new[::-1], new[1::2] + new[::2], new[::-2] + new[-2::-2]]
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda order: memory.link_all(order, "test"), orders))
    assert sum(written) == len(new)


def test_what_crosses_another_transaction_is_done_again(memory: Memory) -> None:
    """Both link one pair, then, once both have, the other's: Postgres ends one of them."""
    a, b, c, d = memory.add([NewNode(text) for text in "abcd"]).ids
    both = threading.Barrier(2)
    attempts: list[int] = []

    def work(pairs: list[tuple[int, int]]) -> int:
        first = True

        def twice(connection: psycopg.Connection) -> int:
            nonlocal first
            attempts.append(1)
            written = edges.link(connection, [(*pairs[0], "Cites", 0.5)], "test")
            if first:
                first = False
                both.wait(timeout=30)
            return written + edges.link(connection, [(*pairs[1], "Follows", 0.5)], "test")

        return memory.database.run(twice)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, ([(a, b), (c, d)], [(c, d), (a, b)]))) == [2, 2]
    assert len(attempts) == 3
    assert len(neighbourhood_of(memory.database, a).edges) == 2


def test_an_error_that_is_no_deadlock_is_told_at_once(memory: Memory) -> None:
    attempts: list[int] = []

    def work(connection: psycopg.Connection) -> None:
        attempts.append(1)
        connection.execute("SET LOCAL statement_timeout = 1")
        connection.execute("SELECT pg_sleep(10)")

    with pytest.raises(DatabaseError, match="statement timeout"):
        memory.database.run(work)
    assert len(attempts) == 1


def test_a_moved_edge_keeps_its_times(memory: Memory) -> None:
    """Else maintenance would take every edge of a merged node for one that was just used."""
    loser, heir, far, other = memory.add([NewNode(text) for text in ("loser", "heir", "far", "other")]).ids
    memory.link_all([(loser, far, "Cites", 0.5), (other, loser, "Cites", 0.5), (heir, far, "Cites", 0.4)], "test")
    with memory.database.transaction() as connection:
        connection.execute(
            "UPDATE memory.edges SET created_at = '2026-01-01Z', last_used_at = '2026-02-01Z' WHERE %s IN (src, dst)",
            [loser],
        )
        connection.execute("UPDATE memory.edges SET last_used_at = '2026-01-15Z' WHERE src = %s", [heir])
        edges.move(connection, loser, heir)
        moved = connection.execute(
            "SELECT src, dst, created_at = '2026-01-01Z', last_used_at = '2026-02-01Z' FROM memory.edges ORDER BY src"
        ).fetchall()
    assert moved == [(heir, far, True, True), (other, heir, True, True)]


def test_two_merges_into_one_heir_from_both_sides(memory: Memory) -> None:
    """`move` locks every packed row that it will change first, in order, so two of them take turns."""
    heir, left, right, *others = memory.add([NewNode(f"node {n}") for n in range(33)]).ids
    memory.link_all([(left, other, "Cites", 0.5) for other in others], "test")
    memory.link_all([(other, right, "Follows", 0.25) for other in reversed(others)], "test")

    def move(source: int) -> None:
        with memory.database.transaction() as connection:
            edges.move(connection, source, heir)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(move, (left, right)))
    found = neighbourhood_of(memory.database, heir)
    assert found.ids[0] == heir
    with memory.database.transaction() as connection:
        near = edges.neighbours(connection, [heir], Walk(hops=1, fan=64))
        rows = connection.execute("SELECT node, cardinality(neighbours) FROM memory.adjacency").fetchall()
    assert {(src, dst) for src, dst, *_ in near} == {(heir, o) for o in others} | {(o, heir) for o in others}
    assert {left: 0, right: 0, heir: 60}.items() <= dict(rows).items()
