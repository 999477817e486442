"""Runs that tidy memory: one at a time a tenant, dry at first, capped, watched by a canary, taken back by their id.

Knows nothing of what a run does. It works in batches, a transaction each, whose rows are journalled: a kill leaves
whole batches and a run that says "running"; whoever starts next finds it, asks the canary, and keeps or takes back its
work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime

from psycopg import Connection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError
from ruvllm.memory.tidy import canary, journal
from ruvllm.memory.tidy.journal import UndoReport

SHARE = 0.01  # of the live rows is what a run may change
LEAST_CAP = 20  # but at least so many: 1 % of a small memory would be nothing
TOLERANCE = 0.02  # by which R@10 on the canary's questions may fall: one question of fifty


@dataclass(frozen=True)
class Run:
    """A row of memory.runs."""

    id: int
    kind: str  # dedup | compaction | archive | decay
    dry_run: bool
    status: str  # running | done | failed | rolled_back | undone
    started_at: datetime
    finished_at: datetime | None
    cap: int
    counts: Mapping[str, int]
    canary_before: float | None
    canary_after: float | None
    reason: str
    forgotten_at: datetime | None


@dataclass
class Running:
    """A run that is under way; `dry` ones change nothing."""

    database: Database
    id: int
    kind: str
    dry: bool
    cap: int
    changed: int = 0  # rows against the cap
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Rows that it may still change."""
        return max(0, self.cap - self.changed)

    @contextmanager
    def batch(self) -> Iterator[Connection]:
        """A transaction whose rows are journalled, and counted in it.

        Raises:
            DatabaseError: the server died in between, and another process settled this run since.
        """
        with self.database.transaction() as connection, journal.recording(connection, "run", self.id):
            if not _still_running(connection, self.id):
                raise DatabaseError(f"run {self.id} of memory: was ended by another process; start a new one")
            yield connection
            connection.execute("UPDATE memory.runs SET counts = %s WHERE id = %s", [Jsonb(self.counts), self.id])

    def count(self, changed: int = 0, **more: int) -> None:
        """Add to the counts; `changed` rows go against the cap."""
        self.changed += changed
        for name, number in more.items():
            self.counts[name] = self.counts.get(name, 0) + number


@contextmanager
def tidying(
    database: Database,
    kind: str,
    apply: bool | None = None,
    cap: int | None = None,
    tolerance: float = TOLERANCE,
    watched: bool = True,
) -> Iterator[Running]:
    """Open a run of `kind` and end it with the block; `find` then says what became of it.

    Args:
        apply: None is a dry run until a dry run of this kind is on record, and a real one from then on.
        cap: rows that it may change; by default 1 % of the live ones, at least 20.
        tolerance: by how much R@10 on the stored questions may fall before the run is taken back.
        watched: False for what no search by vector can notice.

    Raises:
        DatabaseError: another run of this tenant is under way.
    """
    with _alone(database):
        settle(database, tolerance)
        running = _begun(database, kind, apply, cap, watched)
        try:
            yield running
        except BaseException as error:
            with suppress(DatabaseError):  # out of reach: whoever starts next settles it
                _finish(database, running.id, "failed", str(error) or type(error).__name__, tolerance)
            raise
        _finish(database, running.id, "done", "", tolerance)


def settle(database: Database, tolerance: float = TOLERANCE) -> None:
    """End what a killed process left; only for who is alone."""
    with database.transaction() as connection:
        left = [row[0] for row in connection.execute("SELECT id FROM memory.runs WHERE status = 'running'")]
    for id in left:
        _finish(database, id, "failed", "its process ended before it did", tolerance)


def undo(database: Database, run_id: int) -> UndoReport:
    """Take back a run: every row that it changed is as it was before, ids and times too.

    Raises:
        InputError: no such run, nothing to take back, or a later run built on it.
        DatabaseError: another run is under way.
    """
    with _alone(database):
        settle(database)
        _check_undoable(find(database, run_id))
        with database.transaction() as connection:
            _check_last(connection, run_id)
            return _taken_back(connection, run_id, "undone", "")


def find(database: Database, run_id: int) -> Run:
    """Raises InputError where there is none."""
    with database.transaction() as connection:
        found = connection.cursor(row_factory=class_row(Run)).execute(f"{_SELECT} WHERE id = %s", [run_id]).fetchone()
    if found is None:
        raise InputError(f"run {run_id}: no such run of memory; runs.latest lists them")
    return found


def latest(database: Database, limit: int = 20) -> list[Run]:
    """The newest first."""
    with database.transaction() as connection:
        cursor = connection.cursor(row_factory=class_row(Run))
        return cursor.execute(f"{_SELECT} ORDER BY id DESC LIMIT %s", [limit]).fetchall()


def forget(database: Database, days: int = 90) -> int:
    """Drop the journals of what ended more than `days` ago; those runs stay on record but cannot be undone."""
    with database.transaction() as connection:
        connection.execute(_FORGET_RUNS, [days])
        return sum(connection.execute(each, [days]).rowcount for each in _FORGET_ROWS)


_SELECT = f"SELECT {', '.join(each.name for each in fields(Run))} FROM memory.runs"  # noqa: S608  # our own names

