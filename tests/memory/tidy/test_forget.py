"""The hard delete: nothing of it is left in any table, what is others' stays, and a dry run does nothing."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ruvllm.database.pool import Database
from ruvllm.errors import InputError, ReplicaUnavailable
from ruvllm.memory import changes
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import NewNode
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge, runs
from ruvllm.memory.tidy.forget import forget_nodes, forget_writer, wipe_saved_replicas

SECRET = "quokka"  # in every text that has to go


@pytest.fixture
def taught(memory: Memory) -> Memory:
    """Mallory's nodes among others': linked, merged, summed up, canaried, waiting in a burst, asked and answered."""
    mallory = {"trust": "untrusted", "writer": "mallory"}
    ids = memory.add(
        [
            NewNode("The quokka lives at 7 Elm Street", "Fact", **mallory),
            NewNode("A quokka lives in Elm Street 7", "Fact", **mallory),
            NewNode("Bob's own fact", "Fact", writer="bob"),
            NewNode("Everything about the quokka", "Concept"),
            NewNode("a neighbour", "Document"),
            NewNode("Replaced words of Bob", "Fact", writer="bob"),
            NewNode("Answered from it", "Fact"),
        ]
    ).ids
    fact, older, bobs, concept, neighbour, replaced, derived = ids
    memory.link_all(
        [(fact, neighbour, "Cites", 0.5), (concept, fact, "Contains", 1.0), (concept, neighbour, "Contains", 1.0),
         (replaced, neighbour, "Cites", 0.7), (derived, fact, "Derived", 1.0)],
        "test",
    )  # fmt: skip
    memory.touch(list(ids))
    with memory.database.transaction() as connection:
        merge.absorb(connection, fact, older, why="same", by="test")
        merge.absorb(connection, fact, replaced, why="better", by="test")
        merge.strengthen(connection, bobs, 0.9, "system", {"merged": "x", "writer": "mallory"})
        merge.strengthen(connection, bobs, 0.9, "system", {"merged": "x", "writer": "carol"})
        _records(connection, fact, bobs)
    return memory


def _records(connection: psycopg.Connection, fact: int, bobs: int) -> None:
    """A session of Mallory's, a request of Bob's, both written back; feedback, a burst, a canary, the oracle."""
    connection.execute(
        """
        INSERT INTO serving.interactions (request_id, tenant, session_id, turn, question, history, answer, tier,
            context_bin, temperature, top_p, decided_by, propensity, router_version, ladder, layout_hash, features,
            writer, prompt_tokens, completion_tokens, cost, stage_ms, total_ms)
        SELECT q.id, 'default', q.session, q.turn, q.question, q.history, q.question, 't', 256, 0, 1, 'forced', 1, '',
            '', '', '{}', q.writer, 1, 1, 1, '{}', 1
        FROM (VALUES ('m1', 's', 1, 'where is the quokka', '[]'::jsonb, 'mallory'),
                     ('m2', 's', 2, 'and its friend', '[["where is the quokka", "quokka"]]', 'mallory'),
                     ('b1', 'b', 1, 'bobs question', '[]', 'bob')) AS q (id, session, turn, question, history, writer)
        """
    )
    connection.execute(
        "INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key, outcome, node, done_at)"
        " SELECT 'default', 'score', id, request_id, 'written', CASE writer WHEN 'bob' THEN %s ELSE %s END, now()"
        " FROM serving.interactions WHERE turn = 1",
        [bobs, fact],
    )
    connection.execute(
        "INSERT INTO serving.feedback (tenant, interaction, correction, writer)"
        " SELECT 'default', id, 'the quokka says no', 'mallory' FROM serving.interactions WHERE request_id <> 'm2'"
    )
    connection.execute(
        "INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,"
        " layout_hash, features, embedding, retrieved) SELECT q, 'default', 'c', q, '{}', '', '', 'train', '', '',"
        " '{}', '{}', '{}' FROM unnest(ARRAY['where is the quokka', 'another']) AS q"
    )
    connection.execute("INSERT INTO learning.replay (tenant, slot, query) VALUES ('default', 0, 'where is the quokka')")
    connection.execute(
        "INSERT INTO learning.oracle_runs (tenant, query, ladder, tier, model_sha256, prompt_version, context_bin,"
        " cycle_id, answer, quality, latency_s, spent_s, prompt_tokens, completion_tokens, cost)"
        " VALUES ('default', 'where is the quokka', '', '', '', '', 256, 'c', 'a quokka', 1, 1, 1, 1, 1, 1)"
    )
    connection.execute(
        "INSERT INTO memory.ingest (tenant, kind, trust, content_hash, text, source, writer)"
        " SELECT 'default', kind, trust, content_hash, 'The quokka again', '', 'eve' FROM memory.nodes WHERE id = %s",
        [fact],
    )
    connection.execute(
        "INSERT INTO memory.canary_queries (tenant, question, embedding, expected, origin)"
        " SELECT 'default', 'which quokka', embedding, id, 'test' FROM memory.nodes WHERE id = ANY(%s)",
        [[fact]],
    )


@dataclass(frozen=True)
class Everything:
    """Every row of every table of ours as text, without the changes' log."""

    rows: dict[str, list[str]]

    @classmethod
    def of(cls, database_url: str) -> Everything:
        with psycopg.connect(database_url) as connection:
            tables = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('memory', 'serving', 'learning')"
                " AND tablename NOT IN ('changes', 'change_log')"
            ).fetchall()
            read = sql.SQL("SELECT to_jsonb(t)::text FROM {} AS t ORDER BY 1")
            found = {
                f"{schema}.{name}": [row[0] for row in connection.execute(read.format(sql.Identifier(schema, name)))]
                for schema, name in tables
            }
        return cls(found)

    def holding(self, word: str) -> set[str]:
        return {table for table, rows in self.rows.items() if any(word in row for row in rows)}


