"""Which writes were made: by idempotency key, so that one sent again is done once, and by session, so that answers
follow each other. Knows nothing of what is written.

A key is claimed in the transaction that writes, so it and the write become true together; who comes with the same key
meanwhile waits, and is then told the first outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory.records import WriteBack
from ruvllm.text import clean_text

KEY_LIMIT = 200  # characters, the CHECK of memory.writes

_CLAIM = """
    INSERT INTO memory.writes (tenant, key, outcome, reason)
    SELECT current_setting('app.tenant'), key, 'skipped', 'claimed' FROM unnest(%(keys)s::text[]) AS key ORDER BY key
    ON CONFLICT (tenant, key) DO NOTHING RETURNING key
"""
_FIRST = "SELECT key, outcome, node, reason FROM memory.writes WHERE key = ANY(%(keys)s)"
_FULFIL = """
    UPDATE memory.writes AS w SET outcome = done.outcome, node = done.node, reason = done.reason,
        session = %(session)s, turn = %(turn)s
    FROM unnest(%(keys)s::text[], %(outcomes)s::text[], %(nodes)s::bigint[], %(reasons)s::text[])
        AS done (key, outcome, node, reason)
    WHERE w.key = done.key
"""
_TOOK_PLACE = """
    INSERT INTO memory.writes (tenant, outcome, node, session, turn)
    VALUES (current_setting('app.tenant'), %(outcome)s, %(node)s, %(session)s, %(turn)s)
"""
_PREVIOUS = """
    SELECT (SELECT CASE WHEN n.archived_at IS NULL THEN n.id ELSE n.superseded_by END
            FROM memory.nodes n WHERE n.id = w.node)
    FROM memory.writes w WHERE w.session = %(session)s AND w.turn < %(turn)s AND w.node IS NOT NULL
    ORDER BY w.turn DESC, w.id DESC LIMIT 1
"""
_FORGET = """
    DELETE FROM memory.writes WHERE id = ANY(ARRAY(
        SELECT id FROM memory.writes WHERE written_at < now() - make_interval(days => %(days)s) LIMIT %(limit)s))
"""


def clean_key(key: str, name: str = "key") -> str:
    """Raises InputError: it is empty, over 200 characters, or no text that Postgres can hold."""
    return clean_text(key, name, KEY_LIMIT)


def claim(connection: Connection, keys: Sequence[str]) -> dict[str, WriteBack]:
    """First outcomes of those `keys` that were used; the others are this transaction's now: `fulfil` must follow."""
    wanted = sorted(set(keys))
    mine = {row[0] for row in connection.execute(_CLAIM, {"keys": wanted})}
    used = [key for key in wanted if key not in mine]
    return first_outcomes(connection, used) if used else {}


def first_outcomes(connection: Connection, keys: Sequence[str]) -> dict[str, WriteBack]:
    """What became of the writes with these keys, as far as they are done."""
    found = connection.execute(_FIRST, {"keys": list(keys)})
    return {key: WriteBack(outcome, node, reason) for key, outcome, node, reason in found}


def fulfil(connection: Connection, done: Mapping[str, WriteBack], session: str = "", turn: int = 1) -> None:
    """Say what became of claimed keys, and of which turn of which session that was."""
    values = {
        "session": session or None,
        "turn": turn if session else None,
        "keys": list(done),
        "outcomes": [each.outcome for each in done.values()],
        "nodes": [each.node for each in done.values()],
        "reasons": [each.reason for each in done.values()],
    }
    connection.execute(_FULFIL, values)


def took_place(connection: Connection, result: WriteBack, session: str, turn: int) -> None:
    """Remember the node of turn `turn` of `session`."""
    values = {"outcome": result.outcome, "node": result.node, "session": session, "turn": turn}
    connection.execute(_TOOK_PLACE, values)


def previous(connection: Connection, session: str, turn: int) -> int | None:
    """The node of the latest turn of `session` before `turn` that has one, or what took it in."""
    row = connection.execute(_PREVIOUS, {"session": session, "turn": turn}).fetchone()
    return int(row[0]) if row and row[0] is not None else None


def forget(connection: Connection, days: int, limit: int = 10_000) -> int:
    """Delete up to `limit` rows older than `days`: a key is kept as long as a client may still send it again."""
    return connection.execute(_FORGET, {"days": days, "limit": limit}).rowcount


def forget_all(database: Database, days: int) -> int:
    """`forget` until none is left, a transaction each 10,000 rows."""
    total = 0
    while gone := database.run(lambda connection: forget(connection, days)):
        total += gone
    return total
