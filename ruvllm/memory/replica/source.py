"""What a replica reads from Postgres, under one snapshot. Knows nothing of how it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, Cursor, Error
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Literal

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory import changes
from ruvllm.memory.changes import Position

_CHUNK = 5_000

_BEGIN = SQL("BEGIN ISOLATION LEVEL REPEATABLE READ; {seen} SELECT set_config('app.tenant', {tenant}, true)")
# Everybody may ask for the lineage, unless a provider took that away.
_MAY_ASK = """
    SELECT has_function_privilege('pg_control_system()', 'EXECUTE')
           AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')
"""
_LINEAGE = """
    (SELECT system_identifier FROM pg_control_system())::text,
    CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
"""
_HEAD = SQL("""
    SELECT {more}, {lineage}, l.id::text, l.whole_from::text, pg_current_snapshot()::text, e.id, e.dimension
    FROM memory.change_log l CROSS JOIN memory.encoder e
""")

# Times are microseconds since 1970, as exact as timestamptz.
_NODES = SQL("""
    SELECT n.id, n.uuid::text, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata::text,
           n.confidence, n.version, (extract(epoch FROM n.created_at) * 1000000)::bigint, n.embedding
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL {only} ORDER BY n.id
""")
_ONLY = SQL("AND n.id = ANY(%(ids)s) AND t.node = ANY(%(ids)s)")
_ONLY_EDGES = SQL("WHERE node = ANY(%(ids)s)")
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

    Database.transaction reads a statement at a time as of that statement, so this begins its own.

    Raises:
        DatabaseError: Postgres is down, went away or refuses.
    """
    seen = SQL("SET TRANSACTION SNAPSHOT {};").format(Literal(exported)) if exported else SQL("")
    begin = _BEGIN.format(seen=seen, tenant=Literal(database.tenant))
    with borrowed(database) as connection:
        try:
            connection.execute(begin, prepare=False)  # several statements at once cannot be prepared
            yield connection
            connection.execute("COMMIT")
        except Error as error:
            raise DatabaseError(f'{database}: {str(error).strip()}; run "ruvllm doctor"') from error
        finally:
            _end(connection)


def _end(connection: Connection) -> None:
    """Leave no transaction open for whom the pool gives the connection to next."""
    if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
        with suppress(Error):  # the pool closes one that is not idle
            connection.execute("ROLLBACK")


@contextmanager
def borrowed(database: Database) -> Iterator[Connection]:
    """A connection of the pool, outside of any transaction."""
    with database._connection() as connection:
        yield connection


@dataclass(frozen=True)
class News:
    """What came since a position."""

    head: Head
    nodes: Sequence[NodeRow]  # that were written or changed, and are live
    gone: frozenset[int]  # that are not
    edges: Sequence[EdgesRow]  # an archived node's was not kept: with its node, a packed row that did not change


def head(connection: Connection) -> Head:
    row = connection.execute(_MAY_ASK).fetchone()
    return _headed(connection, bool(row and row[0]), "true", {})[0]


def news(connection: Connection, since: Position, lineage: bool) -> News:
    """Few round trips: each is a turn at a core that has to be waited for, by us and by the server.

    `lineage`: whether it may be asked for.
    """
    head, new = _headed(connection, lineage, changes.NEW, {"seen": str(since)})
    of_nodes, of_edges = map(frozenset, new)
    rows = [_node(row) for row in _asked(connection, _NODES, _ONLY, of_nodes)] if of_nodes else []
    packed = _asked(connection, _ADJACENCY, _ONLY_EDGES, of_nodes | of_edges) if of_nodes or of_edges else ()
    return News(head, rows, of_nodes - {row.id for row in rows}, [EdgesRow(*row) for row in packed])


def _headed(connection: Connection, lineage: bool, more: LiteralString, values: Any) -> tuple[Head, tuple[Any, ...]]:
    """The head, and what the columns `more` are in the same snapshot."""
    asked = _HEAD.format(more=SQL(more), lineage=SQL(_LINEAGE if lineage else "'', 0"))
    row = connection.execute(asked, values).fetchone()
    if row is None:
        raise DatabaseError('memory.encoder: has no row, so the schema is not complete; run "ruvllm doctor"')
    system, timeline, log, whole_from, position, encoder, dimension = row[-7:]
    return Head(log, int(whole_from), Position.of(position), encoder, dimension, system, timeline), row[:-7]


def nodes(connection: Connection) -> Iterator[NodeRow]:
    """The tenant's live nodes in the order of their ids."""
    return map(_node, _all(connection, _NODES))


def edges(connection: Connection) -> Iterator[EdgesRow]:
    """The tenant's packed rows in the order of their nodes' ids, archived nodes' too."""
    return (EdgesRow(*row) for row in _all(connection, _ADJACENCY))


def _node(row: tuple[Any, ...]) -> NodeRow:
    return NodeRow((*row[:8], tuple(row[8]), *row[9:12]), row[12], row[13].to_numpy())


def _asked(connection: Connection, query: SQL, only: SQL, ids: Iterable[int]) -> Cursor:
    return connection.cursor(binary=True).execute(query.format(only=only), {"ids": list(ids)})


def _all(connection: Connection, query: SQL) -> Iterator[tuple[Any, ...]]:
    """Through a cursor on the server, for a table may be larger than this process."""
    with connection.cursor(name="replica", binary=True) as cursor:
        cursor.itersize = _CHUNK
        cursor.execute(query.format(only=SQL("")))
        yield from cursor