_FORGET_RUNS = """
    UPDATE memory.runs SET forgotten_at = now()
    WHERE finished_at < now() - make_interval(days => %s) AND forgotten_at IS NULL
"""
_FORGET_ROWS = (
    """
    DELETE FROM memory.journal WHERE run IN (
        SELECT id FROM memory.runs WHERE finished_at < now() - make_interval(days => %s))
    """,
    """
    DELETE FROM memory.journal WHERE run IS NULL AND supersession IN (
        SELECT id FROM memory.supersessions WHERE run IS NULL AND at < now() - make_interval(days => %s))
    """,
)
_BEGIN = """
    INSERT INTO memory.runs (tenant, kind, dry_run, cap, canary_before)
    VALUES (current_setting('app.tenant'), %(kind)s, %(dry)s, %(cap)s, %(canary)s) RETURNING id
"""
_TRIED = "SELECT EXISTS (SELECT FROM memory.runs WHERE kind = %s AND dry_run AND status = 'done')"
_FINISH = """
    UPDATE memory.runs SET status = %(status)s, reason = %(reason)s, finished_at = now(),
        canary_after = coalesce(%(canary)s, canary_after)
    WHERE id = %(id)s
"""
# Rows that a later run changed too: taking back the earlier one alone would tear the later one.
_LATER = """
    SELECT DISTINCT l.run FROM memory.journal m JOIN memory.journal l
      ON l.node = m.node AND l.relation = m.relation AND l.key = m.key AND l.id > m.id
    JOIN memory.runs r ON r.id = l.run
    WHERE m.run = %(run)s AND l.run <> m.run AND r.status IN ('done', 'failed')
    UNION
    SELECT l.run FROM memory.journal m, memory.journal l JOIN memory.runs r ON r.id = l.run
    WHERE m.run = %(run)s AND m.relation = 'weights' AND l.relation = 'weights' AND l.run > m.run
      AND r.status IN ('done', 'failed')
    ORDER BY 1
"""


# The lock is held for as long as a run takes, without a word.
_LOCK = """
    SELECT pg_try_advisory_xact_lock(hashtextextended('ruvllm.tidy ' || current_setting('app.tenant'), 0))
    FROM set_config('idle_in_transaction_session_timeout', '0', true)
"""


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """One run at a time a tenant. The lock is a transaction's, on a connection of its own: it dies with the process.

    It has no snapshot and no id, so it holds up neither vacuum nor replicas. Where the server dies and comes back, it
    is lost; then the row's own status and the index runs_one_at_a_time keep runs apart.
    """
    ended = False
    try:
        with database.transaction() as connection:
            if connection.execute(_LOCK).fetchone() != (True,):
                raise DatabaseError(
                    f"memory of tenant {database.tenant}: is being tidied by another process; try again when it is done"
                )
            yield
            ended = True
    except DatabaseError:
        if not ended:  # what is over is not undone by a lock that was lost
            raise


def _still_running(connection: Connection, run_id: int) -> bool:
    """Whether nobody settled the run; its row is locked until the transaction ends."""
    row = connection.execute("SELECT status FROM memory.runs WHERE id = %s FOR UPDATE", [run_id]).fetchone()
    return row == ("running",)


def _begun(database: Database, kind: str, apply: bool | None, cap: int | None, watched: bool) -> Running:
    with database.transaction() as connection:
        dry = not apply if apply is not None else connection.execute(_TRIED, [kind]).fetchone() == (False,)
        allowed = _default_cap(connection) if cap is None else cap
    before = None if dry or not watched else canary.score(database).recall
    with database.transaction() as connection:
        values = {"kind": kind, "dry": dry, "cap": allowed, "canary": before}
        row = connection.execute(_BEGIN, values).fetchone()
    assert row is not None
    return Running(database, row[0], kind, dry, allowed)


def _default_cap(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM memory.nodes WHERE archived_at IS NULL").fetchone()
    assert row is not None
    return max(LEAST_CAP, int(row[0] * SHARE))


def _finish(database: Database, run_id: int, status: str, reason: str, tolerance: float) -> None:
    """Close a run, or take it back where the canary's questions find less than before it."""
    before = find(database, run_id).canary_before
    after = None if before is None else canary.score(database).recall
    with database.transaction() as connection:
        if not _still_running(connection, run_id):
            return  # another process settled it
        if before is not None and after is not None and before - after > tolerance + 1e-6:
            fell = f"R@10 on the stored questions fell from {before:.3f} to {after:.3f}"
            _taken_back(connection, run_id, "rolled_back", f"{fell}; {reason}".removesuffix("; "), after)
        else:
            _close(connection, run_id, status, reason, after)


def _taken_back(
    connection: Connection, run_id: int, status: str, reason: str, after: float | None = None
) -> UndoReport:
    report = journal.take_back(connection, run=run_id)
    _close(connection, run_id, status, reason, after)
    return report


def _close(connection: Connection, run_id: int, status: str, reason: str, after: float | None) -> None:
    connection.execute(_FINISH, {"id": run_id, "status": status, "reason": reason, "canary": after})


def _check_undoable(run: Run) -> None:
    if run.dry_run:
        raise InputError(f"run {run.id}: was a dry run and changed nothing; there is nothing to undo")
    if run.status not in ("done", "failed"):
        raise InputError(f"run {run.id}: is {run.status.replace('_', ' ')} already; there is nothing to undo")
    if run.forgotten_at is not None:
        raise InputError(
            f"run {run.id}: its journal was dropped on {run.forgotten_at:%Y-%m-%d}, so it can no longer be undone; "
            "superseded nodes can still be rehydrated one by one"
        )


def _check_last(connection: Connection, run_id: int) -> None:
    later = [row[0] for row in connection.execute(_LATER, {"run": run_id})]
    if later:
        raise InputError(
            f"run {run_id}: a later run changed the same rows; undo run {later[-1]} first (all of them: "
            f"{', '.join(map(str, reversed(later)))})"
        )
