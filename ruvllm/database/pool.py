"""Connections to Postgres, as role ruvllm_app, one tenant per transaction. Knows nothing of tables.

A small pool of our own rather than psycopg_pool's: there a dead server costs every caller the whole time-out and the
pool's back-off delays the recovery; here a caller connects by itself, so that a refused connection is an error at once
and a server that is back is used at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from pgvector.psycopg import register_vector
from psycopg.pq import TransactionStatus

from ruvllm.database.dsn import check_dsn, shown
from ruvllm.errors import DatabaseError

_CONNECT_TIMEOUT_S = 5
_WAIT_S = 30.0


class Database:
    """At most `max_size` connections, made when they are needed and kept; safe among threads."""

    def __init__(self, dsn: str, tenant: str = "default", max_size: int = 16) -> None:
        self._dsn = check_dsn(dsn)
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
        with self._connection() as connection:
            try:
                with connection.transaction():
                    connection.execute("SELECT set_config('app.tenant', %s, true)", [tenant or self.tenant])
                    yield connection
            except psycopg.OperationalError as error:
                raise self._error(error) from error

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
        self._after_fork()
        if not self._slots.acquire(timeout=_WAIT_S):
            raise DatabaseError(f"{self}: all {self._size} connections were in use for {_WAIT_S:.0f} s; "
                                "ask less at once, or look for a transaction that never ends")  # fmt: skip
        try:
            connection = self._healthy_idle() or self._connect()
            try:
                yield connection
            finally:
                self._keep(connection)
        finally:
            self._slots.release()

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

    def _connect(self) -> psycopg.Connection:
        try:
            connection = psycopg.connect(
                self._dsn,
                autocommit=True,  # transaction() says BEGIN and COMMIT itself
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="ruvllm",
                tcp_user_timeout=10_000,  # ms: a host that vanished is noticed
            )
        except psycopg.OperationalError as error:
            raise self._error(error) from error
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

    def _error(self, error: psycopg.OperationalError) -> DatabaseError:
        return DatabaseError(f'{self}: {str(error).strip()}; run "ruvllm doctor"')
