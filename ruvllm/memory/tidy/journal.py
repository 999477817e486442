"""What tidying changed, row by row, and how it is taken back. Knows nothing of why anything was changed.

Triggers of sql/migrations/0006_tidy.sql write the journal: a transaction that names its run or supersession has each
row journalled that it touches, as it was and as it became. Taking back is a three-way merge: a column gets its old
value where it still holds the one that was journalled, a counter loses what was added, and what others wrote meanwhile
stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from psycopg import Connection
from psycopg.types.json import Jsonb

# Each reads memory.journalled(run, supersession, relation): a row's first state and its last. Materialised: without
# statistics, which a fresh journal lacks, the planner would work all of it out again for every row.
_NEW_NODES = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'nodes'))
    SELECT array_agg(j.node) FROM j WHERE j.before IS NULL
"""
_DROP_EDGES = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'edges'))
    DELETE FROM memory.edges AS e USING j
    WHERE e.id = j.key AND j.before IS NULL
"""
_NODES = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'nodes'))
    UPDATE memory.nodes AS n SET
        (superseded_by, archived_at) = (
            SELECT x.superseded_by, x.archived_at FROM (VALUES (true, b.superseded_by, b.archived_at),
                (false, n.superseded_by, n.archived_at)) AS x (same, superseded_by, archived_at)
            WHERE x.same = ((n.superseded_by, n.archived_at) IS NOT DISTINCT FROM (a.superseded_by, a.archived_at))),
        confidence = CASE WHEN n.confidence = a.confidence THEN b.confidence ELSE n.confidence END,
        trust = CASE WHEN n.trust = a.trust THEN b.trust ELSE n.trust END,
        updated_at = CASE WHEN n.updated_at = a.updated_at THEN b.updated_at ELSE n.updated_at END
    FROM j
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.nodes, j.before) AS b
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.nodes, j.after) AS a
    WHERE n.id = j.node AND j.before IS NOT NULL AND NOT (  -- its content came again as a live row: that one stays
        n.archived_at IS NOT NULL AND b.archived_at IS NULL AND EXISTS (
            SELECT FROM memory.nodes o WHERE o.tenant = n.tenant AND o.content_hash = n.content_hash
            AND o.archived_at IS NULL AND o.id <> ALL(%(new)s)))
    RETURNING n.id
"""
_TEXTS = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'node_texts'))
    UPDATE memory.node_texts AS t SET metadata = j.before -> 'metadata'
    FROM j
    WHERE t.node = j.node AND t.metadata = j.after -> 'metadata'
"""
_USAGE = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'node_usage'))
    UPDATE memory.node_usage AS u SET
        uses = greatest(0, u.uses - (a.uses - coalesce(b.uses, 0))),
        last_used_at = CASE WHEN u.last_used_at = a.last_used_at AND b.node IS NOT NULL
                       THEN b.last_used_at ELSE u.last_used_at END
    FROM j
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.node_usage, j.before) AS b
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.node_usage, j.after) AS a
    WHERE u.node = j.node
"""
_DROP_USAGE = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'node_usage'))
    DELETE FROM memory.node_usage AS u USING j
    WHERE u.node = j.node AND j.before IS NULL AND u.uses = 0
"""
_BANDS = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'minhash_bands'))
    INSERT INTO memory.minhash_bands
    SELECT b.* FROM j
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.minhash_bands, j.before) AS b
    WHERE (SELECT archived_at IS NULL FROM memory.nodes WHERE id = j.node)
    ON CONFLICT DO NOTHING
"""
_EDGES = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'edges'))
    UPDATE memory.edges AS e SET
        src = b.src, dst = b.dst, rel = b.rel,
        weight = CASE WHEN e.weight = a.weight THEN b.weight ELSE e.weight END,
        confidence = CASE WHEN e.confidence = a.confidence THEN b.confidence ELSE e.confidence END,
        last_used_at = CASE WHEN e.last_used_at = a.last_used_at THEN b.last_used_at ELSE e.last_used_at END,
        uses = greatest(0, e.uses - (a.uses - b.uses)),
        decayed_at = CASE WHEN e.decayed_at IS NOT DISTINCT FROM a.decayed_at THEN b.decayed_at ELSE e.decayed_at END
    FROM j
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.edges, j.before) AS b
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.edges, j.after) AS a
    WHERE e.id = j.key AND (e.src, e.dst, e.rel) = (a.src, a.dst, a.rel) AND NOT EXISTS (
        SELECT FROM memory.edges o WHERE (o.src, o.dst, o.rel) = (b.src, b.dst, b.rel) AND o.id <> e.id)
