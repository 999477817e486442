"""Connections: what a tenant sees, what the app's role may do, and what happens when Postgres goes away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, SettingsError
from ruvllm.settings import load_settings


@pytest.fixture(scope="module")
def fragile_server(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server of its own, to be stopped under its clients."""
    server = EmbeddedPostgres(load_settings({}, state_dir=open_dir / "fragile"), {"fsync": "off"})
    upgrade(server.ensure(), "test-encoder", 8)
    yield server
    server.stop()


@pytest.fixture
def fragile(fragile_server: EmbeddedPostgres) -> Iterator[Database]:
    database = Database(fragile_server.ensure())
    yield database
    database.close()


def backend(database: Database) -> int:
    with database.transaction() as connection:
        return connection.info.backend_pid


def end_backend(dsn: str, pid: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_a_connection_is_kept_and_speaks_as_the_app(database: Database) -> None:
    assert backend(database) == backend(database)
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT current_user, current_setting('app.tenant'), current_setting('hnsw.iterative_scan')"
        ).fetchone()
    assert row == ("ruvllm_app", "default", "strict_order")


def test_the_tenant_ends_with_its_transaction(database: Database) -> None:
    with database.transaction("a") as connection:
        assert connection.execute("SELECT current_setting('app.tenant')").fetchone() == ("a",)
    with database.transaction() as connection:
        assert connection.execute("SELECT current_setting('app.tenant')").fetchone() == ("default",)


def test_an_error_rolls_back_and_the_connection_is_used_again(database: Database) -> None:
    before = backend(database)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)")
        raise ZeroDivisionError
    with pytest.raises(psycopg.errors.CheckViolation), database.transaction() as connection:
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', -1)")
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM learning.replay_counter").fetchone() == (0,)
    assert backend(database) == before


def test_a_connection_killed_in_the_middle(database: Database, database_url: str) -> None:
    with pytest.raises(DatabaseError, match="ruvllm doctor"), database.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)")
        end_backend(database_url, connection.info.backend_pid)
        connection.execute("SELECT 1")
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM learning.replay_counter").fetchone() == (0,)


def test_a_connection_killed_before_the_commit(database: Database, database_url: str) -> None:
    with pytest.raises(DatabaseError), database.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)")
        end_backend(database_url, connection.info.backend_pid)
    database.ping()


def test_idle_connections_that_died_are_replaced(database: Database, database_url: str) -> None:
    dead = backend(database)
    end_backend(database_url, dead)
    assert backend(database) != dead


def tenant_and_writing(connection: psycopg.Connection) -> psycopg.Cursor[tuple[str, str, str]]:
    query = "SELECT current_setting('app.tenant', true), current_setting('transaction_read_only'), version()"
    return connection.execute(query)


def test_a_read_is_of_one_tenant_and_leaves_nothing_behind(database: Database) -> None:
    before = backend(database)
    (row,) = database.read(tenant_and_writing, {"enable_sort": "off"}, tenant="a")
    assert row[:2] == ("a", "on")
    sort = "SELECT current_setting('app.tenant', true), current_setting('enable_sort')"
    assert database.read(lambda c: c.execute(sort), {"enable_sort": "off"}) == [("default", "off")]
    with database._connection() as connection:
        assert connection.execute(sort).fetchone() in [("", "on"), (None, "on")]
    assert backend(database) == before


def test_a_read_cannot_write(database: Database) -> None:
    insert = "INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        database.read(lambda connection: connection.execute(insert))
    with pytest.raises(psycopg.errors.UndefinedTable):
        database.read(lambda connection: connection.execute("SELECT * FROM nowhere"))
    assert database.read(lambda connection: connection.execute("SELECT count(*) FROM learning.replay_counter")) == [
        (0,)
    ]


def counter(connection: psycopg.Connection) -> psycopg.Cursor[tuple[str]]:
    """Twice, it leaves what once leaves."""
    return connection.execute(
        "INSERT INTO learning.replay_counter (tenant, seen) VALUES (current_setting('app.tenant'), 7)"
        " ON CONFLICT DO NOTHING RETURNING tenant"
    )


def counters(database: Database) -> list[tuple[str, int]]:
    with database.transaction() as connection:
        return connection.execute("SELECT tenant, seen FROM learning.replay_counter").fetchall()