def uuid_of(memory: Memory, text: str) -> str:
    with memory.database.transaction() as connection:
        [(found,)] = connection.execute(
            "SELECT n.uuid::text FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id WHERE t.text = %s",
            [text],
        ).fetchall()
    return str(found)


def test_the_secret_was_everywhere(taught: Memory, database_url: str) -> None:
    """The control: what the tests below find to be gone was there."""
    assert Everything.of(database_url).holding(SECRET) >= {
        "memory.node_texts", "memory.node_words", "memory.ingest", "memory.canary_queries", "serving.interactions",
        "serving.feedback", "learning.oracle_queries", "learning.oracle_runs", "learning.replay",
    }  # fmt: skip


def test_a_dry_run_counts_and_changes_nothing(taught: Memory, database_url: str) -> None:
    before = Everything.of(database_url)
    dry = forget_writer(taught.database, "mallory")
    assert dry.dry
    assert Everything.of(database_url) == before
    real = forget_writer(taught.database, "mallory", apply=True)
    assert (real.counts, real.derived, real.missing) == (dry.counts, dry.derived, dry.missing)


def test_a_writer_is_purged_from_every_table(taught: Memory, database_url: str) -> None:
    steps: list[str] = []
    report = forget_writer(taught.database, "mallory", apply=True, progress=lambda d, t, note="": steps.append(note))
    after = Everything.of(database_url)
    assert after.holding(SECRET) == set()
    assert after.holding("mallory") == set()
    assert (report.counts["nodes"], report.counts["requests"], report.derived) == (3, 2, 1)
    assert {"nodes", "requests", "vacuum memory.nodes"} <= set(steps)
    assert report.vacuumed
    assert len(after.rows["serving.interactions"]) == len(after.rows["learning.oracle_queries"]) == 1


def test_what_is_others_stays_and_what_they_had_said_lives_again(taught: Memory, database: Database) -> None:
    report = forget_writer(taught.database, "mallory", apply=True)
    assert report.counts["revived"] == 1
    found = {hit.node.text for hit in taught.search_text("Replaced words of Bob", 10)}
    assert found == {"Replaced words of Bob", "Bob's own fact", "a neighbour", "Answered from it"}
    with database.transaction() as connection:
        edges = connection.execute("SELECT src, dst, rel, weight FROM memory.edges").fetchall()
        packed = connection.execute("SELECT node, neighbours FROM memory.adjacency WHERE neighbours <> '{}'").fetchall()
        [(history,)] = connection.execute(
            "SELECT metadata -> 'history' FROM memory.node_texts WHERE text = 'Bob''s own fact'"
        ).fetchall()
    [(src, dst, rel, weight)] = edges  # the one that the absorbed row had brought along is its own again
    assert (rel, round(weight, 3)) == ("Cites", 0.7)
    assert sorted(packed) == sorted([(src, [dst]), (dst, [src])])
    assert [entry["writer"] for entry in history] == ["carol"]


def test_nodes_go_with_their_older_versions_and_requests(taught: Memory, database_url: str) -> None:
    wanted = uuid_of(taught, "The quokka lives at 7 Elm Street")
    report = forget_nodes(taught.database, [wanted.upper()], apply=True)
    after = Everything.of(database_url)
    assert report.counts["nodes"] == 3
    # feedback on another's request is the writer's, not the node's
    assert after.holding(SECRET) == {"serving.feedback"}
    assert [row for row in after.rows["serving.interactions"] if "and its friend" in row] != []
    again = forget_nodes(taught.database, [wanted], apply=True)
    assert (again.missing, sum(again.counts.values())) == ((wanted,), 0)


