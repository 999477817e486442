"""The log of what changed in memory: read, position, prune. Knows nothing of who follows it.

A position is a snapshot, not a number: transactions commit out of the order of their ids, and a reader who remembered
the highest id it saw would skip the lower one that committed afterwards. What is new since a snapshot is exactly what
was not visible in it (pg_visible_in_snapshot), so nothing is skipped and nothing is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from psycopg import Connection

from ruvllm.errors import InputError

CHANNEL = "ruvllm_memory"  # pg_notify wakes who listens; it says nothing else

# Two columns of a SELECT: the nodes and the edges of `Changes`, as arrays.
NEW = """
    ARRAY(SELECT DISTINCT node FROM memory.changes WHERE xid >= pg_snapshot_xmin(%(seen)s::pg_snapshot)
          AND NOT pg_visible_in_snapshot(xid, %(seen)s::pg_snapshot) AND what = 'node'),
    ARRAY(SELECT DISTINCT node FROM memory.changes WHERE xid >= pg_snapshot_xmin(%(seen)s::pg_snapshot)
          AND NOT pg_visible_in_snapshot(xid, %(seen)s::pg_snapshot) AND what = 'edges')
"""

# Everything from the oldest row that is kept, or that a transaction which still runs may yet write.
_CUT = """
    SELECT xid FROM (
        (SELECT xid FROM memory.changes WHERE at >= now() - %(keep)s::interval ORDER BY xid LIMIT 1)
        UNION ALL SELECT pg_snapshot_xmin(pg_current_snapshot())
    ) AS kept ORDER BY xid LIMIT 1
"""
_PRUNE = f"""
    WITH cut AS MATERIALIZED ({_CUT}), moved AS (
        UPDATE memory.change_log SET whole_from = cut.xid FROM cut WHERE whole_from < cut.xid
    )
    DELETE FROM memory.changes USING cut WHERE changes.xid < cut.xid
"""  # noqa: S608  # built from the constant above


@dataclass(frozen=True)
class Position:
    """A snapshot of Postgres: which transactions it sees."""

    xmin: int  # every transaction below had ended
    xmax: int  # none from here on had
    running: frozenset[int] = frozenset()  # those between that had not

    def has(self, xid: int) -> bool:
        """Whether transaction `xid` had ended."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    @classmethod
    def of(cls, text: str) -> Position:
        """Of Postgres' own form, `xmin:xmax:xid,xid`.

        Raises:
            InputError: `text` has another form.
        """
        try:
            xmin, xmax, running = text.split(":")
            return cls(int(xmin), int(xmax), frozenset(map(int, filter(None, running.split(",")))))
        except (ValueError, AttributeError) as error:
            raise InputError(f"position: got {text!r}, want a snapshot such as '10:20:14,15'") from error


@dataclass(frozen=True)
class Changes:
    """Ids of nodes that were written, changed or deleted, and of nodes whose packed row of edges was."""

    nodes: frozenset[int]
    edges: frozenset[int]

    def __bool__(self) -> bool:
        return bool(self.nodes or self.edges)


def position(connection: Connection) -> Position:
    """What the current statement sees; in a REPEATABLE READ transaction, what all of it sees."""
    row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
    assert row is not None
    return Position.of(row[0])


def read(connection: Connection, since: Position) -> Changes:
    """What is visible now and was not at `since`, of the transaction's tenant."""
    row = connection.execute(f"SELECT {NEW}", {"seen": str(since)}).fetchone()
    assert row is not None
    return Changes(*map(frozenset, row))


def prune(connection: Connection, keep: timedelta) -> int:
    """Delete the tenant's changes older than `keep`; a replica of before that is built anew. Returns how many went.

    `whole_from` is the log's, not the tenant's: another tenant's replica that was saved before it is built anew too.
    """
    if keep < timedelta(0):
        raise InputError(f"keep: got {keep}, want a time of 0 or more")
    return connection.execute(_PRUNE, {"keep": keep}).rowcount
