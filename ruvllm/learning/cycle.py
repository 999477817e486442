"""The ledger of nights: which cycle runs, which of its steps are done. Knows nothing of what the steps do.

A night that was killed is taken up again: `open_cycle` returns it, and `once` skips the steps that are done.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, LearningError

_RESTART_S, _AGAIN_S = 60.0, 0.5  # how long a night waits for a server that is restarted, looking how often


@dataclass(frozen=True)
class Cycle:
    """`night` counts from 1. `resumed` is True where an earlier run of this night left it unfinished."""

    id: str
    night: int
    resumed: bool


@dataclass(frozen=True)
class Step:
    name: str
    result: dict[str, Any]
    seconds: float


def open_cycle(database: Database) -> Cycle:
    """The unfinished night, or a new one."""
    with database.transaction() as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('ruvllm.cycle'))")
        found = connection.execute(
            "SELECT id, night FROM learning.cycles WHERE finished_at IS NULL ORDER BY night LIMIT 1"
        ).fetchone()
        if found is not None:
            return Cycle(found[0], found[1], resumed=True)
        last = connection.execute("SELECT coalesce(max(night), 0) FROM learning.cycles").fetchone()
        assert last is not None
        cycle = Cycle(f"night-{last[0] + 1:04d}-{uuid.uuid4().hex[:8]}", last[0] + 1, resumed=False)
        connection.execute(
            "INSERT INTO learning.cycles (id, tenant, night) VALUES (%s, %s, %s)",
            (cycle.id, database.tenant, cycle.night),
        )
    return cycle


@contextmanager
def alone(database: Database) -> Iterator[Callable[[], None]]:
    """No second night of this tenant within the block, on whichever machine; ends with its process, as by kill -9.

    A server that is restarted forgets it: what is given, called before each step, takes it again.

    Raises:
        LearningError: a night runs already; of the call too, where one began meanwhile.
    """
    with _Turn(database) as turn:
        yield turn.confirm


class _Turn:
    """An advisory lock on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened = ExitStack()

    def __enter__(self) -> _Turn:
        self._connection = self._take()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()  # the lock goes with the connection

    def confirm(self) -> None:
        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:
            self._connection = self._take_again(time.monotonic() + _RESTART_S)

    def _take_again(self, deadline: float) -> psycopg.Connection:
        """As soon as the server is back."""
        while True:
            try:
                return self._take()
            except DatabaseError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_S)

    def _take(self) -> psycopg.Connection:
        self._opened.close()
        connection = self._opened.enter_context(self._database.owner())
        key = f"ruvllm.nightly.night {self._database.tenant}"
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (key,)).fetchone()
        if row != (True,):
            self._opened.close()
            raise LearningError(
                f"a night of tenant {self._database.tenant} runs already; wait for it: its run is in Prefect "
                "(ruvllm status)"
            )
        return connection


def find_cycle(database: Database, cycle_id: str) -> Cycle:
    """The cycle of that id.

    Raises:
        LearningError: there is none.
    """
    with database.transaction() as connection:
        found = connection.execute("SELECT id, night FROM learning.cycles WHERE id = %s", (cycle_id,)).fetchone()
    if found is None:
        raise LearningError(f'cycle {cycle_id!r}: no such cycle; "ruvllm cycle" opens one')
    return Cycle(found[0], found[1], resumed=True)


def finished_cycle(database: Database, night: int | None = None) -> Cycle:
    """The finished cycle of that night, or the last one.

    Raises:
        LearningError: there is none.
    """
    with database.transaction() as connection:
        found = connection.execute(
            "SELECT id, night FROM learning.cycles WHERE finished_at IS NOT NULL AND night = coalesce(%s::int, night)"
            " ORDER BY night DESC LIMIT 1",
            (night,),
        ).fetchone()
    if found is None:
        which = "no night is finished yet" if night is None else f"night {night}: is not finished, or never was"
        raise LearningError(f"{which}; run one (ruvllm cycle)")
    return Cycle(found[0], found[1], resumed=False)


def resume_cycle(database: Database, cycle_id: str) -> Cycle:
    """The unfinished cycle of that id.

    Raises:
        LearningError: there is none, or it is finished.
    """
    cycle = find_cycle(database, cycle_id)
    with database.transaction() as connection:
        done = connection.execute(
            "SELECT 1 FROM learning.cycles WHERE id = %s AND finished_at IS NOT NULL", (cycle_id,)
        ).fetchone()
    if done is not None:
        raise LearningError(f"cycle {cycle_id}: is finished; leave the id out to begin the next night")
    return cycle


def finish_cycle(database: Database, cycle_id: str) -> None:
    with database.transaction() as connection:
        connection.execute(
            "UPDATE learning.cycles SET finished_at = now() WHERE id = %s AND finished_at IS NULL", (cycle_id,)
        )


def steps_done(database: Database, cycle_id: str) -> dict[str, Step]:
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT step, result, seconds FROM learning.steps WHERE cycle_id = %s ORDER BY done_at", (cycle_id,)
        ).fetchall()
    return {row[0]: Step(*row) for row in rows}


def once(database: Database, cycle_id: str, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of step `name`: stored, or worked out now and stored. `work` has to be idempotent itself."""
    done = steps_done(database, cycle_id).get(name)
    if done is not None:
        return done.result
    started = time.monotonic()
    result = work()
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.steps (cycle_id, tenant, step, result, seconds) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (cycle_id, step) DO NOTHING",
            (cycle_id, database.tenant, name, json.dumps(result), time.monotonic() - started),
        )
    return result
