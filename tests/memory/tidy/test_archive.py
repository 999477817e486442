"""Archive: what nobody uses leaves the search, and comes back whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ruvllm.database.pool import Database
from ruvllm.memory import rows
from ruvllm.memory.records import NewNode
from ruvllm.memory.rows import content_hash
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import canary, merge, runs
from ruvllm.memory.tidy.archive import archive, rehydrate, revive
from tests.memory.tables import contents

LATER = datetime.now(UTC) + timedelta(days=91)
SOON = datetime.now(UTC) + timedelta(days=89)


def _fact(text: str, **more: str) -> NewNode:
    return NewNode(text, kind="Fact", **more)  # type: ignore[arg-type]


def _sleeping(memory: Memory) -> tuple[int, int]:
    """Two Facts, the first of which is archived."""
    a, b = memory.add([_fact("goats climb trees in Morocco"), _fact("boats sail to Tema")]).ids
    with memory.database.transaction() as connection:
        merge.touch(connection, [b])
        connection.execute("UPDATE memory.node_usage SET last_used_at = %s", [LATER])
    assert archive(memory.database, apply=True, now=LATER).archived == 1
    return a, b


def test_what_is_unused_leaves_the_search_and_nothing_else_does(memory: Memory, database: Database) -> None:
    a, b = _sleeping(memory)
    document, concept = memory.add([NewNode("a document"), NewNode("a concept", kind="Concept")]).ids
    assert archive(database, apply=True, now=LATER).unused == 0
    found = [hit.node.id for hit in memory.search_text("goats climb trees in Morocco", 10)]
    assert sorted(found) == [b, document, concept]
    [node] = memory.get([a])
    assert node.text == "goats climb trees in Morocco"
    with database.transaction() as connection:
        row = connection.execute("SELECT superseded_by, archived_at FROM memory.nodes WHERE id = %s", [a]).fetchone()
        bands = connection.execute("SELECT count(*) FROM memory.minhash_bands WHERE node = %s", [a]).fetchone()
    assert row is not None
    assert (row[0], row[1] is not None, bands) == (None, True, (0,))


def test_what_is_younger_than_the_limit_stays(memory: Memory, database: Database) -> None:
    memory.add([_fact("goats")])
    assert archive(database, apply=True, now=SOON).unused == 0
    assert archive(database, apply=True, now=LATER).archived == 1


def test_undo_restores_every_row(memory: Memory, database: Database) -> None:
    a, b, _ = memory.add([_fact("goats"), _fact("boats"), NewNode("c")]).ids
    memory.link(a, b, "SameTopic", 0.9, "test")
    before = contents(database)
    dry = archive(database, now=LATER)
    assert (dry.dry, dry.unused, dry.archived) == (True, 2, 0)
    assert contents(database) == before
    run = archive(database, now=LATER).run
    assert memory.counts()["nodes"] == 1
    runs.undo(database, run)
    assert contents(database) == before


def test_a_rehydrated_node_is_as_it_was(memory: Memory, database: Database) -> None:
    a, b = _sleeping(memory)
    assert rehydrate(database, [a, b, 999]) == {a: a}
    assert memory.search_text("goats climb trees in Morocco", 1)[0].node.id == a
    with database.transaction() as connection:
        bands = connection.execute("SELECT count(*) FROM memory.minhash_bands GROUP BY node").fetchall()
    assert bands == [(16,), (16,)]
    assert archive(database, apply=True, now=SOON).unused == 0  # it counts as used now
    assert rehydrate(database, []) == {}


def test_content_that_came_again_meanwhile_is_the_live_one(memory: Memory, database: Database) -> None:
    a, _ = _sleeping(memory)
    with database.transaction() as connection:
        [again] = rows.insert(
            connection,
            [rows.Ready(_fact("goats climb trees in Morocco"), content_hash("Fact", "goats climb trees in Morocco"),
                        memory.embedder.embed(["goats climb trees in Morocco"])[0])],
        )  # fmt: skip
    assert rehydrate(database, [a]) == {a: again}
    assert memory.counts()["archived"] == 1


def test_a_write_of_the_same_content_revives_it(memory: Memory, database: Database) -> None:
    a, b = _sleeping(memory)
    wanted = [content_hash("Fact", text) for text in ("goats climb trees in Morocco", "boats sail to Tema", "new")]
    with database.transaction() as connection:
        assert revive(connection, wanted) == {wanted[0]: a}
        assert {hash: known.id for hash, known in rows.live(connection, wanted).items()} == {
            wanted[0]: a,
            wanted[1]: b,
        }
        assert revive(connection, wanted) == {}


def test_a_superseded_node_can_be_brought_back_on_demand_but_not_by_a_write(memory: Memory, database: Database) -> None:
    a, b = memory.add([_fact("goats"), _fact("goats!")]).ids
    with database.transaction() as connection:
        merge.absorb(connection, a, b, "test", "test")
        assert revive(connection, [content_hash("Fact", "goats!")]) == {}
    assert rehydrate(database, [b]) == {b: b}
    assert memory.counts()["nodes"] == 2


def test_what_a_canary_watches_is_not_archived(memory: Memory, database: Database) -> None:
    [node] = memory.add([_fact("goats climb trees in Morocco")]).ids
    canary.add(database, memory.embedder, "What do goats climb in Morocco?", node)
    assert archive(database, apply=True, now=LATER).unused == 0


def test_a_cap_leaves_the_rest(memory: Memory, database: Database) -> None:
    memory.add([_fact(f"fact {n}") for n in range(5)])
    report = archive(database, apply=True, now=LATER, cap=3)
    assert (report.unused, report.archived, report.capped) == (5, 3, True)
