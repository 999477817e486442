"""What nobody used for a season leaves the search, not memory: archived without an heir, and back when it is wanted.

Knows nothing of merges. An archived node is out of HNSW (its index holds live rows only) and of the duplicates'
look-up; its text, vector and edges stay. It comes back by `rehydrate`, or by `revive` when its content is written
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory.likeness import minhash
from ruvllm.memory.tidy import runs
from ruvllm.memory.tidy.runs import Running
from ruvllm.progress import Progress, silent

PROTECTED = ("Document", "Concept")  # what was read in, and what stands for many
UNUSED_DAYS = 90
_BATCH = 500

# Not what a canary's question has to find: it would be taken back each night.
_UNUSED = """
    SELECT n.id FROM memory.nodes n
    WHERE n.archived_at IS NULL AND n.kind <> ALL(%(protect)s) AND n.created_at < %(before)s
      AND NOT EXISTS (SELECT FROM memory.node_usage u WHERE u.node = n.id AND u.last_used_at >= %(before)s)
      AND NOT EXISTS (SELECT FROM memory.canary_queries c WHERE c.expected = n.id)
    ORDER BY n.id
"""
_ARCHIVE = """
    UPDATE memory.nodes n SET archived_at = now(), updated_at = now()
    WHERE n.id = ANY(%(ids)s) AND n.archived_at IS NULL
      AND NOT EXISTS (SELECT FROM memory.node_usage u WHERE u.node = n.id AND u.last_used_at >= %(before)s)
    RETURNING n.id
"""
_DROP_BANDS = "DELETE FROM memory.minhash_bands WHERE node = ANY(%(ids)s)"
_ASLEEP = """
    SELECT id, content_hash FROM memory.nodes WHERE id = ANY(%(ids)s) AND archived_at IS NOT NULL ORDER BY id FOR UPDATE
"""
_LIVE_TWINS = """
    SELECT content_hash, id FROM memory.nodes WHERE content_hash = ANY(%(hashes)s) AND archived_at IS NULL
"""
_WAKE = """
    UPDATE memory.nodes SET archived_at = NULL, superseded_by = NULL, updated_at = now() WHERE id = ANY(%(ids)s)
"""
_RELEASED = "UPDATE memory.supersessions SET undone_at = now() WHERE node = ANY(%(ids)s) AND undone_at IS NULL"
_USED_NOW = """
    INSERT INTO memory.node_usage AS u (node, tenant) SELECT id, tenant FROM memory.nodes WHERE id = ANY(%(ids)s)
    ON CONFLICT (node) DO UPDATE SET last_used_at = now()
"""
_ASLEEP_BY_CONTENT = """
    SELECT DISTINCT ON (content_hash) content_hash, id FROM memory.nodes
    WHERE content_hash = ANY(%(hashes)s) AND archived_at IS NOT NULL AND superseded_by IS NULL
    ORDER BY content_hash, archived_at DESC, id DESC
"""
_SIGN = """
    INSERT INTO memory.minhash_bands (node, tenant, band, hash, scheme)
    SELECT %(node)s, current_setting('app.tenant'), b.place - 1, b.hash, %(scheme)s
    FROM unnest(%(hashes)s::bigint[]) WITH ORDINALITY AS b (hash, place) ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class ArchiveReport:
    """`unused` nodes were found; `archived` of them went (0 where the run was dry); `capped`: the rest is for later."""

    run: int
    status: str
    dry: bool
    unused: int
    archived: int
    capped: bool

    def as_dict(self) -> dict[str, object]:
        return {("dry_run" if name == "dry" else name): value for name, value in asdict(self).items()}


def archive(
    database: Database,
    days: int = UNUSED_DAYS,
    protect: Sequence[str] = PROTECTED,
    apply: bool | None = None,
    cap: int | None = None,
    progress: Progress = silent,
    now: datetime | None = None,
) -> ArchiveReport:
    """Archive what was neither written nor used within `days`, the oldest first.

    Args:
        apply: None is a dry run until one is on record; `runs.tidying` says more, of `cap` too.
        now: until when use counts; for tests and for a look ahead in a dry run.
    """
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    values = {"protect": list(protect), "before": before}
    with runs.tidying(database, "archive", apply, cap) as run:
        with database.transaction() as connection:
            unused = [row[0] for row in connection.execute(_UNUSED, values)]
        run.count(unused=len(unused))
        allowed = unused[: run.left]
        for start in range(0, max(1, len(allowed)), _BATCH):
            _put_to_sleep(run, [] if run.dry else allowed[start : start + _BATCH], before)
            progress(min(start + _BATCH, len(allowed)), len(allowed))
    status = runs.find(database, run.id).status
    return ArchiveReport(run.id, status, run.dry, len(unused), run.changed, len(allowed) < len(unused))


def _put_to_sleep(run: Running, ids: list[int], before: datetime) -> None:
    with run.batch() as connection:
        gone = [row[0] for row in connection.execute(_ARCHIVE, {"ids": ids, "before": before})]
        connection.execute(_DROP_BANDS, {"ids": gone})
        run.count(len(gone), archived=len(gone))


def rehydrate(database: Database, ids: Sequence[int]) -> dict[int, int]:
    """Bring archived nodes back to life, superseded ones too: by id the live node, which is another one where its
    content was written again meanwhile. Ids that are unknown or live already are left out."""
    with database.transaction() as connection:
        return wake(connection, ids)


def wake(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """`rehydrate` in the caller's transaction."""
    asleep = {row[0]: bytes(row[1]) for row in connection.execute(_ASLEEP, {"ids": list(ids)})}
    found = connection.execute(_LIVE_TWINS, {"hashes": list(asleep.values())})
    holders = {bytes(hash): id for hash, id in found}
    result, woken = {}, []
    for id, hash in asleep.items():
        if hash not in holders:
            holders[hash] = id
            woken.append(id)
        result[id] = holders[hash]
    for statement in (_WAKE, _RELEASED, _USED_NOW):
        connection.execute(statement, {"ids": woken})
    _sign(connection, woken)
    return result


def revive(connection: Connection, hashes: Sequence[bytes]) -> Mapping[bytes, int]:
    """For a write: by content hash, the archived nodes that hold that content and are live again from now on.

    What was superseded is left to its heir, and what lives already is left out.
    """
    asleep = {bytes(h): id for h, id in connection.execute(_ASLEEP_BY_CONTENT, {"hashes": list(hashes)})}
    woken = wake(connection, sorted(asleep.values())) if asleep else {}
    return {hash: id for hash, id in asleep.items() if woken.get(id) == id}


def _sign(connection: Connection, ids: list[int]) -> None:
    """MinHash bands again, as when they were written."""
    found = connection.execute("SELECT node, text FROM memory.node_texts WHERE node = ANY(%s)", [ids]).fetchall()
    for node, text in found:
        bands = minhash.signed(text)
        values = {"node": node, "hashes": list(bands.hashes), "scheme": bands.scheme}
        connection.execute(_SIGN, values)
