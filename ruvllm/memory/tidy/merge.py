"""Two rows become one: the loser is archived, never deleted, and points to its heir. Knows not why they are merged.

Who merged what into what, when and why is a row of memory.supersessions; what else changed is in the journal, from
which `runs.undo` restores it.
"""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import Connection
from psycopg.types.json import Jsonb

from ruvllm.errors import InputError
from ruvllm.memory import edges
from ruvllm.memory.tidy import journal

# Both, by a statement of its own and in order: what is read after it is the latest, and two merges never cross.
_LOCK = """
    SELECT id FROM memory.nodes WHERE id = ANY(ARRAY[%(to)s, %(from)s]::bigint[]) AND archived_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
"""

_SUPERSEDE = """
    INSERT INTO memory.supersessions (tenant, node, heir, by, why, run)
    VALUES (current_setting('app.tenant'), %(from)s, %(to)s, %(by)s, %(why)s,
            coalesce(%(run)s::bigint, nullif(current_setting('app.run', true), '')::bigint))
    RETURNING id
"""

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


def absorb(connection: Connection, heir: int, loser: int, why: str = "", by: str = "", run: int | None = None) -> bool:
    """Archive `loser` in favour of `heir`, which takes its edges and its usage; False if it was archived already.

    Args:
        why: what made them one, in a few words; stored with who, when and into what.
        by: who merges: "dedup", "write-back", ...
        run: the tidying run that this belongs to; by default the one that the transaction names, if it names one.

    Raises:
        InputError: the heir is archived or unknown, or is the loser itself: what is merged has to stay found.
    """
    if heir == loser:
        raise InputError(f"node {loser}: got itself as heir, want another node")
    ids = {"to": heir, "from": loser, "why": why, "by": by, "run": run}
    live = [row[0] for row in connection.execute(_LOCK, ids)]
    if loser not in live:
        return False
    if heir not in live:
        raise InputError(f"node {heir}: is archived or unknown, want a live heir for node {loser}")
    row = connection.execute(_SUPERSEDE, ids).fetchone()
    assert row is not None
    with journal.recording(connection, "supersession", row[0]), journal.recording(connection, "run", run):
        connection.execute(_ARCHIVE, ids)
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
