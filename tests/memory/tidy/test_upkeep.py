"""Upkeep keeps indexes fit and says what it did; the audit raises an alarm where an index loses what is there."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import bands, canary, merge
from ruvllm.memory.tidy.audit import audit
from ruvllm.memory.tidy.upkeep import check, keep_up, reindex


def _stored(memory: Memory, count: int = 60) -> list[int]:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(count, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return list(memory.add([NewNode(f"text {n}", embedding=vector) for n, vector in enumerate(vectors)]).ids)


def _steps(report) -> dict[str, tuple[str, str]]:
    return {step.name: (step.outcome, step.said) for step in report.steps}


def test_every_step_says_what_it_did(memory: Memory, database: Database) -> None:
    ids = _stored(memory)
    canary.add(database, memory.embedder, "text 1", ids[1], "text 1")
    report = keep_up(database, sample=20)
    steps = _steps(report)
    assert {name: outcome for name, (outcome, _) in steps.items() if name != "reindex"} == {
        "vacuum": "done", "prewarm": "done", "amcheck": "done", "change log": "done", "journals": "done",
    }  # fmt: skip
    assert steps["reindex"] == ("not due", "0% of the rows are dead")
    assert "amcheck knows no HNSW" in steps["amcheck"][1]
    assert (report.audit.nodes, report.audit.vectors, report.audit.questions) == (60, 20, 1)
    assert (report.audit.recall, report.audit.self_recall) == (1.0, 1.0)
    assert report.audit.orphans == {}


def test_reindex_builds_anew_and_clears_what_a_killed_one_left(
    memory: Memory, database: Database, database_url: str
) -> None:
    _stored(memory)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(
            "CREATE INDEX nodes_embedding_ccnew ON memory.nodes USING hnsw (embedding halfvec_ip_ops)"
            " WHERE archived_at IS NULL"
        )
        owner.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memory.nodes_embedding_ccnew'::regclass"
        )
        before = owner.execute("SELECT pg_relation_filenode('memory.nodes_embedding')").fetchone()
    step = reindex(database)
    assert (step.outcome, step.said) == (
        "done", "built anew for M 16, efConstruction 100: asked for; leftovers dropped: nodes_embedding_ccnew",
    )  # fmt: skip
    with psycopg.connect(database_url) as owner:
        left = owner.execute(
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = 'memory.nodes'::regclass AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'hnsw')"
        ).fetchall()
        assert left == [("memory.nodes_embedding", True)]
        assert owner.execute("SELECT pg_relation_filenode('memory.nodes_embedding')").fetchone() != before
    assert audit(database).recall == 1.0


def test_an_index_that_another_process_builds_is_left_alone(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE INDEX nodes_embedding_ccnew ON memory.nodes (id)")
        owner.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memory.nodes_embedding_ccnew'::regclass"
        )
        with database.owner() as builder, bands.alone(database, builder):
            step = reindex(database)
        assert step.outcome == "not done"
        assert "another rebuild" in step.said
        assert owner.execute("SELECT to_regclass('memory.nodes_embedding_ccnew')::text").fetchone() != (None,)
    assert reindex(database).outcome == "done"  # the lock is free again


def test_the_audit_finds_an_index_that_lost_rows(memory: Memory, database: Database, database_url: str) -> None:
    """The index holds 60 of 100 rows; the exact search sees all."""
    ids = _stored(memory)
    with psycopg.connect(database_url, autocommit=True) as owner:
        # not ready: what is written now does not reach the index
        owner.execute("UPDATE pg_index SET indisready = false WHERE indexrelid = 'memory.nodes_embedding'::regclass")
    memory.add([NewNode(f"unseen {n}") for n in range(40)])
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("UPDATE pg_index SET indisready = true WHERE indexrelid = 'memory.nodes_embedding'::regclass")
    database.close()
    report = audit(database)
    assert report.recall is not None
    assert report.recall < 0.95
    assert report.self_recall is not None
    assert report.self_recall < 0.99
    assert len(report.alarms) == 2
    assert "recall at 10 against exact search" in report.alarms[0]
    assert len(ids) == 60


def test_the_audit_counts_rows_that_must_not_be(memory: Memory, database: Database, database_url: str) -> None:
    a, b, c = memory.add([NewNode(text) for text in "abc"]).ids
    memory.link(a, b, "Cites", 0.5, "test")
    with database.transaction() as connection:
        merge.absorb(connection, b, c, "test", "test")
    assert audit(database).orphans == {}
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("SELECT set_config('app.tenant', 'default', false)")
        owner.execute("DELETE FROM memory.node_texts WHERE node = %s", [a])
        owner.execute(
            "UPDATE memory.adjacency SET neighbours = '{}', weights = '{}', relations = '{}' WHERE node = %s", [a]
        )
        owner.execute("UPDATE memory.nodes SET superseded_by = %s, archived_at = now() WHERE id = %s", [c, b])
    found = audit(database).orphans
    assert found == {
        "nodes without a text": 1,
        "superseded nodes whose heirs run in a circle": 2,
        "packed rows that are not their edges": 1,
    }


def test_a_canary_below_its_bound_is_an_alarm(memory: Memory, database: Database) -> None:
    [node] = memory.add([NewNode("goats")]).ids
    canary.add(database, memory.embedder, "goats", node)
    assert audit(database).alarms == ()
    with database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now()")
    assert audit(database).alarms == ("recall at 10 of the canary's questions is 0.000, want 0.8 or more",)


def test_an_empty_memory_has_no_recall(database: Database) -> None:
    report = audit(database)
    assert (report.recall, report.self_recall, report.canary, report.alarms) == (None, None, None, ())


@pytest.fixture
def modest(database_url: str):
    """The same database for a login that is neither owner nor superuser."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS modest")
        owner.execute("CREATE ROLE modest LOGIN PASSWORD 'modest' IN ROLE ruvllm_app")
    database = Database(make_conninfo(database_url, user="modest", password="modest"))
    yield database
    database.close()
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("DROP OWNED BY modest")
        owner.execute("DROP ROLE modest")


def test_what_a_login_may_not_do_is_named_and_no_error(modest: Database) -> None:
    steps = _steps(keep_up(modest))
    assert {steps[name][0] for name in ("prewarm", "amcheck")} == {"not done"}
    assert all(steps[name][1] for name in ("prewarm", "amcheck"))
    assert {steps[name][0] for name in ("change log", "journals")} == {"done"}
    assert check(modest).outcome == "not done"
