"""What keeps memory's tables and indexes fit: reindex, vacuum, prewarm, checks, and old records dropped.

Knows nothing of what is stored. Most of it needs the tables' owner, some a superuser: what this login may not do is
named as not done, with the reason, and is no error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta

import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory import changes, hnsw
from ruvllm.memory.contract import indexes
from ruvllm.memory.hnsw import Band
from ruvllm.memory.tidy import bands, runs
from ruvllm.memory.tidy.audit import RECALL_BOUND, AuditReport, audit
from ruvllm.progress import Progress, silent

DEAD_SHARE = 0.2  # of an indexed table's rows from which an HNSW index is built anew: cheaper than vacuuming it
CHANGES_KEPT = timedelta(days=7)  # a replica that slept longer is built anew
_REFUSED = (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported)

_DEAD = """
    SELECT CASE WHEN n_dead_tup > 0 THEN n_dead_tup / (n_dead_tup + n_live_tup)::float8 ELSE 0 END
    FROM pg_stat_user_tables WHERE relid = 'memory.nodes'::regclass
"""
# What a REINDEX CONCURRENTLY left that was killed.
_INVALID = """
    SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'memory' AND NOT i.indisvalid AND c.relname ~ '_cc(new|old)[0-9]*$'
"""
_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'memory' AND c.relkind = 'r' ORDER BY 2
"""
_BTREES = """
    SELECT c.oid::regclass::text, c.oid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.amname = 'btree' AND n.nspname = 'memory' AND i.indisvalid ORDER BY 1
"""
# The read path, as long as it fits into half of the buffers: more would push out what is warm.
_WARM = """
    SELECT pg_prewarm(name::regclass), name FROM unnest(ARRAY['memory.nodes_embedding', 'memory.adjacency_pkey',
        'memory.adjacency', 'memory.node_texts_pkey', 'memory.nodes_pkey']) AS name
    WHERE (SELECT sum(pg_relation_size(each::regclass)) FROM unnest(ARRAY['memory.nodes_embedding', 'memory.adjacency'])
           AS each) < pg_size_bytes(current_setting('shared_buffers')) / 2
"""


@dataclass(frozen=True)
class Step:
    """`outcome` is done | not due | not done | alarm; `said` is what was done, or why not."""

    name: str
    outcome: str
    said: str
    seconds: float


@dataclass(frozen=True)
class UpkeepReport:
    steps: tuple[Step, ...]
    audit: AuditReport

    @property
    def alarms(self) -> tuple[str, ...]:
        """What somebody has to look at."""
        return (*self.audit.alarms, *(f"{s.name}: {s.said}" for s in self.steps if s.outcome == "alarm"))

    def as_dict(self) -> dict[str, object]:
        steps = [asdict(step) for step in self.steps]
        return {"steps": steps, "audit": self.audit.as_dict(), "alarms": list(self.alarms)}


Said = tuple[str, str]  # outcome, what was done


def keep_up(database: Database, progress: Progress = silent, sample: int = 50) -> UpkeepReport:
    """Every step in its order; one that this login may not do is named and left out.

    Raises:
        DatabaseError: Postgres went away.
    """
    before = audit(database, sample)
    works: list[tuple[str, Callable[[], Said]]] = [
        ("reindex", lambda: _reindexed(database, before, progress)),
        ("vacuum", lambda: _owned(database, _vacuumed)),
        ("prewarm", lambda: _owned(database, _prewarmed)),
        ("amcheck", lambda: _owned(database, _checked)),
        ("change log", lambda: _pruned(database)),
        ("journals", lambda: _forgotten(database)),
    ]
    steps: list[Step] = []
    for n, (name, work) in enumerate(works, start=1):
        steps.append(_timed(name, work))
        progress(n, len(works), name)
    rebuilt = steps[0].outcome == "done"
    return UpkeepReport(tuple(steps), audit(database, sample) if rebuilt else before)


def reindex(database: Database, force: bool = True, progress: Progress = silent) -> Step:
    """Build the HNSW index anew, while it is read and written; without `force` only where it is due."""
    return _timed("reindex", lambda: _reindexed(database, None if force else audit(database), progress))


