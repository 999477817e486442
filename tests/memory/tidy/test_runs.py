"""A tidying run: dry at first, capped, whole after a kill, and taken back exactly."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError
from ruvllm.memory.records import Edge, NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import canary, merge, runs
from ruvllm.memory.tidy.dedup import dedup
from ruvllm.settings import PROJECT_ROOT, Settings
from tests.memory.tables import contents

TEXT = (
    "The harbour of Tema was built after independence and handles most of the cargo of Ghana. It lies thirty"
    " kilometres east of Accra on the Gulf of Guinea and has been widened twice since it was opened in 1962, and the"
    " breakwaters that shelter it from the swell are among the longest of that coast."
)
NODE = NewNode(TEXT, source="guide")
_fresh = itertools.count()


def _near(n: int) -> NewNode:
    return replace(NODE, text=TEXT.replace("was built", f"was {'very ' * n}well built"))


def _tangle(memory: Memory) -> list[int]:
    """Three rows for one thing, with edges between them and to others, some of them the same, and usage."""
    ids = memory.add([NODE, replace(_near(1), confidence=0.5, writer="ann"), _near(2), NewNode("c"), NewNode("d")]).ids
    a, b, e, c, d = ids
    memory.link_all(
        [(b, c, "Cites", 0.9), (a, c, "Cites", 0.2), (d, b, "Follows", 0.6), (a, b, "SameTopic", 0.9),
         (e, c, "Cites", 0.5), (d, e, "Follows", 0.3), (e, b, "SameTopic", 0.8), (c, d, "Cites", 0.4)], "test"
    )  # fmt: skip
    memory.touch([b])
    memory.touch([a, b, c])
    return list(ids)


def test_undo_restores_every_row_of_a_merge_as_it_was(memory: Memory, database: Database, settings: Settings) -> None:
    _tangle(memory)
    before = contents(database)
    report = dedup(database, settings, apply=True)
    assert (report.done.archived, report.status) == (2, "done")
    assert contents(database) != before
    undone = runs.undo(database, report.run)
    assert contents(database) == before
    assert (undone.nodes, undone.deleted, undone.kept) == (3, 0, 0)
    assert runs.find(database, report.run).status == "undone"
    with pytest.raises(InputError, match="is undone already"):
        runs.undo(database, report.run)


_NODES = st.integers(0, 7)
_EDGES = st.tuples(
    _NODES, _NODES, st.sampled_from(["Cites", "Follows", "SameTopic"]), st.sampled_from([0.02, 0.3, 0.9])
)


@given(st.lists(_EDGES, max_size=24), st.lists(st.tuples(_NODES, _NODES), max_size=7), st.lists(_NODES, max_size=6))
@given_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_undo_of_any_tangle_is_exact(
    memory: Memory, database: Database, edges: list[Edge], merges: list[tuple[int, int]], used: list[int]
) -> None:
    """Heirs that are merged on, edges that meet, usage, strengthening, archiving and pruning, in one run."""
    ids = memory.add([NewNode(f"{next(_fresh)} of many") for _ in range(8)]).ids
    memory.link_all([(ids[a], ids[b], rel, weight) for a, b, rel, weight in edges if a != b], "test")
    for node in used:
        memory.touch([ids[node]])
    before = contents(database)
    gone: set[int] = set()
    with runs.tidying(database, "dedup", apply=True) as run, run.batch() as connection:
        for heir, loser in merges:
            if heir != loser and heir not in gone:
                gone.add(loser)
                merge.absorb(connection, ids[heir], ids[loser], "test", "test")
                merge.strengthen(connection, ids[heir], 1.0, "system", {"merged": str(loser)})
        connection.execute("UPDATE memory.edges SET weight = weight / 2")
        connection.execute("DELETE FROM memory.edges WHERE weight < 0.05")
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [ids[7]])
    runs.undo(database, run.id)
    assert contents(database) == before


def test_what_was_undone_is_not_merged_again(memory: Memory, database: Database, settings: Settings) -> None:
    _tangle(memory)
    runs.undo(database, dedup(database, settings, apply=True).run)
    assert dedup(database, settings, everything=True, apply=True).done.archived <= 1  # the one pair that never was
    with database.transaction() as connection:
        rows = connection.execute("SELECT by, why, run IS NOT NULL, undone_at IS NOT NULL FROM memory.supersessions")
        assert rows.fetchmany(2) == [("dedup", "near duplicate", True, True)] * 2


def test_undo_leaves_what_others_wrote_meanwhile(memory: Memory, database: Database, settings: Settings) -> None:
    a, b, _, c, d = _tangle(memory)
    run = dedup(database, settings, apply=True).run
    memory.touch([a])
    memory.link(a, d, "Derived", 0.7, "somebody")
    with database.transaction() as connection:
        connection.execute("UPDATE memory.edges SET weight = 0.95 WHERE (src, dst, rel) = (%s, %s, 'Cites')", [a, c])
    runs.undo(database, run)
    with database.transaction() as connection:
        uses = dict(connection.execute("SELECT node, uses FROM memory.node_usage").fetchall())
    edges = {(src, dst, rel): round(weight, 2) for src, dst, rel, weight in memory.neighbours([a, b])}
    assert (uses[a], uses[b]) == (2, 2)
    assert edges[a, d, "Derived"] == 0.7
    assert edges[a, c, "Cites"] == 0.95
    assert edges[b, c, "Cites"] == 0.9


def test_a_later_run_is_undone_first(memory: Memory, database: Database, settings: Settings) -> None:
    memory.add([NODE, _near(1)])
    before = contents(database)
    first = dedup(database, settings, apply=True).run
    memory.add([_near(2)])
    between = contents(database)
    second = dedup(database, settings, apply=True).run
    with pytest.raises(InputError, match=f"undo run {second} first"):
        runs.undo(database, first)
    runs.undo(database, second)
    assert contents(database) == between
    runs.undo(database, first)
    left = contents(database)
    assert set(before["nodes"]) <= set(left["nodes"])
    assert len(left["nodes"]) == 3


def test_the_first_run_is_dry_and_decides_as_a_real_one(memory: Memory, database: Database, settings: Settings) -> None:
    _tangle(memory)
    before = contents(database)
    dry = dedup(database, settings)
    assert contents(database) == before
    real = dedup(database, settings)
    assert (dry.dry, real.dry, dry.pairs) == (True, False, real.pairs)
    assert dry.as_dict()["merged_near"] == 0
    assert dry.as_dict()["would_merge_near"] == real.as_dict()["merged_near"] == 2
    with pytest.raises(InputError, match="dry run"):
        runs.undo(database, dry.run)


def test_a_cap_leaves_the_rest_for_the_next_run(memory: Memory, database: Database, settings: Settings) -> None:
    memory.add([replace(NODE, text=TEXT.replace("Tema", f"Port{i % 5}") + "  " * (i // 5)) for i in range(15)])
    memory.add([replace(NODE, text=TEXT.replace("Tema", f"Port{i}").replace(". It", ".\n\nIt")) for i in range(5)])
    capped = dedup(database, settings, apply=True, cap=2)
    assert (capped.done.archived, capped.capped) == (2, True)
    rest = dedup(database, settings, apply=True)
    assert (rest.capped, rest.done.nodes_after) == (False, 5)
    assert memory.maintain(everything=True).archived == 0


def test_a_killed_run_is_settled_by_the_next_and_can_be_undone(memory: Memory, database: Database) -> None:
    a, b = memory.add([NODE, _near(1)]).ids
    before = contents(database)

    class Killed(BaseException):
        pass

    def kill() -> None:
        with runs.tidying(database, "dedup", apply=True) as run:
            with run.batch() as connection:
                assert merge.absorb(connection, a, b, "test", "test")
                run.count(1, merged=1)
            with run.batch() as connection:
                connection.execute("UPDATE memory.nodes SET confidence = 0")
                raise Killed

    with pytest.raises(Killed):
        kill()
    with database.transaction() as connection:  # as it would be, had there been no moment to say so
        connection.execute("UPDATE memory.runs SET status = 'running', finished_at = NULL")
    killed = runs.latest(database)[0]
    assert (killed.status, killed.counts) == ("running", {"merged": 1})
    with runs.tidying(database, "archive") as run:
        assert run.id != killed.id
    settled = runs.find(database, killed.id)
    assert (settled.status, settled.reason) == ("failed", "its process ended before it did")
    runs.undo(database, killed.id)
    assert contents(database) == before


_KILLED = """
import os, signal, sys
from ruvllm.database.pool import Database
from ruvllm.memory.tidy import dedup
from ruvllm.settings import load_settings
dedup._BATCH = 5
def killed(done, total, note=""):
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
dedup.dedup(Database(sys.argv[1]), load_settings({}), killed, apply=True)
"""


def test_a_process_killed_in_mid_run_leaves_whole_batches(
    memory: Memory, database: Database, database_url: str
) -> None:
    texts = [TEXT.replace("Tema", f"Port{i}") for i in range(8)]
    memory.add([replace(NODE, text=text) for text in texts])
    memory.add([replace(NODE, text=text.replace("was built", "was constructed")) for text in texts])
    before = contents(database)
    done = subprocess.run([sys.executable, "-c", _KILLED, database_url], cwd=PROJECT_ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    [killed] = runs.latest(database)
    assert (killed.status, killed.counts["checked"]) == ("running", 10)
    assert memory.counts()["archived"] == killed.counts["merged"] > 0
    assert memory.maintain().nodes_after == 8
    assert runs.find(database, killed.id).status == "failed"
    for run in runs.latest(database):
        runs.undo(database, run.id)
    assert contents(database) == before


def test_a_run_that_was_settled_by_another_process_goes_no_further(database: Database) -> None:
    """As after a crash of the server, which takes the lock with it, while this process lives on."""
    with runs.tidying(database, "decay") as run:
        with run.batch():
            pass
        runs.settle(database)
        with pytest.raises(DatabaseError, match="ended by another process"), run.batch():
            pass
    assert runs.find(database, run.id).status == "failed"


def test_a_run_is_its_tenants_own(memory: Memory, database: Database, database_url: str, settings: Settings) -> None:
    _tangle(memory)
    run = dedup(database, settings, apply=True).run
    other = Database(database_url, "other")
    with pytest.raises(InputError, match="no such run"):
        runs.undo(other, run)
    assert runs.latest(other) == []
    other.close()


def test_two_runs_of_one_tenant_never_meet(database: Database, database_url: str) -> None:
    with runs.tidying(database, "dedup"):
        with pytest.raises(DatabaseError, match="being tidied by another"), runs.tidying(database, "decay"):
            pass
        other = Database(database_url, "other")
        with runs.tidying(other, "decay"):
            pass
        other.close()


def test_a_merge_outside_of_a_run_says_who_and_why_and_can_be_taken_back(memory: Memory, database: Database) -> None:
    from ruvllm.memory.tidy import journal

    a, b, *_ = _tangle(memory)
    before = contents(database)
    with database.transaction() as connection:
        assert merge.absorb(connection, a, b, "better answer", "write-back")
        assert not merge.absorb(connection, a, b)
        connection.execute("UPDATE memory.nodes SET domain = 'x' WHERE id = %s", [a])  # not the merge's
    with database.transaction() as connection:
        [row] = connection.execute("SELECT id, node, heir, by, why, run FROM memory.supersessions").fetchall()
        assert row[1:] == (b, a, "write-back", "better answer", None)
        connection.execute("UPDATE memory.nodes SET domain = '' WHERE id = %s", [a])
        journal.take_back(connection, supersession=row[0])
    assert contents(database) == before
    with pytest.raises(InputError, match="itself as heir"), database.transaction() as connection:
        merge.absorb(connection, a, a)


def test_nothing_is_merged_into_what_is_gone(memory: Memory, database: Database) -> None:
    """Two merges that cross would leave two rows that each point to the other, and neither found."""
    a, b, c, *_ = _tangle(memory)
    with database.transaction() as connection:
        merge.absorb(connection, a, b, "test", "test")
        with pytest.raises(InputError, match=f"node {b}: is archived"):
            merge.absorb(connection, b, a)
        assert not merge.absorb(connection, c, b)


def test_an_ordinary_write_leaves_no_journal(memory: Memory, database: Database) -> None:
    _tangle(memory)
    memory.write_back("What is the population of Ghana?", "33 million", 1.0, "gold")
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM memory.journal").fetchone() == (0,)


def test_a_hard_delete_takes_its_journal_along(memory: Memory, database: Database, settings: Settings) -> None:
    a, b, *_ = _tangle(memory)
    canary.add(database, memory.embedder, "Where is Tema?", b)
    dedup(database, settings, apply=True)
    with database.transaction() as connection:
        connection.execute("DELETE FROM memory.nodes WHERE id = %s", [b])
        for table in ("journal WHERE node", "supersessions WHERE node", "canary_queries WHERE expected"):
            assert connection.execute(f"SELECT count(*) FROM memory.{table} = %s", [b]).fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM memory.journal WHERE node = %s", [a]).fetchone() != (0,)


def test_undo_after_a_hard_delete_restores_what_is_left(memory: Memory, database: Database, settings: Settings) -> None:
    a, b, _, c, _ = _tangle(memory)
    run = dedup(database, settings, apply=True).run
    with database.transaction() as connection:
        connection.execute("DELETE FROM memory.nodes WHERE id = ANY(%s)", [[b, c]])
    runs.undo(database, run)
    assert memory.counts()["nodes"] == 3
    assert [node.id for node in memory.get([a, b, c])] == [a]


def test_old_journals_are_forgotten_and_say_so(memory: Memory, database: Database, settings: Settings) -> None:
    _tangle(memory)
    run = dedup(database, settings, apply=True).run
    assert runs.forget(database) == 0
    with database.transaction() as connection:
        connection.execute("UPDATE memory.runs SET finished_at = now() - interval '91 days'")
    assert runs.forget(database) > 0
    with pytest.raises(InputError, match="can no longer be undone"):
        runs.undo(database, run)
    with pytest.raises(InputError, match="no such run"):
        runs.undo(database, run + 1000)
