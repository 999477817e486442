"""The one hard delete: what a user takes back, and all that a writer wrote. Knows nothing of who asks.

What goes: the nodes with texts, vectors, words, bands, usage, edges, packed rows, journals and canary questions; older
versions by the same writer that they took in; Concepts that sum them up; rows of a burst with the same text; mentions
in other nodes' histories. Unless `only_memory`, also that writer's requests that they were written from, with feedback
and outbox, the history of later turns, and the oracle's same questions with runs, labels and replay. What another
writer had said before and they had replaced lives again.

What stays, and why: memory.writes holds keys and outcomes, no text, so that the same write sent again is not written
again; memory.changes holds ids, for the replicas; router weights, EWC state and snapshots hold numbers and no text;
Facts that were answered from a deleted node are texts of their own (counted as `derived`, to be named by their uuids);
server logs, backups and exported files are out of this database's reach.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError
from ruvllm.memory.tidy import archive, journal
from ruvllm.progress import Progress, silent

_BY_UUID = "SELECT id FROM memory.nodes WHERE uuid = ANY(%(uuids)s::uuid[])"
_BY_WRITER = "SELECT node FROM memory.node_texts WHERE writer = %(writer)s"

# Older versions by the same writer, and Concepts over any of them: both hold the same words.
_GROWN = """
    WITH RECURSIVE gone (id) AS (
        SELECT unnest(%(ids)s::bigint[])
        UNION
        SELECT more.id FROM gone CROSS JOIN LATERAL (
            SELECT n.id FROM memory.nodes n
            JOIN memory.node_texts t ON t.node = n.id JOIN memory.node_texts mine ON mine.node = gone.id
            WHERE n.superseded_by = gone.id AND t.writer = mine.writer
            UNION
            SELECT e.src FROM memory.edges e JOIN memory.nodes c ON c.id = e.src
            WHERE e.dst = gone.id AND e.rel = 'Contains' AND c.kind = 'Concept'
        ) AS more
    )
    SELECT id FROM gone ORDER BY id
"""
# What others had said and the deleted nodes replaced, the latest first.
_REPLACED = """
    SELECT n.id, s.id FROM memory.nodes n
    LEFT JOIN memory.supersessions s ON s.node = n.id AND s.heir = n.superseded_by AND s.undone_at IS NULL
    WHERE n.superseded_by = ANY(%(ids)s) AND n.id <> ALL(%(ids)s) ORDER BY s.id DESC NULLS LAST, n.id DESC
"""
_DERIVED = """
    SELECT count(DISTINCT e.src) FROM memory.edges e
    WHERE e.dst = ANY(%(ids)s) AND e.rel = 'Derived' AND e.src <> ALL(%(ids)s)
