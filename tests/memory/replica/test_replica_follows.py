"""What is written, changed or deleted in Postgres reaches the replica: all of it, once, at once after it followed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from replica_nodes import ALONE, Written, archive, insert, link, node, units

from ruvllm.database.pool import Database
from ruvllm.errors import InputError, ReplicaUnavailable
from ruvllm.memory import changes
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Walk
from ruvllm.memory.replica import Replica, ReplicaOptions

Open = Callable[..., Replica]


def nearest(replica: Replica, vector: np.ndarray, **more: object) -> int:
    return int(replica.search(vector, 1, **more).ids[0])


def test_a_base_answers_with_ids_similarities_nodes_and_vectors(written: Written, open_replica: Open) -> None:
    replica = open_replica()
    found = replica.search(written.vectors[7], 5)
    assert found.ids[0] == written.ids[7]
    assert found.similarities[0] == pytest.approx(1, abs=1e-3)
    assert list(found.similarities) == sorted(found.similarities, reverse=True)
    assert [each.text for each in replica.nodes([written.ids[7], 10**9, written.ids[8]])] == [
        each.text for each in replica.nodes([written.ids[7]]) + replica.nodes([written.ids[8]])
    ]
    assert np.array_equal(replica.vectors(written.ids[:3]), written.vectors[:3])
    assert (replica.state.ready, replica.state.nodes, replica.state.delta, replica.state.tombstones) == (
        True,
        300,
        0,
        0,
    )


def test_new_changed_archived_and_deleted_nodes_are_seen_after_follow(written: Written, open_replica: Open) -> None:
    replica, (fresh, moved) = open_replica(), units(2, seed=1)
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(fresh, text="added", tags=("a",), metadata={"n": 1}, domain="new")])
        archive(connection, [written.ids[0]])
        connection.execute("DELETE FROM memory.nodes WHERE id = %s", [written.ids[1]])
        connection.execute(
            "UPDATE memory.nodes SET embedding = %s::real[]::halfvec WHERE id = %s", [moved.tolist(), written.ids[2]]
        )
        connection.execute("UPDATE memory.node_texts SET text = 'other' WHERE node = %s", [written.ids[3]])
        connection.execute("UPDATE memory.nodes SET confidence = 0.25 WHERE id = %s", [written.ids[4]])
    assert nearest(replica, written.vectors[0]) == written.ids[0]  # not yet
    replica.follow()
    assert nearest(replica, fresh) == added
    assert nearest(replica, fresh, filter=Filter(domains=("new",), tags=("a",))) == added
    assert nearest(replica, moved) == written.ids[2]
    everything = replica.search(written.vectors[0], 1000, exact=True).ids
    assert set(everything) == set(written.ids[2:]) | {added}
    assert len(everything) == 299
    (new,) = replica.nodes([added])
    assert (new.text, new.tags, new.metadata, new.domain) == ("added", ("a",), {"n": 1}, "new")
    assert [each.text for each in replica.nodes([written.ids[3]])] == ["other"]
    assert replica.nodes(written.ids[:2]) == []
    assert written.ids[4] not in replica.search(written.vectors[4], 300, filter=Filter(min_confidence=0.3)).ids
    assert (replica.state.nodes, replica.state.tombstones) == (299, 3)


def test_an_archived_node_comes_back_with_its_edges(written: Written, open_replica: Open) -> None:
    a, b = written.ids[:2]
    with written.database.transaction() as connection:
        link(connection, [(a, b, "Cites", 0.5)])
        archive(connection, [a])
    replica = open_replica()
    assert replica.walk([b]).ids.tolist() == [b]
    with written.database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = NULL WHERE id = %s", [a])
    replica.follow()
    assert nearest(replica, written.vectors[0]) == a
    assert replica.walk([b]).ids.tolist() == [b, a]
    assert replica.walk([a]).edges == ((a, b, "Cites", 0.5),)


def test_a_transaction_that_commits_after_a_later_one_is_not_skipped(
    written: Written, open_replica: Open, database_url: str
) -> None:
    replica, (early, late) = open_replica(), units(2, seed=2)
    other = Database(database_url)
    with written.database.transaction() as slow:
        (first,) = insert(slow, [node(early)])
        (low,) = slow.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        with other.transaction() as quick:
            (second,) = insert(quick, [node(late)])
            (high,) = quick.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        replica.follow()
        assert low < high
        assert nearest(replica, late) == second
        with pytest.raises(ReplicaUnavailable, match=f"transaction {low} has not ended"):
            replica.search(early, 1, after=low)
    other.close()
    replica.follow()
    assert nearest(replica, early) == first
    assert replica.state.delta == 2  # neither was lost, neither came twice


def test_a_rolled_back_write_is_never_seen(written: Written, open_replica: Open) -> None:
    replica, (vector,) = open_replica(), units(1, seed=3)
    with written.database.transaction() as connection:
        insert(connection, [node(vector)])
        raise psycopg.Rollback
    replica.follow()
    assert replica.state.nodes == 300


def test_the_token_of_a_write_makes_it_seen(written: Written, open_replica: Open) -> None:
    replica, (vector,) = open_replica(), units(1, seed=4)
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(vector, text="mine")])
        (token,) = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert nearest(replica, vector) != added
    assert nearest(replica, vector, after=token) == added
    assert replica.search_words("mine", 3, after=token).ids.tolist() == [added]


def test_edges_that_come_and_go_are_walked_as_they_are(written: Written, open_replica: Open) -> None:
    replica, (a, b, c, *_) = open_replica(), written.ids
    with written.database.transaction() as connection:
        link(connection, [(a, b, "Cites", 0.5), (b, c, "Follows", 0.5)])
    replica.follow()
    reached = replica.walk([a])
    assert (reached.ids.tolist(), reached.hops.tolist(), reached.scores.tolist()) == (
        [a, b, c],
        [0, 1, 2],
        [1, 0.5, 0.25],
    )
    assert reached.edges == ((a, b, "Cites", 0.5), (b, c, "Follows", 0.5))
    assert replica.walk([a], Walk(relations=("Follows",))).ids.tolist() == [a]
    with written.database.transaction() as connection:
        connection.execute("DELETE FROM memory.edges WHERE src = %s", [b])
        archive(connection, [b])
    replica.follow()
    assert replica.walk([a, b]).ids.tolist() == [a]


def test_only_the_writer_finds_an_untrusted_node(written: Written, open_replica: Open) -> None:
    (vector,) = units(1, seed=5)
    with written.database.transaction() as connection:
        (secret,) = insert(connection, [node(vector, trust="untrusted", writer="eve")])
        link(connection, [(written.ids[0], secret, "Cites", 1.0)])
    replica = open_replica()
    assert nearest(replica, vector, filter=Filter(reader="eve")) == secret
    assert secret not in replica.search(vector, 1000, filter=Filter(reader="bob")).ids
    assert secret not in replica.search(vector, 1000, filter=Filter(trusts=("untrusted",))).ids
    assert replica.walk([written.ids[0]], Walk(reader="eve")).ids.tolist() == [written.ids[0], secret]
    assert replica.walk([written.ids[0], secret]).ids.tolist() == [written.ids[0]]


def test_an_empty_memory_answers_with_nothing_and_then_with_what_comes(database: Database, open_replica: Open) -> None:
    replica, (vector,) = open_replica(), units(1)
    assert replica.search(vector, 5).ids.tolist() == replica.search(vector, 5, exact=True).ids.tolist() == []
    assert replica.walk([1]).ids.tolist() == []
    assert replica.search_words("anything", 5).ids.tolist() == []
    with database.transaction() as connection:
        ids = insert(connection, [node(vector)])
    replica.follow()
    assert replica.search(vector, 5).ids.tolist() == ids


def test_a_notification_wakes_the_follower(written: Written, open_replica: Open) -> None:
    """The interval is an hour: only NOTIFY can bring the change."""
    replica, (vector,) = open_replica(ReplicaOptions(poll_s=3600, max_staleness_s=3600)), units(1, seed=6)
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(vector)])
    while nearest(replica, vector) != added:
        assert replica.state.ready


def test_the_follower_goes_on_after_its_connections_were_cut(written: Written, open_replica: Open) -> None:
    replica, (vector,) = open_replica(ReplicaOptions(poll_s=0.05, max_staleness_s=3600)), units(1, seed=8)
    with psycopg.connect(written.database._dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(vector)])
    while nearest(replica, vector) != added:
        assert replica._follower._thread.is_alive()


@pytest.mark.parametrize("bad", [np.zeros(384), np.full(384, np.nan), np.ones(384), np.eye(1, 5)[0]])
def test_an_unacceptable_vector_is_refused(written: Written, open_replica: Open, bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="vector: got"):
        open_replica().search(bad.astype(np.float32), 3)


def test_a_pruned_log_means_a_new_base(written: Written, open_replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    replica, (vector,) = open_replica(), units(1, seed=7)
    with written.database.transaction() as connection:
        (added,) = insert(connection, [node(vector)])
    with written.database.transaction() as connection:
        assert changes.prune(connection, timedelta(days=1)) == 0
    with written.database.transaction() as connection:
        assert changes.prune(connection, timedelta(0)) == 301
    with pytest.raises(ReplicaUnavailable, match="the log begins at"):
        replica.follow()
    replica.rebuild()
    assert nearest(replica, vector) == added


def test_stale_is_refused_and_says_so(written: Written, open_replica: Open) -> None:
    replica = open_replica(ReplicaOptions(poll_s=0, max_staleness_s=0.0))
    with pytest.raises(ReplicaUnavailable, match=r"s behind, more than 0\.0 s"):
        replica.search(written.vectors[0], 1)
    assert not replica.state.ready
    assert replica.state.staleness_s > 0


def test_over_budget_and_closed_are_refused(written: Written, open_replica: Open) -> None:
    replica = open_replica(ReplicaOptions(poll_s=0, max_staleness_s=3600, memory_budget=1000))
    with pytest.raises(ReplicaUnavailable, match="its budget of 1,000"):
        replica.search(written.vectors[0], 1)
    replica.close()
    with pytest.raises(ReplicaUnavailable, match="it was closed"):
        replica.search(written.vectors[0], 1)


def test_an_unreachable_server_is_unavailable_and_not_fatal(written: Written, open_replica: Open) -> None:
    replica = open_replica(ALONE)
    replica.database = Database("postgresql://127.0.0.1:1/none")
    with pytest.raises(ReplicaUnavailable, match="it cannot follow"):
        replica.follow()
    assert nearest(replica, written.vectors[0]) == written.ids[0]  # within the bound it goes on answering
    assert "none" in replica.state.reason
