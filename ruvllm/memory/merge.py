"""Two rows become one: the loser is archived, never deleted, and points to its heir. Knows not why they are merged."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import Connection
from psycopg.types.json import Jsonb

from ruvllm.memory import edges

_ARCHIVE = """
    UPDATE memory.nodes SET archived_at = now(), updated_at = now(), superseded_by = %(to)s
    WHERE id = %(from)s AND archived_at IS NULL
"""

_USAGE = """
    INSERT INTO memory.node_usage AS u (node, tenant, uses, last_used_at)
    SELECT %(to)s, tenant, uses, last_used_at FROM memory.node_usage WHERE node = %(from)s
    ON CONFLICT (node) DO UPDATE
    SET uses = u.uses + excluded.uses, last_used_at = greatest(u.last_used_at, excluded.last_used_at)
"""

_STRENGTHEN = """
    UPDATE memory.nodes SET confidence = greatest(confidence, %(confidence)s), trust = %(trust)s, updated_at = now()
    WHERE id = %(node)s
"""

# The last 20 entries: a question asked every day must not grow its row for ever.
_REMEMBER = """
    UPDATE memory.node_texts SET metadata = metadata || jsonb_build_object('history',
        jsonb_path_query_array(coalesce(metadata -> 'history', '[]') || %(entry)s, '$[last - 19 to last]'))
    WHERE node = %(node)s
"""

_TOUCH = """
    INSERT INTO memory.node_usage AS u (node, tenant, uses)
    SELECT id, tenant, 1 FROM memory.nodes WHERE id = ANY(%(ids)s) ORDER BY id
    ON CONFLICT (node) DO UPDATE SET uses = u.uses + 1, last_used_at = now()
"""


def absorb(connection: Connection, heir: int, loser: int) -> bool:
    """Archive `loser` in favour of `heir`, which takes its edges and its usage; False if it was archived already."""
    ids = {"to": heir, "from": loser}
    if connection.execute(_ARCHIVE, ids).rowcount == 0:
        return False
    edges.move(connection, loser, heir)
    connection.execute(_USAGE, ids)
    connection.execute("DELETE FROM memory.minhash_bands WHERE node = %(from)s", ids)
    return True


def strengthen(connection: Connection, node: int, confidence: float, trust: str, entry: Mapping[str, object]) -> None:
    """A node's content came once more: confidence is the higher one, `entry` says where it came from."""
    connection.execute(_STRENGTHEN, {"node": node, "confidence": confidence, "trust": trust})
    connection.execute(_REMEMBER, {"node": node, "entry": Jsonb([dict(entry)])})


def touch(connection: Connection, ids: list[int]) -> None:
    """Count one use of each node."""
    connection.execute(_TOUCH, {"ids": ids})