"""

_MENTION = "@.merged == $uuids[*] || @.writer == $writers[*]"
_MENTIONS = f".history[*] ? ({_MENTION})"

# In this order: what is found by the nodes goes before them. %(hashes)s, %(questions)s and %(requests)s are theirs.
_MEMORY = {
    "canary_questions": """
        DELETE FROM memory.canary_queries WHERE expected = ANY(%(ids)s) OR (%(writer)s <> '' AND reader = %(writer)s)
    """,
    "burst_rows": """
        DELETE FROM memory.ingest
        WHERE content_hash = ANY(%(hashes)s) OR (%(writer)s <> '' AND writer = %(writer)s)
    """,
    "journalled_histories": f"""
        DELETE FROM memory.journal WHERE relation = 'node_texts' AND node <> ALL(%(ids)s) AND (
            jsonb_path_exists(before, '$.metadata{_MENTIONS}', %(vars)s)
            OR jsonb_path_exists(after, '$.metadata{_MENTIONS}', %(vars)s))
    """,  # noqa: S608  # built from the constants above
    "histories": f"""
        UPDATE memory.node_texts SET metadata = jsonb_set(metadata, '{{history}}', jsonb_path_query_array(metadata,
            '$.history[*] ? (!({_MENTION}))', %(vars)s))
        WHERE node <> ALL(%(ids)s) AND metadata ? 'history' AND jsonb_path_exists(metadata, '${_MENTIONS}', %(vars)s)
    """,  # noqa: S608  # built from the constants above
    "edges": "DELETE FROM memory.edges WHERE src = ANY(%(ids)s) OR dst = ANY(%(ids)s)",
    "nodes": "DELETE FROM memory.nodes WHERE id = ANY(%(ids)s)",
}
_RECORDS = {
    "feedback": """
        DELETE FROM serving.feedback WHERE interaction = ANY(%(requests)s) OR (%(writer)s <> '' AND writer = %(writer)s)
    """,
    "later_turns": """
        UPDATE serving.interactions SET history = '[]' WHERE id <> ALL(%(requests)s) AND history <> '[]'
        AND session_id IN (SELECT session_id FROM serving.interactions WHERE id = ANY(%(requests)s))
    """,
    "oracle_questions": "DELETE FROM learning.oracle_queries WHERE question = ANY(%(questions)s)",
    "requests": "DELETE FROM serving.interactions WHERE id = ANY(%(requests)s)",
}
_REQUESTS = """
    SELECT id, question FROM serving.interactions WHERE (%(writer)s <> '' AND writer = %(writer)s)
    OR (id, writer) IN (SELECT o.interaction, t.writer FROM serving.outbox o
                        JOIN memory.node_texts t ON t.node = o.node WHERE o.node = ANY(%(ids)s))
"""
_FACTS = """
    SELECT n.uuid::text, n.content_hash, t.metadata ->> 'question' FROM memory.nodes n
    JOIN memory.node_texts t ON t.node = n.id WHERE n.id = ANY(%(ids)s)
"""
# A saved replica holds texts in its files: those made before this transaction ended are made anew.
_REPLICAS = "UPDATE memory.change_log SET whole_from = ((pg_current_xact_id()::text)::bigint + 1)::text::xid8"


@dataclass(frozen=True)
class ForgetReport:
    """What went, or, `dry`, what would; `missing` are uuids that memory does not hold."""

    dry: bool
    counts: Mapping[str, int]  # rows by what they are
    derived: int  # Facts answered from them, which stay
    missing: tuple[str, ...]
    vacuumed: bool  # whether the space of the deleted rows was wiped at once, or will be by autovacuum

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class _Dry(Exception):
    """Rolls back what a dry run did."""


def forget_nodes(
    database: Database, uuids: Sequence[str], apply: bool = False, only_memory: bool = False,
    progress: Progress = silent,
) -> ForgetReport:  # fmt: skip
    """Delete the nodes `uuids` for good, live or archived; a dry run unless `apply`.

    Raises:
        InputError: one is no UUID, or there is none.
    """
    wanted = [_uuid(each) for each in uuids]
    if not wanted:
        raise InputError("forget: got no node, want at least one uuid")

    def select(connection: Connection) -> list[int]:
        return _ids(connection, _BY_UUID, {"uuids": wanted})

    return _forget(database, select, "", wanted, apply, only_memory, progress)


def forget_writer(
    database: Database, writer: str, apply: bool = False, only_memory: bool = False, progress: Progress = silent
) -> ForgetReport:
    """Delete all that `writer` wrote in the tenant, and what was asked as that writer; a dry run unless `apply`.

    Raises:
        InputError: the name is empty: that would be everybody without one.
    """
    if not writer.strip():
        raise InputError("forget: got an empty writer, want a name")

    def select(connection: Connection) -> list[int]:
        return _ids(connection, _BY_WRITER, {"writer": writer})

    return _forget(database, select, writer, (), apply, only_memory, progress)


def wipe_saved_replicas(replica_dir: Path, tenant: str) -> int:
    """Remove what replicas of `tenant` saved below `replica_dir`, refused bases too; returns how many there were.

    They hold texts. A process that reads one keeps it until it has made another, which the log makes it do.
    """
    saved = [path.parent for path in replica_dir.glob("**/manifest.json") if _is_of(path, tenant)]
    for folder in saved:
        shutil.rmtree(folder, ignore_errors=True)
    return len(saved)


def _is_of(manifest: Path, tenant: str) -> bool:
    """One that cannot be read may be anybody's: it is of no use, and goes too."""
    try:
        return bool(json.loads(manifest.read_text(encoding="utf-8"))["tenant"] == tenant)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise InputError(f"forget: got {text!r}, want a node's uuid as memory search shows it") from error


