"""What a replica reads from Postgres, under one snapshot. Knows nothing of how it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, Error, IsolationLevel
from psycopg.sql import SQL, Literal

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory.changes import Position

_CHUNK = 5_000

_HEAD = """
    SELECT l.id::text, l.whole_from::text, pg_current_snapshot()::text, e.id, e.dimension,
           has_function_privilege('pg_control_system()', 'EXECUTE')
           AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')
    FROM memory.change_log l CROSS JOIN memory.encoder e
"""
# Everybody may ask, unless a provider took that away.
_LINEAGE = """
    SELECT (SELECT system_identifier FROM pg_control_system())::text,
           CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
                ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
"""

# Times are microseconds since 1970, as exact as timestamptz.
_NODES = SQL("""
    SELECT n.id, n.uuid::text, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata::text,
           n.confidence, n.version, (extract(epoch FROM n.created_at) * 1000000)::bigint, n.embedding
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL {only} ORDER BY n.id
""")
_ONLY = SQL("AND n.id = ANY(%(ids)s) AND t.node = ANY(%(ids)s)")
_ADJACENCY = SQL("SELECT node, neighbours, weights, relations FROM memory.adjacency {only} ORDER BY node")


@dataclass(frozen=True)
class Head:
    """Which database this is and how far it is."""

    log: str  # memory.change_log.id
    whole_from: int
    position: Position
    encoder: str
    dimension: int
    system: str  # the cluster's identifier; empty, and timeline 0, where we may not ask
    timeline: int  # another one after a promotion or a restore: then what was saved may never have been committed here


@dataclass(frozen=True)
class NodeRow:
    """A live node as it is kept: the fields of Node but metadata as JSON text, then time and vector."""

    record: tuple[Any, ...]  # id, uuid, kind, domain, trust, text, source, writer, tags, metadata, confidence, version
    created: int  # microseconds since 1970
    vector: NDArray[np.float16]  # (d,)

    @property
    def id(self) -> int:
        return int(self.record[0])

    @property
    def text(self) -> str:
        return str(self.record[5])


@dataclass(frozen=True)
class EdgesRow:
    """A packed row of memory.adjacency, the heaviest edge first."""

    id: int
    neighbours: Sequence[int]
    weights: Sequence[float]
    relations: Sequence[int]  # relation_code, negative where the node is the edge's dst


@contextmanager
def snapshot(database: Database, exported: str = "") -> Iterator[Connection]:
    """A transaction that sees one state of `database` throughout: of now, or of an exported snapshot.

    Database.transaction reads a statement at a time as of that statement, so the connection is set to read otherwise
    before its first one.

    Raises:
        DatabaseError: Postgres is down, went away or refuses.
    """
    with borrowed(database) as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        try:
            with connection.transaction():
                if exported:
                    connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(exported)))
                connection.execute("SELECT set_config('app.tenant', %s, true)", [database.tenant])
                yield connection
        except Error as error:
            raise DatabaseError(f'{database}: {str(error).strip()}; run "ruvllm doctor"') from error
        finally:
            if not connection.closed:
                connection.isolation_level = None


@contextmanager
def borrowed(database: Database) -> Iterator[Connection]:
    """A connection of the pool, outside of any transaction."""
    with database._connection() as connection:
        yield connection


def head(connection: Connection) -> Head:
    row = connection.execute(_HEAD).fetchone()
    if row is None:
        raise DatabaseError('memory.encoder: has no row, so the schema is not complete; run "ruvllm doctor"')
    log, whole_from, position, encoder, dimension, may_ask = row
    lineage = connection.execute(_LINEAGE).fetchone() if may_ask else None
    system, timeline = lineage or ("", 0)
    return Head(log, int(whole_from), Position.of(position), encoder, dimension, system, timeline)


def nodes(connection: Connection, ids: Iterable[int] | None = None) -> Iterator[NodeRow]:
    """Live nodes in the order of their ids: all of the tenant's, or those of `ids`."""
    for row in _rows(connection, _NODES, _ONLY, ids):
        record = (*row[:8], tuple(row[8]), *row[9:12])
        yield NodeRow(record, row[12], row[13].to_numpy())


def edges(connection: Connection, ids: Iterable[int] | None = None) -> Iterator[EdgesRow]:
    """Packed rows in the order of their nodes' ids, archived nodes' too."""
    for row in _rows(connection, _ADJACENCY, SQL("WHERE node = ANY(%(ids)s)"), ids):
        yield EdgesRow(*row)


def _rows(connection: Connection, query: SQL, only: SQL, ids: Iterable[int] | None) -> Iterator[tuple[Any, ...]]:
    """Those `only` of `ids`, or all: through a cursor on the server, for a table may be larger than this process."""
    if ids is not None:
        yield from connection.cursor(binary=True).execute(query.format(only=only), {"ids": list(ids)})
        return
    with connection.cursor(name="replica", binary=True) as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(query.format(only=SQL("")))
        yield from cursor
