"""A burst is taken in whole or not at all, and becomes memory in the background, once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.writing import burst
from ruvllm.text import is_clean

NODES = [
    NewNode(f"Chapter {i} tells of thing{i}", source="book", tags=("a", "b b"), metadata={"page": i})
    for i in range(450)
]


def _vectors(memory: Memory, nodes: list[NewNode]) -> np.ndarray:
    return memory.embedder.embed([node.text for node in nodes])


def test_what_was_taken_in_becomes_memory(memory: Memory, database: Database) -> None:
    seen: list[int] = []
    report = burst.add(database, NODES, _vectors(memory, NODES), lambda done, total, note="": seen.append(done))
    assert (report.accepted, seen[-1]) == (450, 450)
    assert burst.waiting(database).rows == 450
    assert memory.counts()["nodes"] == 0  # not found before it is merged
    merged = burst.merge(database, None)
    assert (merged.merged, merged.known, merged.left) == (450, 0, 0)
    [hit] = memory.search_text(NODES[7].text, 1)
    assert (hit.node.text, hit.node.tags, hit.node.metadata) == (NODES[7].text, ("a", "b b"), {"page": 7})
    assert burst.merge(database, None).merged == 0
    assert memory.add(NODES).written == 0


def test_what_memory_holds_is_not_written_again(memory: Memory, database: Database) -> None:
    memory.add(NODES[:3])
    memory.add([replace(NODES[3], trust="untrusted", writer="ann")])
    twice = [*NODES[:5], *NODES[:5]]
    burst.add(database, twice, _vectors(memory, twice))
    merged = burst.merge(database, None)
    assert (merged.merged, merged.known, merged.left) == (1, 9, 0)
    assert memory.counts()["nodes"] == 5
    assert memory.search_text(NODES[3].text, 1)[0].node.trust == "system"  # known now from a better source


def test_rows_without_a_vector_wait_for_an_embedder(memory: Memory, database: Database) -> None:
    burst.add(database, [NODES[0], replace(NODES[1], embedding=memory.embedder.embed([NODES[1].text])[0])])
    first = burst.merge(database, None)
    assert (first.merged, first.left, first.unembedded) == (1, 1, 1)
    assert burst.merge(database, memory.embedder).left == 0
    assert memory.search_text(NODES[0].text, 1)[0].node.text == NODES[0].text


def test_a_killed_merge_goes_on(memory: Memory, database: Database) -> None:
    burst.add(database, NODES, _vectors(memory, NODES))

    def killed(done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        burst.merge(database, None, progress=killed)
    done = memory.counts()["nodes"]
    assert 0 < done < 450
    assert done + burst.waiting(database).rows == 450
    assert burst.merge(database, None, limit=50).merged == 50
    assert burst.merge(database, None).left == 0
    assert memory.counts()["nodes"] == 450


def test_tenants_bursts_stay_apart(memory: Memory, database_url: str) -> None:
    other = Database(database_url, "other")
    burst.add(other, NODES[:2], _vectors(memory, NODES[:2]))
    assert burst.waiting(memory.database).rows == 0
    assert burst.merge(memory.database, None).merged == 0
    assert burst.merge(other, None).merged == 2
    assert memory.counts()["nodes"] == 0
    other.close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (NewNode("a\x00b"), "NUL"),
        (NewNode("\ud800"), "surrogate"),
        (NewNode("x" * 20_001), "20001 characters"),
        (NewNode(" "), "empty"),
        (NewNode("x", kind="Rumour"), "Rumour"),
        (NewNode("x", trust="total"), "total"),
        (NewNode("x", confidence=float("nan")), "nan"),
        (NewNode("x", tags=("a\x00",)), "NUL"),
        (NewNode("x", metadata={"a": "\x00"}), "metadata"),
        (NewNode("x", metadata={"a": object()}), "metadata"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_taken_in(database: Database, bad: NewNode, why: str) -> None:
    with pytest.raises(InputError, match=f"none was taken in: row 2: .*{why}"):
        burst.add(database, [*NODES[:2], bad, *NODES[3:5]])
    assert burst.waiting(database).rows == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 2.0])
def test_a_vector_that_is_none_is_named(memory: Memory, database: Database, value: float) -> None:
    vectors = _vectors(memory, NODES[:3])
    vectors[1] = value
    with pytest.raises(InputError, match="row 1: vector of length"):
        burst.add(database, NODES[:3], vectors)
    for wrong in (vectors[:, :100], vectors[:2]):
        with pytest.raises(InputError, match="vectors: got shape"):
            burst.add(database, NODES[:3], wrong)
    with pytest.raises(InputError, match="row 0: got a vector of shape"):
        burst.add(database, [replace(NODES[0], embedding=vectors[0][:5])])


def test_nothing_half_done_when_postgres_refuses(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "_CHUNK", 2)
    monkeypatch.setattr(burst, "_cleaned", lambda nodes: (list(nodes), {}))
    with pytest.raises(errors.CheckViolation):
        burst.add(database, [*NODES[:3], NewNode("x", kind="Rumour")])
    assert burst.waiting(database).rows == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4))
def test_any_text_is_taken_in_or_refused_by_name(shared_database: Database, texts: list[str]) -> None:
    before = burst.waiting(shared_database).rows
    nodes = [NewNode(text, source=text[:3].strip(), metadata={"text": text}) for text in texts]
    if all(map(is_clean, texts)):
        burst.add(shared_database, nodes)
        assert burst.waiting(shared_database).rows == before + len(texts)
    else:
        with suppress(InputError):  # refused, or mended and taken in whole
            burst.add(shared_database, nodes)
        assert burst.waiting(shared_database).rows in (before, before + len(texts))


@pytest.fixture(scope="module")
def shared_database(template: str, postgres):
    import psycopg

    from ruvllm.database.dsn import with_database

    with psycopg.connect(with_database(template, "postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bursts TEMPLATE migrated")
    database = Database(with_database(template, "bursts"))
    yield database
    database.close()


def test_what_was_archived_and_comes_again_lives_again(memory: Memory, database: Database) -> None:
    [first] = memory.add(NODES[:1]).ids
    with database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [first])
    burst.add(database, NODES[:2], _vectors(memory, NODES[:2]))
    merged = burst.merge(database, None)
    assert (merged.merged, merged.known) == (1, 1)
    assert [node.id for node in memory.get([first])] == [memory.search_text(NODES[0].text, 1)[0].node.id]
    assert memory.counts()["archived"] == 0
