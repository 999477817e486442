"""Edges between nodes: link, move, walk. Knows nothing of texts or vectors.

Of one node many transactions may write edges at once: its packed row (memory.adjacency) is locked by each until it
ends. A single statement locks in the order of ids; `move`, which is several, locks everything first. A transaction that
links and moves more than once can still meet another one crosswise: Database.run does it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from psycopg import Connection, Cursor

from ruvllm.database.pool import Database
from ruvllm.memory.records import MAX_NODES, RELATIONS, Edge, Neighbourhood, Walk

__all__ = ["Edge", "Walk", "link", "move", "neighbours", "walk", "walked"]

# In order: of two writers of the same edges in different orders, neither waits for the other crosswise.
_LINK = """
    INSERT INTO memory.edges (tenant, src, dst, rel, weight, created_by)
    SELECT current_setting('app.tenant'), e.src, e.dst, e.rel, e.weight, %(created_by)s
    FROM unnest(%(src)s::bigint[], %(dst)s::bigint[], %(rel)s::text[], %(weight)s::real[]) AS e (src, dst, rel, weight)
    WHERE (SELECT true FROM memory.nodes WHERE id = e.src) AND (SELECT true FROM memory.nodes WHERE id = e.dst)
    ORDER BY e.src, e.dst, e.rel
    ON CONFLICT (src, dst, rel) DO NOTHING
"""

_WALK = """
    SELECT ids, at_hops, scores, srcs, dsts, codes, weights
    FROM memory.walk(%(seeds)s::bigint[], %(hops)s::int, %(fan)s::int, %(frontier)s::int, %(limit)s::int,
                     %(codes)s::smallint[], %(reader)s::text)
"""

_MOVE = (
    """
    SELECT memory.lock_adjacency(array_agg(ends.node)) FROM (
        SELECT unnest(ARRAY[%(from)s, %(to)s]::bigint[]) UNION
        SELECT dst FROM memory.edges WHERE src = %(from)s UNION SELECT src FROM memory.edges WHERE dst = %(from)s
    ) AS ends (node)
    """,
    """
    INSERT INTO memory.edges AS e
        (tenant, src, dst, rel, weight, confidence, created_by, created_at, last_used_at, uses)
    SELECT tenant, %(to)s, dst, rel, weight, confidence, created_by, created_at, last_used_at, uses
    FROM memory.edges WHERE src = %(from)s AND dst <> %(to)s ORDER BY dst, rel
    ON CONFLICT (src, dst, rel) DO UPDATE
    SET weight = greatest(e.weight, excluded.weight), uses = e.uses + excluded.uses,
        created_at = least(e.created_at, excluded.created_at),
        last_used_at = greatest(e.last_used_at, excluded.last_used_at)
    """,
    """
    INSERT INTO memory.edges AS e
        (tenant, src, dst, rel, weight, confidence, created_by, created_at, last_used_at, uses)
    SELECT tenant, src, %(to)s, rel, weight, confidence, created_by, created_at, last_used_at, uses
    FROM memory.edges WHERE dst = %(from)s AND src <> %(to)s ORDER BY src, rel
    ON CONFLICT (src, dst, rel) DO UPDATE
    SET weight = greatest(e.weight, excluded.weight), uses = e.uses + excluded.uses,
        created_at = least(e.created_at, excluded.created_at),
        last_used_at = greatest(e.last_used_at, excluded.last_used_at)
    """,
    "DELETE FROM memory.edges WHERE src = %(from)s OR dst = %(from)s",
)


def link(connection: Connection, edges: Sequence[Edge], created_by: str) -> int:
    """Write edges; one that is there, or whose node is not, is left out. Returns how many were written."""
    src, dst, rel, weight = zip(*edges, strict=True) if edges else ((), (), (), ())
    values = {"src": list(src), "dst": list(dst), "rel": list(rel), "weight": list(weight), "created_by": created_by}
    return connection.execute(_LINK, values).rowcount


def move(connection: Connection, source: int, target: int) -> None:
    """Give the edges of `source` to `target`."""
    for statement in _MOVE:
        connection.execute(statement, {"from": source, "to": target})


def walk(connection: Connection, seeds: Sequence[int], how: Walk) -> Neighbourhood:
    """The neighbourhood of `seeds` as `how` says, from packed rows; one round trip, one snapshot."""
    return _neighbourhood(_walk(connection, seeds, how).fetchall())


def walked(database: Database, seeds: Sequence[int], how: Walk) -> Neighbourhood:
    """`walk` in a transaction of its own, all of it one round trip."""
    return _neighbourhood(database.read(lambda connection: _walk(connection, seeds, how)))


def _walk(connection: Connection, seeds: Sequence[int], how: Walk) -> Cursor[tuple[Any, ...]]:
    codes = [RELATIONS.index(relation) + 1 for relation in how.relations]
    values = {"seeds": list(seeds), "hops": how.hops, "fan": how.fan, "frontier": how.frontier}
    values |= {"limit": how.limit, "codes": codes, "reader": how.reader}
    return connection.cursor(binary=True).execute(_WALK, values)


def _neighbourhood(found: Sequence[tuple[Any, ...]]) -> Neighbourhood:
    ((ids, hops, scores, srcs, dsts, relations, weights),) = found  # the function gives one row
    names = [RELATIONS[code - 1] for code in relations]
    return Neighbourhood(
        np.array(ids, np.int64),
        np.array(hops, np.int8),
        np.array(scores, np.float64).astype(np.float32),
        tuple(zip(srcs, dsts, names, weights, strict=True)),
    )


def neighbours(connection: Connection, ids: Sequence[int], how: Walk) -> list[Edge]:
    """The edges that a walk from the nodes `ids` meets, at most `how.limit`: nearest first, then heaviest."""
    found = walk(connection, ids, replace(how, limit=MAX_NODES))
    hops = dict(zip(found.ids.tolist(), found.hops.tolist(), strict=True))
    near = sorted(found.edges, key=lambda edge: min(hops[edge[0]], hops[edge[1]]))  # stable: the heaviest stay first
    return near[: how.limit]
