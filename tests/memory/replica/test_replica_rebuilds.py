"""A new base takes the old one's place while searches go on; threads, int8, and what the log cannot bridge."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replica_nodes import ALONE, Written, archive, insert, node, units

from ruvllm.errors import ReplicaUnavailable
from ruvllm.memory.filters import Filter
from ruvllm.memory.replica import Replica, graph, options
from ruvllm.memory.replica.graph import Allowed, Graph, Shape
from ruvllm.progress import silent

Open = Callable[..., Replica]
SMALL = replace(ALONE, rebuild_least=5, rebuild_most=5)


def test_a_delta_that_outgrew_its_base_becomes_a_new_one(written: Written, open_replica: Open) -> None:
    replica, vectors = open_replica(SMALL), units(6, seed=1)
    old = replica._view.base
    with written.database.transaction() as connection:
        ids = insert(connection, [node(vector) for vector in vectors])
        archive(connection, written.ids[:3])
    replica.follow()
    replica._builder.join()
    assert replica._view.base.path != old.path
    assert (replica.state.nodes, replica.state.delta) == (303, 0)
    for id, vector in zip(ids, vectors, strict=True):
        assert replica.search(vector, 1).ids.tolist() == [id]
    # what the old graph held was not linked again: it is still there, row by row, the dead ones as holes
    assert np.array_equal(replica._view.base.graph.halves[:300], old.graph.halves)
    assert replica._view.base.graph.n == 306
    assert set(replica.search(vectors[0], 1000, exact=True).ids) == {*written.ids[3:], *ids}
    assert [n.id for n in replica.nodes([*written.ids, *ids])] == [*written.ids[3:], *ids]


def test_a_base_full_of_holes_is_linked_anew(written: Written, open_replica: Open) -> None:
    replica = open_replica()
    with written.database.transaction() as connection:
        archive(connection, written.ids[:100])
    replica.follow()
    replica.rebuild()
    assert (replica._view.base.graph.n, replica.state.tombstones) == (200, 0)


def test_a_replaced_vector_leaves_no_second_answer_after_a_rebuild(written: Written, open_replica: Open) -> None:
    replica, (first, second) = open_replica(), units(2, seed=2)
    for vector in (first, second):
        with written.database.transaction() as connection:
            connection.execute(
                "UPDATE memory.nodes SET embedding = %s::real[]::halfvec WHERE id = %s",
                [vector.tolist(), written.ids[0]],
            )
        replica.follow()
    for _ in range(2):
        everything = replica.search(first, 1000, exact=True)
        assert sorted(everything.ids.tolist()) == written.ids
        at = everything.ids.tolist().index(written.ids[0])
        assert everything.similarities[at] == pytest.approx(float(first @ second), abs=1e-3)
        assert np.array_equal(replica.vectors([written.ids[0]])[0], second)
        replica.rebuild()


def test_searches_go_on_while_it_follows_and_rebuilds(written: Written, open_replica: Open) -> None:
    """Four threads ask for nodes that nobody touches, and always find them first."""
    replica, stop, failures = open_replica(), threading.Event(), []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        while not stop.is_set():
            place = int(random.integers(150, 300))
            found = replica.search(written.vectors[place], 10, Filter(kinds=("Document",)))
            if found.ids[0] != written.ids[place] or len(set(found.ids.tolist())) != 10:
                failures.append((place, found))
            if len(replica.nodes(found.ids.tolist())) < 5:
                failures.append((place, "nodes"))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for step in range(12):
            with written.database.transaction() as connection:
                insert(connection, [node(vector) for vector in units(3, seed=100 + step)])
                archive(connection, written.ids[step * 5 : step * 5 + 5])
            replica.follow()
            if step % 4 == 3:
                replica.rebuild()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert replica.state.nodes == 300 + 36 - 60


def test_another_server_behind_the_same_name_is_noticed(written: Written, open_replica: Open) -> None:
    """As after a restore from a backup: a log of another id."""
    replica = open_replica()
    with written.database.transaction() as connection:
        connection.execute("RESET ROLE")
        connection.execute("UPDATE memory.change_log SET id = gen_random_uuid()")
        insert(connection, [node(units(1, seed=3)[0])])
    with pytest.raises(ReplicaUnavailable, match="its log is"):
        replica.follow()
    replica._builder.join()
    assert (replica.state.ready, replica.state.nodes) == (True, 301)


def test_an_encoder_that_was_changed_is_noticed(written: Written, open_replica: Open) -> None:
    replica = open_replica()
    with written.database.transaction() as connection:
        connection.execute("RESET ROLE")
        connection.execute("UPDATE memory.encoder SET id = 'newer'")
    with pytest.raises(ReplicaUnavailable, match="its encoder is 'test-encoder', want 'newer'"):
        replica.follow()


@pytest.mark.parametrize("kind", ["fp16", "8bit"])
def test_a_grown_graph_finds_what_a_scan_finds(tmp_path: Path, kind: str) -> None:
    vectors, shape = units(1200).astype(np.float16), Shape(kind, 16, 100, 1)
    for name, upto, old in (("first", 800, None), ("grown", 1200, "first")):
        (tmp_path / name).mkdir()
        graph.write(tmp_path / name, vectors[:upto], shape, 1, silent,
                    Graph.open(tmp_path / old) if old else None)  # fmt: skip
    grown = Graph.open(tmp_path / "grown")
    assert np.array_equal(grown.halves, vectors)
    mask = np.random.default_rng(0).random(1200) < 0.5
    queries = units(40, seed=5)
    products = np.where(mask, queries @ vectors.astype(np.float32).T, -9)
    truth = np.argsort(-products, axis=1)[:, :10]
    similarities, rows = grown.scan(queries, 10, Allowed(mask))
    assert np.array_equal(rows, truth)
    assert np.allclose(similarities, np.take_along_axis(products, truth, 1), atol=1e-3)
    similarities, rows = grown.search(queries, 10, 200, Allowed(mask))
    assert mask[rows].all()
    assert np.allclose(similarities, np.take_along_axis(products, rows, 1), atol=1e-3)  # int8 is rescored exactly
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, truth, strict=True)]) > 0.9


def test_the_way_to_an_answer_is_chosen_by_cost() -> None:
    assert options.scan_is_cheaper(100_000, 500, 64)
    assert not options.scan_is_cheaper(100_000, 50_000, 64)
    assert options.widened(64, 0.9) == 64
    assert options.widened(64, 0.1) == 192
    assert options.widened(64, 1e-6) == options.MAX_EF
    assert [options.storage(n) for n in (10, 4_999_999, 5_000_000)] == ["fp16", "fp16", "8bit"]