def check(database: Database) -> Step:
    """amcheck on every B-tree of memory. It knows no HNSW; that index is checked by its answers, in the audit."""
    return _timed("amcheck", lambda: _owned(database, _checked))


def _timed(name: str, work: Callable[[], Said]) -> Step:
    began = time.monotonic()
    outcome, said = work()
    return Step(name, outcome, said, round(time.monotonic() - began, 3))


def _owned(database: Database, work: Callable[[Connection], Said]) -> Said:
    """`work` as the owner; what that login may not do is said."""

    def owned() -> Said:
        with database.owner() as connection:
            return work(connection)

    return _permitted(database, owned)


def _permitted(database: Database, work: Callable[[], Said]) -> Said:
    database.ping()  # a server that is gone is an error, a login that may not is none
    try:
        return work()
    except _REFUSED as error:
        return "not done", str(error).strip().split("\n")[0]
    except DatabaseError as error:
        return "not done", str(error)


def _reindexed(database: Database, found: AuditReport | None, progress: Progress) -> Said:
    """`found` None: it was asked for."""

    def work() -> Said:
        with database.owner() as connection:
            with bands.alone(database, connection):
                left = _drop_invalid(connection)
            band, why = _due(connection, found)
        dropped = f"; leftovers dropped: {', '.join(left)}" if left else ""
        if band is None:
            return "done" if left else "not due", why + dropped
        bands.rebuild(database, band, progress)
        return "done", f"built anew for M {band.m}, efConstruction {band.ef_construction}: {why}{dropped}"

    return _permitted(database, work)


def _due(connection: Connection, found: AuditReport | None) -> tuple[Band | None, str]:
    """The band to build for, or None, and why."""
    band = bands.built_for(indexes(connection)) or hnsw.band(bands.live_nodes(connection))
    if grown := bands.due(connection):
        return grown, "memory grew or shrank into another band"
    if found is None:
        return band, "asked for"
    if found.recall is not None and found.recall < RECALL_BOUND:
        return band, f"recall was {found.recall:.3f}"
    row = connection.execute(_DEAD).fetchone()
    dead = float(row[0]) if row else 0.0
    return (band if dead >= DEAD_SHARE else None), f"{dead:.0%} of the rows are dead"


def _drop_invalid(connection: Connection) -> list[str]:
    left = connection.execute(_INVALID).fetchall()
    for schema, index in left:
        connection.execute(SQL("DROP INDEX CONCURRENTLY {}").format(Identifier(schema, index)))
    return [index for _, index in left]


def _vacuumed(connection: Connection) -> Said:
    tables = connection.execute(_TABLES).fetchall()
    for schema, table in tables:
        connection.execute(SQL("VACUUM (ANALYZE) {}").format(Identifier(schema, table)))
    return "done", f"{len(tables)} tables vacuumed and analysed"


def _prewarmed(connection: Connection) -> Said:
    connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
    warmed = connection.execute(_WARM).fetchall()
    if not warmed:
        return "not due", "the read path is over half of shared_buffers: left to the operating system's cache"
    return "done", f"{sum(row[0] for row in warmed)} pages of {len(warmed)} relations"


def _checked(connection: Connection) -> Said:
    connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    schema = connection.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'amcheck'"
    ).fetchone()
    assert schema is not None
    indexes = connection.execute(_BTREES).fetchall()
    for name, oid in indexes:
        try:
            connection.execute(SQL("SELECT {}.bt_index_check(%s)").format(Identifier(schema[0])), [oid])
        except (psycopg.errors.IndexCorrupted, psycopg.errors.DataCorrupted) as error:
            return "alarm", f"{name} is corrupt: {str(error).strip()}; run REINDEX INDEX CONCURRENTLY {name}"
    return "done", f"{len(indexes)} B-trees are sound; amcheck knows no HNSW, which the audit checks by its answers"


def _pruned(database: Database) -> Said:
    with database.transaction() as connection:
        gone = changes.prune(connection, CHANGES_KEPT)
    return "done", f"{gone} changes older than {CHANGES_KEPT.days} days dropped"


def _forgotten(database: Database) -> Said:
    return "done", f"{runs.forget(database)} rows of journals older than 90 days dropped"
