"""Connections to Postgres, as role ruvllm_app, one tenant per transaction. Knows nothing of tables.

A small pool of our own rather than psycopg_pool's: there a dead server costs every caller the whole time-out and the
pool's back-off delays the recovery; here a caller connects by itself, so that a refused connection is an error at once
and a server that is back is used at once. Where `revive` is given, a refused connection calls it: an embedded server
that was killed comes back by its clients' next wish (ruvllm/database/revival.py).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Literal

from ruvllm.database.dsn import check_dsn, shown
from ruvllm.database.revival import Revival
from ruvllm.errors import DatabaseError

_CONNECT_TIMEOUT_S = 5
_WAIT_S = 30.0
_READ_ONLY = ("transaction_read_only", "on")
_CROSSED = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)  # another one's turn, then ours
_T = TypeVar("_T")


class Database:
    """At most `max_size` connections, made when they are needed and kept; safe among threads."""

    def __init__(
        self, dsn: str, tenant: str = "default", max_size: int = 16, revive: Callable[[], bool] | None = None
    ) -> None:
        """`revive` starts the server again where it died, and gives False where it did not (see Revival)."""
        self._dsn = check_dsn(dsn)
        self._revive = revive
        self._revival = Revival(revive) if revive else None
        self.tenant = tenant
        self._size = max_size
        self._slots = threading.BoundedSemaphore(max_size)
        self._idle: list[psycopg.Connection] = []
        self._pid = os.getpid()

    def __str__(self) -> str:
        return f"Postgres at {shown(self._dsn)}"

    @contextmanager
    def transaction(self, tenant: str | None = None) -> Iterator[psycopg.Connection]:
        """A transaction that sees the rows of `tenant` (by default the database's own) and no others.

        A constraint that refuses a row raises psycopg's own error.

        Raises:
            DatabaseError: Postgres is down, or went away in the middle: then nothing was committed, or, where it went
                during the commit, that is unknown. The next transaction works as soon as Postgres is back.
        """
        with self._slot():
            connection, begun = self._sent(lambda connection: _begin(connection, tenant or self.tenant))
            try:
                with ExitStack() as stack:
                    stack.push(begun)
                    yield connection
            except psycopg.OperationalError as error:
                raise self._error(error) from error
            finally:
                self._keep(connection)

    def read(
        self,
        send: Callable[[psycopg.Connection], psycopg.Cursor[_T]],
        settings: Mapping[str, str] = MappingProxyType({}),
        tenant: str | None = None,
    ) -> list[_T]:
        """The rows of the statement that `send` executes, in a read-only transaction of `tenant` with `settings`.

        All of it is one round trip, where `transaction` takes three. So `send` executes and does not fetch; on a
        connection that has died meanwhile it is called once more, with another one.

        Raises:
            DatabaseError: Postgres is down or went away.
        """
        return self._at_once(_settings((_READ_ONLY, *settings.items())), send, tenant)

    def write(self, send: Callable[[psycopg.Connection], psycopg.Cursor[_T]], tenant: str | None = None) -> list[_T]:
        """The rows of the writing statement that `send` executes, committed; `tenant` as in `read`.

        All of it is one round trip, where `transaction` takes four. `send` executes and does not fetch, and executed
        twice it must leave behind what it leaves once (ON CONFLICT DO NOTHING): where a connection dies, it is called
        again with another one, and nobody knows whether the first had committed. A constraint that refuses a row raises
        psycopg's own error.

        Raises:
            DatabaseError: Postgres is down or went away; whether it was committed is unknown.
        """
        return self._at_once(_settings(()), send, tenant)

    def _at_once(
        self, begin: bytes, send: Callable[[psycopg.Connection], psycopg.Cursor[_T]], tenant: str | None
    ) -> list[_T]:
        whose = [tenant or self.tenant]
        with self._slot():
            connection, rows = self._sent(lambda connection: _rows(connection, begin, whose, send))
            self._keep(connection)
        return rows

    def run(self, work: Callable[[psycopg.Connection], _T], tenant: str | None = None, attempts: int = 5) -> _T:
        """What `work` gives for a transaction; where Postgres ended that for a deadlock, all of it again in a new one.

        So `work` may have no effect but on its connection.

        Raises:
            DatabaseError: as `transaction`, or `attempts` transactions in a row were ended.
        """
        for attempt in range(attempts - 1):
            try:
                with self.transaction(tenant) as connection:
                    return work(connection)
            except DatabaseError as error:
                if not isinstance(error.__cause__, _CROSSED):
                    raise
                time.sleep(random.uniform(0.0, 0.02 * 2**attempt))  # the two do not meet again in step
        with self.transaction(tenant) as connection:
            return work(connection)

    @contextmanager
    def owner(self) -> Iterator[psycopg.Connection]:
        """An autocommit connection as the DSN's own user, for what only the owner may: DDL, REINDEX, VACUUM.

        It is made for the call and closed after it. No rows are read or written by it: no tenant is set.

        Raises:
            DatabaseError: Postgres is out of reach, or the DSN's user does not own memory's tables.
        """
        connection = self._reach()
        try:
            self._check_owner(connection)
            yield connection
        except psycopg.OperationalError as error:
            raise self._error(error) from error
        finally:
            connection.close()

    def ping(self) -> None:
        """Raises DatabaseError where Postgres does not answer."""
        with self._connection() as connection:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError as error:
                raise self._error(error) from error

    def close(self) -> None:
        """Close the idle connections; the next transaction would open one again."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        """One that answers, outside of any transaction."""
        with self._slot():
            connection = self._healthy_idle() or self._connect()
            try:
                yield connection
            finally:
                self._keep(connection)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """The right to one connection."""
        self._after_fork()
        if not self._slots.acquire(timeout=_WAIT_S):
            raise DatabaseError(f"{self}: all {self._size} connections were in use for {_WAIT_S:.0f} s; "
                                "ask less at once, or look for a transaction that never ends")  # fmt: skip
        try:
            yield
        finally:
            self._slots.release()

    def _sent(self, send: Callable[[psycopg.Connection], _T]) -> tuple[psycopg.Connection, _T]:
        """A connection and what `send` gave for it. An idle one that proves dead costs no check before: the next does.

        Nothing may be lost by sending again: `send` reads, or only begins.
        """
        while True:
            idle = self._idle.pop() if self._idle else None
            connection = idle or self._connect()
            try:
                return connection, send(connection)
            except psycopg.OperationalError as error:
                if idle is None or not _is_gone(error):
                    self._keep(connection)
                    raise self._error(error) from error
                connection.close()
            except BaseException:
                self._keep(connection)
                raise

    def _healthy_idle(self) -> psycopg.Connection | None:
        """An idle connection that still answers; the check costs one empty round trip."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                connection.execute("")
                return connection
            except psycopg.OperationalError:
                connection.close()

    def _reach(self) -> psycopg.Connection:
        """A new connection, to a server that was brought back where that was needed and can be done."""
        try:
            return self._open()
        except psycopg.OperationalError as error:
            if self._revival is None or not self._revival():
                raise self._error(error) from error
        try:
            return self._open()
        except psycopg.OperationalError as error:
            raise self._error(error) from error

    def _open(self) -> psycopg.Connection:
        return psycopg.connect(
            self._dsn,
            autocommit=True,  # transaction() says BEGIN and COMMIT itself
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="ruvllm",
            tcp_user_timeout=10_000,  # ms: a host that vanished is noticed
        )

    def _check_owner(self, connection: psycopg.Connection) -> None:
        query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('memory.nodes')"
        row = connection.execute(query).fetchone()
        if row is None:
            raise DatabaseError(f'{self} is not ready for RuvLLM: it has no memory.nodes; run "ruvllm doctor"')
        if not row[0]:
            raise DatabaseError(
                f"{self}: user {connection.info.user} does not own memory's tables, and their indexes are the owner's"
                " to rebuild; use the DATABASE_URL of the user that migrated them"
            )

    def _connect(self) -> psycopg.Connection:
        connection = self._reach()
        try:
            register_vector(connection)
            connection.execute("SET ROLE ruvllm_app")
            # with a filter or row-level security, off returns fewer than k rows and says nothing
            connection.execute("SET hnsw.iterative_scan = strict_order")
        except psycopg.Error as error:
            connection.close()
            raise DatabaseError(f"{self} is not ready for RuvLLM: {str(error).strip()}; "
                                'its schema may be missing: run "ruvllm doctor"') from error  # fmt: skip
        return connection

    def _keep(self, connection: psycopg.Connection) -> None:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def _after_fork(self) -> None:
        """A forked child must not speak on its parent's sockets; psycopg does not close them when they are dropped."""
        if self._pid != os.getpid():
            self._pid, self._idle = os.getpid(), []
            self._slots = threading.BoundedSemaphore(self._size)
            self._revival = Revival(self._revive) if self._revive else None  # its lock may have been held

    def _error(self, error: psycopg.OperationalError) -> DatabaseError:
        return DatabaseError(f'{self}: {str(error).strip()}; run "ruvllm doctor"')


def _begin(connection: psycopg.Connection, tenant: str) -> psycopg.Transaction:
    """A transaction that was entered; to leave it is the caller's."""
    begun = psycopg.Transaction(connection)
    with connection.pipeline():  # one round trip
        begun.__enter__()
        connection.execute("SELECT set_config('app.tenant', %s, true)", [tenant])
    return begun


def _rows(
    connection: psycopg.Connection,
    begin: bytes,
    whose: Sequence[str],
    send: Callable[[psycopg.Connection], psycopg.Cursor[_T]],
) -> list[_T]:
    """A pipeline is one transaction by itself: without BEGIN and COMMIT it ends when it is read out."""
    with connection.pipeline():
        connection.execute(begin, whose)
        cursor = send(connection)
    return cursor.fetchall()


@lru_cache(maxsize=64)
def _settings(wanted: tuple[tuple[str, str], ...]) -> bytes:
    """A statement that sets them, and as its parameter the tenant, for one transaction."""
    each = SQL("set_config({}, {}, true)")
    more = [each.format(Literal(name), Literal(value)) for name, value in wanted]
    statement = SQL(", ").join([SQL("SELECT set_config('app.tenant', %s, true)"), *more])
    return statement.as_bytes()


def _is_gone(error: psycopg.OperationalError) -> bool:
    """Whether the connection went (no SQLSTATE, or of the classes for that), not the statement alone."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