def test_a_write_is_committed_for_its_tenant_alone(database: Database) -> None:
    before = backend(database)
    assert database.write(counter, tenant="a") == [("a",)]
    assert counters(database) == []  # a tenant's rows are its own
    assert database.write(counter) == [("default",)]
    assert database.write(counter) == []
    assert counters(database) == [("default", 7)]
    with database._connection() as connection:
        assert connection.execute("SELECT current_setting('app.tenant', true)").fetchone() in [("",), (None,)]
    assert backend(database) == before


def test_a_write_that_is_refused_leaves_nothing_and_its_connection_is_used_again(database: Database) -> None:
    before, insert = backend(database), "INSERT INTO learning.replay_counter (tenant, seen) VALUES (%s, %s)"
    with pytest.raises(psycopg.errors.CheckViolation):
        database.write(lambda connection: connection.execute(insert, ("default", -1)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.write(lambda connection: connection.execute(insert, ("b", 1)))
    assert counters(database) == []
    assert backend(database) == before


def test_a_write_is_sent_again_where_its_idle_connection_died(database: Database, database_url: str) -> None:
    dead = backend(database)
    end_backend(database_url, dead)
    assert database.write(counter) == [("default",)]
    assert counters(database) == [("default", 7)]
    assert backend(database) != dead


def test_a_read_is_sent_again_where_its_connection_died(database: Database, database_url: str) -> None:
    dead = backend(database)
    sent = []

    def ask(connection: psycopg.Connection) -> psycopg.Cursor[tuple[int]]:
        sent.append(connection.info.backend_pid)
        if len(sent) == 1:
            end_backend(database_url, dead)
        return connection.execute("SELECT pg_backend_pid()")

    ((pid,),) = database.read(ask)
    assert sent == [dead, pid]
    assert pid != dead


def test_a_read_on_an_idle_connection_that_died(database: Database, database_url: str) -> None:
    dead = backend(database)
    end_backend(database_url, dead)
    ((pid,),) = database.read(lambda connection: connection.execute("SELECT pg_backend_pid()"))
    assert pid != dead


def test_a_read_that_is_cancelled_is_not_sent_again(database: Database) -> None:
    database.ping()
    sent = []

    def ask(connection: psycopg.Connection) -> psycopg.Cursor[tuple[object]]:
        sent.append(connection)
        return connection.execute("SELECT pg_sleep(60)")

    with pytest.raises(DatabaseError, match="statement timeout"):
        database.read(ask, {"statement_timeout": "20ms"})
    assert len(sent) == 1
    database.ping()


def test_a_write_is_not_begun_twice(database: Database, database_url: str) -> None:
    """The connection dies while it is idle: the block runs once, on another one."""
    end_backend(database_url, backend(database))
    runs = []
    with database.transaction() as connection:
        runs.append(
            connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)").rowcount
        )
    assert runs == [1]
    with database.transaction() as connection:
        assert connection.execute("SELECT seen FROM learning.replay_counter").rowcount == 1


def test_a_server_that_goes_away_and_comes_back(fragile: Database, fragile_server: EmbeddedPostgres) -> None:
    fragile.ping()
    fragile_server.stop()
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(DatabaseError, match="ruvllm doctor") as caught:
            fragile.ping()
        assert time.monotonic() - started < 1.0
    password = psycopg.conninfo.conninfo_to_dict(fragile_server.ensure())["password"]
    assert str(password) not in str(caught.value)
    fragile.ping()


def test_a_server_that_dies_in_the_middle(fragile: Database, fragile_server: EmbeddedPostgres) -> None:
    with pytest.raises(DatabaseError), fragile.transaction() as connection:  # noqa: PT012
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 1)")
        fragile_server.stop()
        connection.execute("SELECT 1")
    fragile_server.ensure()
    with fragile.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM learning.replay_counter").fetchone() == (0,)


def test_a_database_without_our_schema_is_named(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(DatabaseError, match=r"not ready for RuvLLM.*ruvllm doctor"):
        Database(postgres.create_database("bare")).ping()


def test_an_address_that_is_none() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        Database("mysql//nonsense")


def test_more_threads_than_connections(database_url: str) -> None:
    database = Database(database_url, max_size=2)

    def count(_: int) -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO learning.snapshots VALUES (memory.uuid7()::text, 'default', '', 1)")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(count, range(60)))
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM learning.snapshots").fetchone() == (60,)
        (clients,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchone() or (0,)
    database.close()
    assert clients <= 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_connection_alone(database: Database) -> None:
    before = backend(database)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os._exit(0 if backend(database) != before else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend(database) == before
