"""What memory holds and how it is, in one record. Only reads; knows nothing of encoders or of how it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory import hnsw
from ruvllm.memory.tidy import runs

_RUNS = 5

_COUNTS = """
    SELECT kind, count(*) FROM memory.nodes WHERE archived_at IS NULL GROUP BY kind
    UNION ALL SELECT 'nodes', count(*) FROM memory.nodes WHERE archived_at IS NULL
    UNION ALL SELECT 'archived', count(*) FROM memory.nodes WHERE archived_at IS NOT NULL
    UNION ALL SELECT 'edges', count(*) FROM memory.edges
"""
# Of the whole table: one index serves every tenant, so its band is that of all rows.
_INDEX = """
    SELECT c.relname, i.indisvalid, pg_relation_size(c.oid), c.reloptions, greatest(t.reltuples, 0)::bigint
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_am m ON m.oid = c.relam WHERE t.oid = 'memory.nodes'::regclass AND m.amname = 'hnsw'
"""
_WAITING = {
    "outbox": "SELECT count(*) FROM serving.outbox WHERE done_at IS NULL",
    "outbox_failed": "SELECT count(*) FROM serving.outbox WHERE outcome = 'failed'",
    "burst": "SELECT count(*) FROM memory.ingest",
}


@dataclass(frozen=True)
class Index:
    """The HNSW index; `wanted` is what a corpus of `rows` asks for, and "ruvllm memory reindex" builds."""

    name: str
    valid: bool
    bytes: int
    parameters: str  # "m=16, ef_construction=100"
    rows: int  # the planner's estimate, all tenants'
    wanted: str
    ef_search: int


@dataclass(frozen=True)
class SavedReplica:
    """A base of this tenant's replica as it lies on disk."""

    folder: Path
    nodes: int
    position: str
    bytes: int


@dataclass(frozen=True)
class Overview:
    counts: Mapping[str, int]  # live nodes in all ("nodes") and by kind, "archived", "edges"
    index: Index | None
    replica: SavedReplica | None
    waiting: Mapping[str, int]  # work that is queued, by where
    runs: tuple[runs.Run, ...]  # the last five

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), **self.counts}


def overview(database: Database, replica_dir: Path) -> Overview:
    """The tenant's memory in figures; counting reads every node's row once."""
    with database.transaction() as connection:
        counts = {str(name): int(number) for name, number in connection.execute(_COUNTS)}
        waiting = {name: _number(connection, query) for name, query in _WAITING.items()}
        index = _index(connection)
    return Overview(counts, index, saved_replica(replica_dir, database.tenant), waiting,
                    tuple(runs.latest(database, _RUNS)))  # fmt: skip


def saved_replica(replica_dir: Path, tenant: str) -> SavedReplica | None:
    """The newest base saved for `tenant`; what cannot be read is no base."""
    found = sorted(replica_dir.glob("**/base-*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["tenant"] == tenant:
                size = sum(each.stat().st_size for each in path.parent.rglob("*") if each.is_file())
                return SavedReplica(path.parent, int(about["nodes"]), str(about["position"]), size)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _index(connection: Connection) -> Index | None:
    row = connection.execute(_INDEX).fetchone()
    if row is None:
        return None
    name, valid, size, parameters, estimate = row
    band = hnsw.band(int(estimate))
    wanted = f"m={band.m}, ef_construction={band.ef_construction}"
    return Index(name, valid, int(size), ", ".join(parameters or ()), int(estimate), wanted, band.ef_search)
