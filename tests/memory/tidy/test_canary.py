"""The canary's questions: where they come from, and what counts as found."""

from __future__ import annotations

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import canary, merge


def _asked(memory: Memory, database: Database, answer: str | None = None) -> int:
    [node] = memory.add([NewNode("The harbour of Tema handles 3.4 million tons of cargo.")]).ids
    assert canary.add(database, memory.embedder, "How much cargo does the harbour of Tema handle?", node, answer)
    return node


def _archive(database: Database, node: int) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [node])


def test_an_archived_node_is_a_loss_and_its_content_again_is_a_hit(memory: Memory, database: Database) -> None:
    node = _asked(memory, database)
    assert canary.score(database).recall == 1.0
    _archive(database, node)
    lost = canary.score(database)
    assert (lost.recall, lost.lost) == (0.0, ("How much cargo does the harbour of Tema handle?",))
    memory.add([NewNode("The harbour of Tema handles\n3.4 million tons of cargo.")])
    assert canary.score(database).recall == 1.0


@pytest.mark.parametrize(
    ("text", "recall"),
    [("Tema's harbour: cargo of 3.4 MILLION TONS a year.", 1.0), ("Tema's harbour handles much cargo.", 0.0)],
)
def test_an_heir_has_to_hold_the_answer(memory: Memory, database: Database, text: str, recall: float) -> None:
    node = _asked(memory, database, "3.4 million tons")
    [heir] = memory.add([NewNode(text, kind="Concept")]).ids
    with database.transaction() as connection:
        merge.absorb(connection, heir, node, "test", "test")
    assert canary.score(database).recall == recall


def test_only_the_ten_nearest_count(memory: Memory, database: Database) -> None:
    _asked(memory, database)
    memory.add([NewNode(f"How much cargo does the harbour of Tema handle? {i}") for i in range(10)])
    assert canary.score(database).recall == 0.0


def test_what_the_asker_may_not_see_is_not_found(memory: Memory, database: Database) -> None:
    [node] = memory.add([NewNode("Ann's boat is called Wilma", trust="untrusted", writer="ann")]).ids
    canary.add(database, memory.embedder, "What is Ann's boat called?", node, reader="ann")
    assert canary.score(database).hits == 1
    canary.add(database, memory.embedder, "What is Ann's boat called?", node, reader="bob")
    assert (canary.score(database).questions, canary.score(database).hits) == (2, 1)


def test_questions_are_filled_from_well_answered_ones(memory: Memory, database: Database) -> None:
    first, second = memory.add([NewNode("Accra is the capital of Ghana"), NewNode("Ghana has 33 million people")]).ids
    for n, (question, gold, quality, used) in enumerate(
        [
            ("What is the capital of Ghana?", ["Accra"], 1.0, [second, first]),
            ("How many people live in Ghana?", ["33 million"], 0.5, [second]),  # answered badly
            ("Who leads Ghana?", ["nobody said"], 1.0, [first]),  # in no node of the prompt
        ]
    ):
        _interaction(database, n, question, gold, quality, used)
    assert canary.fill(database, memory.embedder) == 1
    assert canary.fill(database, memory.embedder) == 0
    with database.transaction() as connection:
        rows = connection.execute("SELECT question, expected, answer, origin FROM memory.canary_queries").fetchall()
    assert rows == [("What is the capital of Ghana?", first, "Accra", "gold")]
    assert canary.score(database).recall == 1.0


def test_nothing_stored_is_no_recall(database: Database) -> None:
    assert canary.score(database).recall is None


def test_a_question_needs_a_node(memory: Memory, database: Database) -> None:
    with pytest.raises(InputError, match="there is no node 17"):
        canary.add(database, memory.embedder, "What?", 17)


def _interaction(database: Database, n: int, question: str, gold: list[str], quality: float, used: list[int]) -> None:
    with database.transaction() as connection:
        connection.execute(
            """
            INSERT INTO serving.interactions (request_id, tenant, question, answer, gold, tier, context_bin,
                temperature, top_p, decided_by, propensity, router_version, ladder, layout_hash, features, used,
                prompt_tokens, completion_tokens, cost, stage_ms, total_ms, quality, quality_source)
            VALUES (%s, 'default', %s, '', %s, 't', 256, 0, 1, 'champion', 1, '', '', '', '{}', %s, 0, 0, 0, '{}', 0,
                    %s, 'gold')
            """,
            [str(n), question, gold, used, quality],
        )