def test_only_memory_leaves_the_records(taught: Memory, database_url: str) -> None:
    before = Everything.of(database_url)
    forget_writer(taught.database, "mallory", apply=True, only_memory=True)
    after = Everything.of(database_url)
    assert after.holding(SECRET) == {table for table in before.holding(SECRET) if not table.startswith("memory.")}


def test_replicas_are_told(taught: Memory, database: Database) -> None:
    with database.transaction() as connection:
        position = changes.position(connection)
        [(fact, neighbour)] = connection.execute(
            "SELECT min(node) FILTER (WHERE text LIKE 'The quokka%'), min(node) FILTER (WHERE text = 'a neighbour')"
            " FROM memory.node_texts"
        ).fetchall()
    forget_writer(database, "mallory", apply=True)
    with database.transaction() as connection:
        seen = changes.read(connection, position)
        [(whole_from, level)] = connection.execute(
            "SELECT l.whole_from::text::bigint, pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
            " FROM memory.change_log l"
        ).fetchall()
    assert fact in seen.nodes
    assert neighbour in seen.edges
    assert position.xmin < whole_from <= level  # a base saved before is made anew, one of now is not


def test_no_saved_replica_keeps_it(taught: Memory, database: Database, tmp_path: Path) -> None:
    options = ReplicaOptions(poll_s=0)
    Replica.open(database, tmp_path, options).close()
    other = Database(database._dsn, tenant="other")
    Replica.open(other, tmp_path, options).close()
    assert files_holding(tmp_path, SECRET)
    forget_writer(database, "mallory", apply=True)
    assert wipe_saved_replicas(tmp_path, database.tenant) == 1
    Replica.open(database, tmp_path, options).close()
    assert files_holding(tmp_path, SECRET) == []
    assert wipe_saved_replicas(tmp_path, "other") == 1  # which was left alone
    other.close()


def files_holding(folder: Path, word: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


def test_a_replica_that_is_open_loses_it_at_once(taught: Memory, database: Database, tmp_path: Path) -> None:
    with closing(Replica.open(database, tmp_path, ReplicaOptions(poll_s=0))) as replica:
        vector = taught.embedder.embed_one("The quokka lives at 7 Elm Street")
        wanted = Filter(reader="mallory")
        [gone] = replica.search(vector, 1, wanted).ids
        forget_writer(database, "mallory", apply=True)
        with suppress(ReplicaUnavailable):  # it is built anew
            replica.follow()
        with suppress(ReplicaUnavailable):
            assert gone not in replica.search(vector, 50, wanted).ids
            assert replica.nodes([int(gone)]) == []


def test_what_was_forgotten_can_be_written_again(taught: Memory) -> None:
    forget_writer(taught.database, "mallory", apply=True)
    text = "The quokka lives at 7 Elm Street"
    assert taught.add([NewNode(text, "Fact")]).written == 1
    assert taught.search_text(text, 1)[0].node.trust == "system"


def test_undo_of_an_earlier_run_brings_nothing_back(memory: Memory, database_url: str) -> None:
    stays, goes = memory.add([NewNode("stays", "Fact"), NewNode("the quokka", "Fact", writer="mallory")]).ids
    with runs.tidying(memory.database, "dedup", apply=True) as running, running.batch() as connection:
        merge.absorb(connection, stays, goes, why="same", by="test")
    forget_writer(memory.database, "mallory", apply=True)
    runs.undo(memory.database, running.id)
    assert Everything.of(database_url).holding(SECRET) == set()


def test_another_tenant_forgets_nothing_of_ours(taught: Memory, database_url: str) -> None:
    before = Everything.of(database_url)
    other = Database(database_url, tenant="other")
    assert sum(forget_writer(other, "mallory", apply=True).counts.values()) == 0
    wanted = uuid_of(taught, "a neighbour")
    assert forget_nodes(other, [wanted], apply=True).missing == (wanted,)
    other.close()
    assert Everything.of(database_url) == before


@pytest.mark.parametrize("uuids", [[], ["7"], ["0189a3c0-0000-7000-8000-000000000000", "x'; --"]])
def test_what_is_no_uuid_is_refused(memory: Memory, uuids: list[str]) -> None:
    with pytest.raises(InputError, match="forget: got"):
        forget_nodes(memory.database, uuids, apply=True)


def test_an_empty_writer_is_not_everybody(memory: Memory) -> None:
    memory.add([NewNode("by nobody in particular")])
    with pytest.raises(InputError, match="empty writer"):
        forget_writer(memory.database, " ", apply=True)
