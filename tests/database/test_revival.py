"""An embedded server that is killed under its clients comes back; one that was stopped stays down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest

from ruvllm.database import open_database
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.database.revival import Revival
from ruvllm.errors import DatabaseError
from ruvllm.settings import Settings, load_settings

WRITE = "INSERT INTO learning.snapshots VALUES (%s, 'default', '', 1)"
ALL = "SELECT digest FROM learning.snapshots"


@pytest.fixture(scope="module")
def state(open_dir: Path) -> Settings:
    return load_settings({}, state_dir=open_dir / "killed-under-clients")


@pytest.fixture
def server(state: Settings) -> Iterator[EmbeddedPostgres]:
    """Durable, as in use: fsync is on."""
    server = EmbeddedPostgres(state, {"shared_buffers": "16MB"})
    upgrade(server.ensure(), "test-encoder", 8)
    yield server
    server.stop()


@pytest.fixture
def database(server: EmbeddedPostgres) -> Iterator[Database]:
    database = Database(server.ensure(), revive=server.revive)
    with database.transaction() as connection:
        connection.execute("DELETE FROM learning.snapshots")
    yield database
    database.close()


def kill(server: EmbeddedPostgres, everything: bool = True) -> None:
    postmaster = psutil.Process(server.status().pid)
    processes = [postmaster, *(postmaster.children(recursive=True) if everything else ())]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=20)


def write(database: Database, digest: str) -> None:
    with database.transaction() as connection:
        connection.execute(WRITE, [digest])


def kept(database: Database) -> set[str]:
    with database.transaction() as connection:
        return {digest for (digest,) in connection.execute(ALL)}


@pytest.mark.parametrize("everything", [True, False])
def test_killed_it_is_back_with_the_next_transaction(
    database: Database, server: EmbeddedPostgres, everything: bool
) -> None:
    write(database, "before")
    before = server.status().pid
    kill(server, everything)
    write(database, "after")
    assert kept(database) == {"before", "after"}
    assert server.status().pid != before


def test_killed_in_the_middle_of_a_transaction_nothing_of_it_is_kept(
    database: Database, server: EmbeddedPostgres
) -> None:
    with pytest.raises(DatabaseError), database.transaction() as connection:  # noqa: PT012
        connection.execute(WRITE, ["half"])
        kill(server)
        connection.execute("SELECT 1")
    assert kept(database) == set()


def test_killed_under_writers_nothing_acknowledged_is_lost(database: Database, server: EmbeddedPostgres) -> None:
    """Each writes until it is served after the kill, refused before or not; what was acknowledged is there, once."""
    acknowledged: list[str] = []
    started, killed = threading.Barrier(5), threading.Event()

    def work(name: int) -> None:
        started.wait()
        for number in range(100_000):
            digest = f"{name}-{number}"
            try:
                write(database, digest)
            except DatabaseError:
                continue
            acknowledged.append(digest)
            if killed.is_set():
                return
        raise AssertionError("it was never served again")

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, name) for name in range(4)]
        started.wait()
        while len(acknowledged) < 20:
            assert not any(each.done() for each in working)
        kill(server)
        killed.set()
        for each in working:
            each.result(timeout=120)
    assert set(acknowledged) <= kept(database)
    assert len(acknowledged) == len(set(acknowledged))


def test_stopped_it_stays_down(database: Database, server: EmbeddedPostgres) -> None:
    write(database, "before")
    server.stop()
    with pytest.raises(DatabaseError, match="ruvllm doctor"):
        database.ping()
    assert not server.status().running
    kill_and_stop(server)
    with pytest.raises(DatabaseError):
        database.ping()
    server.ensure()
    assert kept(database) == {"before"}


def kill_and_stop(server: EmbeddedPostgres) -> None:
    """As `make down` after a crash: it is told to stay down, and has nothing left to stop."""
    server.ensure()
    kill(server)
    server.stop()


def test_open_database_gives_the_embedded_server_its_revival(
    database: Database, server: EmbeddedPostgres, state: Settings
) -> None:
    opened = open_database(state)
    write(opened, "before")
    kill(server)
    assert kept(opened) == {"before"}
    opened.close()


def test_the_owners_connection_revives_it_too(database: Database, server: EmbeddedPostgres) -> None:
    kill(server)
    with database.owner() as connection:
        connection.execute("VACUUM memory.nodes")


# -- what the owner may


def test_the_owner_is_no_app_and_closes_behind_itself(server: EmbeddedPostgres) -> None:
    database = Database(server.ensure())
    with database.owner() as connection:
        row = connection.execute("SELECT current_user = session_user, current_user <> 'ruvllm_app'").fetchone()
        assert row == (True, True)
        connection.execute("REINDEX INDEX CONCURRENTLY memory.nodes_embedding")
    assert connection.closed
    database.close()


def test_who_owns_nothing_is_refused(server: EmbeddedPostgres) -> None:
    dsn = server.ensure()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE guest LOGIN PASSWORD 'guest' IN ROLE ruvllm_app")
    theirs = psycopg.conninfo.make_conninfo(dsn, user="guest", password="guest")
    database = Database(theirs)
    database.ping()
    with pytest.raises(DatabaseError, match="user guest does not own memory's tables"), database.owner():
        raise AssertionError("never here")
    with pytest.raises(DatabaseError, match=r"no memory\.nodes"), Database(server.create_database("bare")).owner():
        raise AssertionError("never here")
    database.close()


# -- one caller at a time, and longer pauses after each failure


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def failing() -> bool:
    raise DatabaseError("it does not start")


def test_after_a_failure_there_is_a_pause_that_grows_and_ends() -> None:
    clock, outcomes = Clock(), iter([failing] * 8 + [lambda: True, failing])
    tried: list[float] = []

    def revive() -> bool:
        tried.append(clock.now)
        outcome: Callable[[], bool] = next(outcomes)
        return outcome()

    revival = Revival(revive, clock)
    for tenths in range(2600):
        clock.now = tenths / 10
        if revival():
            break
    assert tried == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert not revival()
    clock.now += 1.0
    with pytest.raises(StopIteration):  # the first pause again; and an error of no database is not kept to itself
        revival()


def test_one_revives_and_the_others_are_told_at_once() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def revive() -> bool:
        begun.set()
        return go_on.wait(timeout=30)

    revival = Revival(revive)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(revival)
        assert begun.wait(timeout=30)
        assert [revival() for _ in range(3)] == [False] * 3
        assert not first.done()
        go_on.set()
        assert first.result(timeout=30)
