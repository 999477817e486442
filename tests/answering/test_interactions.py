"""The outbox: a row that fails by itself is put off and in the end given up, and never holds up the others."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import psycopg
import pytest

from ruvllm.answering.interactions import ATTEMPTS, Interaction, Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import DatabaseError, InferenceError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory

ROW = {
    "cycle_id": None, "session_id": None, "turn": 1, "history": "[]", "domain": "", "tier": "350m", "context_bin": 256,
    "temperature": 0.0, "top_p": 1.0, "decided_by": "champion", "confidence": None, "propensity": 1.0,
    "router_version": "", "ladder": "test", "layout_hash": "", "features": [0.0], "retrieved": [], "similarities": [],
    "used": [], "writer": "ann", "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1, "cost": 0.0,
    "stage_ms": "{}", "total_ms": 1.0, "degraded": [],
}  # fmt: skip


@pytest.fixture
def memory(database: Database, settings) -> Memory:
    return Memory(database, EmbeddingAdapter(HashingEncoder()), settings)


@pytest.fixture
def interactions(database: Database) -> Interactions:
    return Interactions(database)


def _ask(interactions: Interactions, question: str, answer: str, **more: object) -> None:
    row = {**ROW, "request_id": f"{question} {more}", "question": question, "answer": answer, "gold": [answer], **more}
    interactions.record(Interaction(row))


def _outcomes(database: Database) -> list[tuple]:
    with database.transaction() as connection:
        return connection.execute("SELECT outcome, attempts, last_error FROM serving.outbox ORDER BY id").fetchall()


def _due(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE serving.outbox SET retry_at = now()")


def test_an_answer_is_stored_once_with_one_outbox_row(interactions: Interactions, database: Database) -> None:
    for answer in ("first", "again"):  # a replay, or a statement that was sent again
        interactions.record(
            Interaction({**ROW, "request_id": "r1", "question": "what?", "answer": answer, "gold": None})
        )
    query = (
        "SELECT i.answer, o.idempotency_key FROM serving.outbox o JOIN serving.interactions i ON i.id = o.interaction"
    )
    with database.transaction() as connection:
        assert connection.execute(query).fetchall() == [("first", "default:answer:r1")]
        assert connection.execute("SELECT count(*) FROM serving.interactions").fetchone() == (1,)


@pytest.fixture
def poisoned(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A memory whose encoder breaks over one text."""
    embed = memory.embedder.embed

    def breaks(texts, role="document"):
        if any("poison" in text for text in texts):
            raise InferenceError("encoder: the vector is not finite")
        return embed(texts, role)

    monkeypatch.setattr(memory.embedder, "embed", breaks)
    return memory


def test_a_poisoned_row_is_given_up_and_the_others_go_on(
    interactions: Interactions, database: Database, poisoned: Memory
) -> None:
    _ask(interactions, "What is poison?", "arsenic")
    _ask(interactions, "What is the capital of Ghana?", "Accra")
    assert interactions.settle(poisoned) == 1
    assert [row[:2] for row in _outcomes(database)] == [(None, 1), ("written", 1)]
    state = interactions.outbox()
    assert (state.depth, state.retrying, state.failed) == (1, 1, 0)
    assert state.oldest_s >= 0
    assert interactions.settle(poisoned) == 0  # not due yet
    for _ in range(ATTEMPTS):
        _due(database)
        interactions.settle(poisoned)
    [given_up, _] = _outcomes(database)
    assert given_up == ("failed", ATTEMPTS, "InferenceError: encoder: the vector is not finite")
    state = interactions.outbox()
    assert (state.depth, state.failed) == (0, 1)


