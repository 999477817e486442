"""A thread that calls on every notification of Postgres, else once an interval. Knows nothing of what it calls.

The notification only wakes it; where LISTEN is not to be had (a standby, a server that is down) the interval goes on.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from psycopg import Connection, Error

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory.changes import CHANNEL
from ruvllm.memory.replica.source import borrowed


class Follower:
    """Calls `follow` until it is closed. `follow` reports its own failures; it raises DatabaseError alone."""

    def __init__(self, database: Database, follow: Callable[[], None], interval_s: float) -> None:
        self._database, self._follow, self._interval = database, follow, interval_s
        self._ours, self._wake = socket.socketpair()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica-follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the thread has ended."""
        self._closing.set()
        self._wake.send(b"x")
        self._thread.join()
        self._ours.close()
        self._wake.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with ExitStack() as stack:
                    self._listen(stack)
            except (DatabaseError, Error):
                self._wait(None)

    def _listen(self, stack: ExitStack) -> None:
        """Until the connection breaks, which raises, or the follower is closed."""
        connection = stack.enter_context(borrowed(self._database))
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        except Error:  # a standby: it cannot listen
            stack.close()
            while not self._closing.is_set():
                self._follow()
                self._wait(None)
            return
        stack.callback(_stop_listening, connection)
        while not self._closing.is_set():
            self._follow()
            self._wait(connection)

    def _wait(self, connection: Connection | None) -> None:
        """For a notification, the interval or the end."""
        sockets = [self._ours.fileno()] + ([] if connection is None else [connection.fileno()])
        ready, _, _ = select.select(sockets, [], [], self._interval)
        if connection is not None and connection.fileno() in ready:
            for _ in connection.notifies(timeout=0):  # all that are there
                pass


def _stop_listening(connection: Connection) -> None:
    """Before the pool gives it to another."""
    if not connection.closed:
        connection.execute("UNLISTEN *")
