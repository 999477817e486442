"""The HNSW index of the band that the corpus has grown into: due or not, and rebuilt beside the one in use.

Searches have a valid index throughout: the new one is built under another name and takes the old one's place in one
transaction. What a killed rebuild leaves behind is invalid, used by no search and removed by the next. Knows nothing of
when it is run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory.contract import NAME, NEXT, Index, indexes
from ruvllm.memory.hnsw import BANDS, Band
from ruvllm.progress import Progress, silent

_SHRUNK = 0.8  # of a band's lower bound: a corpus at the bound does not go to and fro
_LOCK_KEY = 7_270_215_502  # one rebuild at a time in a database
_SWAP_PATIENCE_MS = 2_000  # while it waits for its lock, every search waits behind it
_SWAP_ATTEMPTS = 30
_POLL_S = 0.5
_MIB = 2**20
_MOST_MEMORY_MIB = 4_096  # of a build; a graph that outgrows it goes on more slowly, in the table's pages

# Live rows by the index's own count, which ANALYZE and VACUUM keep, scaled by how the table has grown since.
_LIVE = """
    SELECT CASE WHEN t.reltuples < 0 OR t.relpages = 0 THEN t.pages * 8192.0 / (2 * e.dimension + 200)
                ELSE (CASE WHEN i.reltuples > 0 THEN i.reltuples ELSE t.reltuples END) * t.pages / t.relpages END
    FROM (SELECT reltuples, relpages, pg_relation_size(oid) / 8192 AS pages
          FROM pg_class WHERE oid = 'memory.nodes'::regclass) AS t
    CROSS JOIN memory.encoder AS e
    LEFT JOIN (SELECT reltuples FROM pg_class WHERE oid = to_regclass('memory.nodes_embedding')) AS i ON true
"""

_BUILD = SQL(
    "CREATE INDEX CONCURRENTLY {name} ON memory.nodes USING hnsw (embedding halfvec_ip_ops)"
    " WITH (m = {m}, ef_construction = {ef}) WHERE archived_at IS NULL"
)

_DONE = "SELECT phase, tuples_done FROM pg_stat_progress_create_index WHERE pid = %s"  # it knows no total of them


def live_nodes(connection: Connection) -> int:
    """About how many live nodes all tenants have together: that many are in the index."""
    row = connection.execute(_LIVE).fetchone()
    return max(0, round(row[0])) if row else 0


def due(connection: Connection) -> Band | None:
    """The band to rebuild for: the corpus's, where the index is of another; None where it may stay as it is.

    A corpus that shrank keeps its index until it is a fifth below the bound.
    """
    built = built_for(indexes(connection))
    return _wanted(built, live_nodes(connection))


def built_for(found: list[Index]) -> Band | None:
    """The band whose parameters the index in use has."""
    used = next((index for index in found if index.name == NAME and index.valid), None)
    if used is None:
        return None
    return next((band for band in BANDS if used.fits(band)), None)


def _wanted(built: Band | None, nodes: int) -> Band | None:
    wanted = next(band for band in BANDS if nodes < band.below)
    if built is None or wanted.below > built.below:
        return wanted
    floor = max((band.below for band in BANDS if band.below < built.below), default=0.0)
    return wanted if nodes < _SHRUNK * floor else None


def rebuild(database: Database, band: Band, progress: Progress = silent) -> None:
    """Build the index of `band` beside the one in use and put it in its place. An interrupted one is begun anew.

    It mends what contract.check refuses of indexes, too. Writes and searches go on; the swap waits for no long reader.

    Raises:
        DatabaseError: not the owner, another rebuild runs, or no moment was found for the swap (then run it again:
            what was built is kept).
    """
    with database.owner() as connection, alone(database, connection):
        former = next((index for index in indexes(connection) if index.name == NEXT), None)
        if former is None or not (former.valid and former.fits(band)):  # else it got as far as the swap
            _drop(connection, NEXT)
            _build(database, connection, band, progress)
        _swap(connection)


@contextmanager
def alone(database: Database, connection: Connection) -> Iterator[None]:
    """Within the block nobody else builds or drops an index of memory; `connection` is one of Database.owner.

    Raises:
        DatabaseError: somebody does.
    """
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY]).fetchone()
    if row != (True,):
        raise DatabaseError(f"{database}: another rebuild of memory's index runs; wait for it to end")
    try:
        yield
    finally:
        with suppress(psycopg.OperationalError):  # it went, and the lock with it
            connection.execute("SELECT pg_advisory_unlock(%s)", [_LOCK_KEY])


def _build(database: Database, connection: Connection, band: Band, progress: Progress) -> None:
    statement = _BUILD.format(name=Identifier(NEXT), m=band.m, ef=band.ef_construction)
    connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", [f"{_memory_mib(connection, band)}MB"])
    nodes = live_nodes(connection)
    progress(0, nodes, "building index")
    with _watched(database, connection.info.backend_pid, nodes, progress):
        try:
            connection.execute(statement)
        except psycopg.errors.DiskFull:  # parallel workers share the graph in /dev/shm, which containers keep small
            _drop(connection, NEXT)
            connection.execute("SET max_parallel_maintenance_workers = 0")
            connection.execute(statement)
    progress(nodes, nodes, "index built")


def _memory_mib(connection: Connection, band: Band) -> int:
    """What the whole graph takes while it is built; at least the server's own setting, at most 4 GiB.

    A node: its vector, 2 m neighbours of 16 bytes on the ground and m on each of the few levels above, and overhead.
    """
    row = connection.execute(
        "SELECT (SELECT dimension FROM memory.encoder),"
        " (SELECT setting::bigint / 1024 FROM pg_settings WHERE name = 'maintenance_work_mem')"
    ).fetchone()
    dimension, configured = row or (0, 0)
    whole = live_nodes(connection) * (2 * dimension + 3 * 16 * band.m + 256) // _MIB
    return max(int(configured), min(int(1.2 * whole), _MOST_MEMORY_MIB))


@contextmanager
def _watched(database: Database, pid: int, nodes: int, progress: Progress) -> Iterator[None]:
    """Within the block, `progress` hears from another thread how many of about `nodes` the server process `pid` has."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            try:
                with database.owner() as connection:
                    row = connection.execute(_DONE, [pid]).fetchone()
            except DatabaseError:
                return  # the build itself will say it
            if row is not None:
                progress(min(int(row[1]), nodes), nodes, row[0])

    thread = threading.Thread(target=watch, name="index-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _swap(connection: Connection) -> None:
    """In one transaction, so that no search is without an index; every approximate index but the new one goes."""
    connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{_SWAP_PATIENCE_MS}ms"])
    for _ in range(_SWAP_ATTEMPTS):
        try:
            with connection.transaction():
                for index in indexes(connection):
                    if index.name != NEXT:
                        connection.execute(SQL("DROP INDEX memory.{}").format(Identifier(index.name)))
                connection.execute(SQL("ALTER INDEX memory.{} RENAME TO {}").format(Identifier(NEXT), Identifier(NAME)))
            return
        except psycopg.errors.LockNotAvailable:
            time.sleep(_POLL_S)
    raise DatabaseError(
        f"index memory.{NEXT} is built, but {_SWAP_ATTEMPTS} attempts found no moment to put it in the place of {NAME};"
        " end the transaction that reads memory.nodes so long, and run this again"
    )


def _drop(connection: Connection, name: str) -> None:
    connection.execute(SQL("DROP INDEX CONCURRENTLY IF EXISTS memory.{}").format(Identifier(name)))
