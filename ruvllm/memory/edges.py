"""Edges between nodes: link, move, walk. Knows nothing of texts or vectors."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import Connection

from ruvllm.memory.records import Edge, Walk

__all__ = ["Edge", "Walk", "link", "move", "neighbours"]

_FAN = 32  # edges followed from a node in each direction, the heaviest first: a hub does not drown the rest

_LINK = """
    INSERT INTO memory.edges (tenant, src, dst, rel, weight, created_by)
    SELECT current_setting('app.tenant'), e.src, e.dst, e.rel, e.weight, %(created_by)s
    FROM unnest(%(src)s::bigint[], %(dst)s::bigint[], %(rel)s::text[], %(weight)s::real[]) AS e (src, dst, rel, weight)
    WHERE (SELECT true FROM memory.nodes WHERE id = e.src) AND (SELECT true FROM memory.nodes WHERE id = e.dst)
    ON CONFLICT (src, dst, rel) DO NOTHING
"""

# Nodes are walked, not edges: in a dense neighbourhood a node is reached by many edges but gone out from once.
# Whether a node may be passed is a scalar subquery: as a join, and without statistics, the planner walks once a node.
_WALK = """
    WITH RECURSIVE reached (node, hop) AS (
        SELECT seed, 0 FROM unnest(%(ids)s::bigint[]) AS seed
        UNION
        SELECT e.node, reached.hop + 1 FROM reached CROSS JOIN LATERAL (
            (SELECT dst AS node FROM memory.edges WHERE src = reached.node ORDER BY weight DESC, id LIMIT %(fan)s)
            UNION
            (SELECT src AS node FROM memory.edges WHERE dst = reached.node ORDER BY weight DESC, id LIMIT %(fan)s)
        ) AS e
        WHERE reached.hop < %(hops)s - 1 AND (
            SELECT n.archived_at IS NULL AND (n.trust <> 'untrusted' OR EXISTS (
                SELECT FROM memory.node_texts t WHERE t.node = n.id AND t.writer = %(reader)s))
            FROM memory.nodes n WHERE n.id = e.node)
    ), start AS (
        SELECT node, min(hop) AS hop FROM reached GROUP BY node
    )
    SELECT e.src, e.dst, e.rel, e.weight FROM start CROSS JOIN LATERAL (
        (SELECT src, dst, rel, weight, dst AS node FROM memory.edges WHERE src = start.node
         ORDER BY weight DESC, id LIMIT %(fan)s)
        UNION ALL
        (SELECT src, dst, rel, weight, src AS node FROM memory.edges WHERE dst = start.node
         ORDER BY weight DESC, id LIMIT %(fan)s)
    ) AS e
    WHERE %(hops)s > 0 AND (
        SELECT n.archived_at IS NULL AND (n.trust <> 'untrusted' OR EXISTS (
            SELECT FROM memory.node_texts t WHERE t.node = n.id AND t.writer = %(reader)s))
        FROM memory.nodes n WHERE n.id = e.node)
    GROUP BY e.src, e.dst, e.rel, e.weight ORDER BY min(start.hop), e.weight DESC, e.src, e.dst, e.rel LIMIT %(limit)s
"""

_MOVE = (
    """
    INSERT INTO memory.edges AS e (tenant, src, dst, rel, weight, confidence, created_by, created_at, uses)
    SELECT tenant, %(to)s, dst, rel, weight, confidence, created_by, created_at, uses
    FROM memory.edges WHERE src = %(from)s AND dst <> %(to)s
    ON CONFLICT (src, dst, rel) DO UPDATE
    SET weight = greatest(e.weight, excluded.weight), uses = e.uses + excluded.uses
    """,
    """
    INSERT INTO memory.edges AS e (tenant, src, dst, rel, weight, confidence, created_by, created_at, uses)
    SELECT tenant, src, %(to)s, rel, weight, confidence, created_by, created_at, uses
    FROM memory.edges WHERE dst = %(from)s AND src <> %(to)s
    ON CONFLICT (src, dst, rel) DO UPDATE
    SET weight = greatest(e.weight, excluded.weight), uses = e.uses + excluded.uses
    """,
    "DELETE FROM memory.edges WHERE src = %(from)s OR dst = %(from)s",
)


def link(connection: Connection, edges: Sequence[Edge], created_by: str) -> int:
    """Write edges; one that is there, or whose node is not, is left out. Returns how many were written."""
    src, dst, rel, weight = zip(*edges, strict=True) if edges else ((), (), (), ())
    values = {"src": list(src), "dst": list(dst), "rel": list(rel), "weight": list(weight), "created_by": created_by}
    return connection.execute(_LINK, values).rowcount


def neighbours(connection: Connection, ids: Sequence[int], walk: Walk) -> list[Edge]:
    """Edges within `walk.hops` of the nodes `ids`, both directions, nearest first, then heaviest; one round trip."""
    values = {"ids": list(ids), "fan": _FAN, "hops": walk.hops, "limit": walk.limit, "reader": walk.reader}
    return [(src, dst, rel, float(weight)) for src, dst, rel, weight in connection.execute(_WALK, values)]


def move(connection: Connection, source: int, target: int) -> None:
    """Give the edges of `source` to `target`."""
    for statement in _MOVE:
        connection.execute(statement, {"from": source, "to": target})