"""
_LOST_EDGES = """
    WITH j AS MATERIALIZED (SELECT * FROM memory.journalled(%(run)s, %(one)s, 'edges'))
    INSERT INTO memory.edges OVERRIDING SYSTEM VALUE
    SELECT b.* FROM j
    CROSS JOIN LATERAL jsonb_populate_record(NULL::memory.edges, j.before) AS b
    WHERE j.before IS NOT NULL AND j.after IS NULL
      AND (SELECT true FROM memory.nodes WHERE id = b.src) AND (SELECT true FROM memory.nodes WHERE id = b.dst)
    ON CONFLICT DO NOTHING
"""
_WEIGHTS = """
    UPDATE memory.edges AS e SET weight = w.old, decayed_at = w.decayed_at
    FROM memory.journal AS j CROSS JOIN LATERAL jsonb_to_recordset(j.before)
        AS w (id bigint, old real, new real, decayed_at timestamptz)
    WHERE j.run = %(run)s AND j.relation = 'weights' AND e.id = w.id AND e.weight = w.new
"""
# Once everything else is back: an answer was made from the new node, or somebody else's edge or heirship leads to it.
_USED_SINCE = """
    SELECT array_agg(n.id) FROM memory.nodes n WHERE n.id = ANY(%(new)s) AND (
        EXISTS (SELECT FROM serving.interactions i WHERE i.asked_at >= n.created_at AND n.id = ANY(i.retrieved))
        OR EXISTS (SELECT FROM memory.nodes o WHERE o.superseded_by = n.id)
        OR EXISTS (SELECT FROM memory.edges e WHERE e.src = n.id)
        OR EXISTS (SELECT FROM memory.edges e WHERE e.dst = n.id))
"""
_ARCHIVE_USED = """
    UPDATE memory.nodes SET archived_at = now(), updated_at = now() WHERE id = ANY(%(used)s) AND archived_at IS NULL
"""
_DELETE_NEW = "DELETE FROM memory.nodes WHERE id = ANY(%(new)s) AND id <> ALL(%(used)s)"
_UNDONE = """
    UPDATE memory.supersessions SET undone_at = now()
    WHERE (run = %(run)s OR id = %(one)s) AND undone_at IS NULL
"""


@dataclass(frozen=True)
class UndoReport:
    """Rows that were put back; `kept` are nodes that the run made and that were used since: archived, not deleted."""

    nodes: int
    edges: int
    deleted: int
    kept: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@contextmanager
def recording(connection: Connection, name: str, owner: int | None) -> Iterator[None]:
    """Within the block, rows that this transaction touches are journalled for the `run` or `supersession` `owner`."""
    if owner is None:
        yield
        return
    before = _named(connection, name)
    _name(connection, name, str(owner))
    yield  # after an error the transaction is rolled back, and its settings with it
    _name(connection, name, before)


def _named(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT coalesce(current_setting(%s, true), '')", [f"app.{name}"]).fetchone()
    return str(row[0]) if row else ""


def _name(connection: Connection, name: str, value: str) -> None:
    connection.execute("SELECT set_config(%s, %s, true)", [f"app.{name}", value])


def note_weights(connection: Connection, run: int, changes: list[dict[str, object]]) -> None:
    """Journal the weights of many edges in one row: [{"id", "old", "new", "decayed_at"}], before they decayed."""
    connection.execute(
        "INSERT INTO memory.journal (tenant, run, relation, key, before)"
        " VALUES (current_setting('app.tenant'), %s, 'weights', 0, %s)",
        [run, Jsonb(changes)],
    )


def take_back(connection: Connection, run: int | None = None, supersession: int | None = None) -> UndoReport:
    """Restore what a run, or one supersession outside of a run, changed; all of it in the caller's transaction."""
    values: dict[str, object] = {"run": run, "one": supersession}
    values["new"] = _array(connection, _NEW_NODES, values)
    nodes = _changed(connection, _NODES, values)
    edges = sum(_changed(connection, each, values) for each in (_DROP_EDGES, _EDGES, _LOST_EDGES, _WEIGHTS))
    for statement in (_TEXTS, _USAGE, _DROP_USAGE, _BANDS, _UNDONE):
        connection.execute(statement, values)
    values["used"] = used = _array(connection, _USED_SINCE, values)
    connection.execute(_ARCHIVE_USED, values)
    return UndoReport(nodes, edges, _changed(connection, _DELETE_NEW, values), len(used))


def _array(connection: Connection, statement: str, values: Mapping[str, object]) -> list[int]:
    row = connection.execute(statement, values).fetchone()
    return list(row[0] or ()) if row else []


def _changed(connection: Connection, statement: str, values: Mapping[str, object]) -> int:
    return connection.execute(statement, values).rowcount