def test_each_wait_is_longer_than_the_one_before(
    interactions: Interactions, database: Database, poisoned: Memory
) -> None:
    _ask(interactions, "What is poison?", "arsenic")
    waits = []
    for _ in range(ATTEMPTS - 1):
        interactions.settle(poisoned)
        with database.transaction() as connection:
            [wait] = connection.execute(
                "SELECT extract(epoch FROM retry_at - now())::float FROM serving.outbox"
            ).fetchone()
        waits.append(wait)
        _due(database)
    assert all(later > 3 * earlier for earlier, later in pairwise(waits))


def test_without_postgres_no_row_is_to_blame(interactions: Interactions, database: Database, memory: Memory) -> None:
    _ask(interactions, "What is the capital of Ghana?", "Accra")
    dead = Interactions(Database("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(DatabaseError):
        dead.settle(memory)

    class Away:
        def write_back(self, **named):
            raise DatabaseError("gone") from psycopg.OperationalError("server closed the connection")

    with pytest.raises(DatabaseError):
        interactions.settle(Away())  # type: ignore[arg-type]
    assert _outcomes(database) == [(None, 0, None)]
    assert interactions.settle(memory) == 1


def test_a_row_that_the_server_refuses_is_put_off(
    interactions: Interactions, database: Database, memory: Memory
) -> None:
    _ask(interactions, "What is the capital of Ghana?", "Accra")

    class Refused:
        def write_back(self, connection, **named):
            connection.execute("SELECT 1 / 0")

    assert interactions.settle(Refused()) == 0  # type: ignore[arg-type]
    [(outcome, attempts, error)] = _outcomes(database)
    assert (outcome, attempts) == (None, 1)
    assert "division by zero" in error
    _due(database)
    assert interactions.settle(memory) == 1
    assert _outcomes(database) == [("written", 2, None)]


def test_an_answer_follows_the_one_before_in_its_session(
    interactions: Interactions, database: Database, memory: Memory
) -> None:
    session = "x" * 300  # a client's own name, longer than a key may be
    _ask(interactions, "What is the capital of Ghana?", "Accra", session_id=session, turn=1)
    history = '[["What is the capital of Ghana?", "Accra"]]'
    _ask(interactions, "And of Togo?", "Lome", session_id=session, turn=2, history=history)
    assert interactions.settle(memory) == 2
    with database.transaction() as connection:
        nodes = [row[0] for row in connection.execute("SELECT node FROM serving.outbox ORDER BY id")]
        follows = connection.execute("SELECT src, dst FROM memory.edges WHERE rel = 'Follows'").fetchall()
    assert follows == [(nodes[1], nodes[0])]


def test_two_at_once_settle_each_row_once(interactions: Interactions, database: Database, memory: Memory) -> None:
    for i in range(12):
        _ask(interactions, f"What is the capital of Land{i}?", f"Town{i}")
    done: list[int] = []
    threads = [threading.Thread(target=lambda: done.append(interactions.settle(memory))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 12
    assert memory.counts()["Fact"] == 12
    assert replace(interactions.outbox(), oldest_s=0.0).depth == 0


@pytest.mark.parametrize(("gold", "moved"), [("Accra", 1), ("Lome", -1)])
def test_edges_among_what_an_answer_was_made_from_learn(
    memory: Memory, interactions: Interactions, database: Database, gold: str, moved: int
) -> None:
    used = list(memory.add([NewNode(f"Passage {i} about Ghana.", source="test") for i in range(3)]).ids)
    memory.link_all([(used[0], used[1], "SameTopic", 0.5), (used[0], used[2], "SameTopic", 0.5)], "test")
    _ask(interactions, "What is the capital of Ghana?", "Accra", gold=[gold], used=used[:2])
    interactions.settle(memory)
    with database.transaction() as connection:
        weights = dict(
            connection.execute(
                "SELECT dst, (weight - 0.5)::float8 FROM memory.edges WHERE src = %s AND rel = 'SameTopic'", [used[0]]
            ).fetchall()
        )
    assert weights[used[1]] * moved > 0.04
    assert weights[used[2]] == 0.0  # its end was not in the prompt