def _ids(connection: Connection, query: str, values: Mapping[str, object]) -> list[int]:
    return [int(row[0]) for row in connection.execute(query.encode(), values)]


def _forget(
    database: Database,
    select: Callable[[Connection], list[int]],
    writer: str,
    wanted: Sequence[str],
    apply: bool,
    only_memory: bool,
    progress: Progress,
) -> ForgetReport:
    """All of it in one transaction: a kill leaves everything or nothing. A dry run does the same, then rolls back."""
    counts: dict[str, int] = {}
    try:
        with database.transaction() as connection:
            chosen = select(connection)
            ids = _ids(connection, _GROWN, {"ids": chosen})
            values = _values(connection, ids, writer)
            derived = _ids(connection, _DERIVED, {"ids": ids})[0]
            missing = tuple(sorted(set(wanted) - set(values["uuids"])))
            _delete(connection, values, counts, only_memory, progress)
            if not apply:
                raise _Dry
    except _Dry:
        return ForgetReport(True, counts, derived, missing, False)
    return ForgetReport(False, counts, derived, missing, _vacuum(database, progress))


def _values(connection: Connection, ids: list[int], writer: str) -> dict[str, Any]:
    facts = connection.execute(_FACTS, {"ids": ids}).fetchall()
    requests = connection.execute(_REQUESTS, {"ids": ids, "writer": writer}).fetchall()
    uuids = [row[0] for row in facts]
    questions = {row[2] for row in facts if row[2] is not None} | {row[1] for row in requests}
    variables = psycopg.types.json.Jsonb({"uuids": uuids, "writers": [writer] if writer else []})
    return {
        "ids": ids, "writer": writer, "uuids": uuids, "hashes": [bytes(row[1]) for row in facts], "vars": variables,
        "requests": [row[0] for row in requests], "questions": sorted(questions),
    }  # fmt: skip


def _delete(
    connection: Connection, values: Mapping[str, object], counts: dict[str, int], only_memory: bool, progress: Progress
) -> None:
    steps = {**({} if only_memory else _RECORDS), **_MEMORY}
    replaced = connection.execute(_REPLACED, values).fetchall()
    for supersession in (row[1] for row in replaced if row[1] is not None):
        journal.take_back(connection, supersession=supersession)
    for done, (name, statement) in enumerate(steps.items(), start=1):
        counts[name] = connection.execute(statement.encode(), values).rowcount
        progress(done, len(steps), name.replace("_", " "))
    back = sorted({row[0] for row in replaced})
    archive.wake(connection, back)  # what had no journal, or the text of what replaced it
    counts["revived"] = len(back)
    connection.execute(_REPLICAS)


def _vacuum(database: Database, progress: Progress) -> bool:
    """Postgres hides deleted rows at once and wipes them at the next vacuum: now, where we may."""
    try:
        with database.owner() as connection:
            for table in ("memory.nodes", "memory.node_texts", "memory.node_words", "memory.journal",
                          "serving.interactions", "learning.oracle_queries"):  # fmt: skip
                progress(0, 0, f"vacuum {table}")
                connection.execute(f"VACUUM {table}".encode())
    except (DatabaseError, psycopg.Error):
        return False
    return True
