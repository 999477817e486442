"""Database -> one .npz file: every completely run oracle query, as the learner reads it. No pickle in it.

The file's digest is over its arrays, so the same outcomes give the same digest on any day.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.inference.tiers import Ladder
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning.data import digest
from ruvllm.learning.oracle import model_hashes
from ruvllm.router.decision import N_BINS, N_TIERS
from ruvllm.router.layout import LAYOUT
from ruvllm.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotFile:
    path: Path
    digest: str
    rows: int
    train_rows: int
    test_rows: int
    left_out: int = 0  # questions whose features are of another layout


def write_snapshot(
    settings: Settings,
    database: Database,
    ladder: Ladder,
    encoder_id: str,
    replayed: Sequence[str],
    cycle_id: str,
    path: Path,
) -> SnapshotFile:
    """Write the snapshot of this ladder's outcomes to `path`, all of it or nothing.

    `replayed` are the keys of earlier nights' queries that the reservoir holds; other queries of earlier nights keep
    their place in the test split only.

    Raises:
        LearningError: no query has been run completely.
    """
    queries, runs = _read(database, ladder, model_hashes(ladder, settings))
    left_out = _of_other_layouts(database)
    if left_out:
        log.warning("oracle: %d questions left out, their features are of another layout", left_out)
    if not queries:
        raise LearningError(
            f"oracle of ladder {ladder.name}: no question was run on every tier and bin"
            f" ({left_out} left out, of another feature layout); "
            "give the collection a larger budget (ruvllm cycle --budget SECONDS)"
        )
    arrays = _arrays(settings, queries, runs, ladder, encoder_id, set(replayed), cycle_id)
    checksum = digest(arrays)
    _write(path, arrays)
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.snapshots (digest, tenant, cycle_id, row_count) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (checksum, database.tenant, cycle_id, len(queries)),
        )
    test = int(arrays["split"].sum())
    return SnapshotFile(path, checksum, len(queries), len(queries) - test, test, left_out)


def _read(
    database: Database, ladder: Ladder, hashes: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parameters = {
        "tiers": list(hashes),
        "hashes": list(hashes.values()),
        "bins": list(ROUTED_BINS),
        "version": PROMPT_VERSION,
        "layout": LAYOUT.hash,
        "wanted": len(ladder.tiers) * len(ROUTED_BINS),
    }
    with database.transaction() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        runs = cursor.execute(_RUNS, parameters).fetchall()
        complete = sorted({run["query"] for run in runs})
        queries = cursor.execute(_QUERIES, {"keys": complete}).fetchall()
    return queries, runs


def _of_other_layouts(database: Database) -> int:
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT count(*) FROM learning.oracle_queries WHERE layout_hash <> %s", (LAYOUT.hash,)
        ).fetchone()
    return int(row[0]) if row else 0


def _arrays(
    settings: Settings,
    queries: list[dict[str, Any]],
    runs: list[dict[str, Any]],
    ladder: Ladder,
    encoder_id: str,
    replayed: set[str],
    cycle_id: str,
) -> dict[str, NDArray[Any]]:
    outcomes = _outcomes(queries, runs, ladder)
    return {
        "keys": np.array([q["key"] for q in queries]),
        "features": np.array([q["features"] for q in queries], dtype=np.float32),  # (n, 128)
        "embedding": np.array([q["embedding"] for q in queries], dtype=np.float32),  # (n, d)
        **outcomes,  # quality, latency_s, cost: (n, 4, 5), NaN where a place is absent
        "split": np.array([q["split"] == "test" for q in queries], dtype=np.int8),
        "group": np.array([q["grouping"] for q in queries]),
        "domain": np.array([q["domain"] for q in queries]),
        "kind": np.array([q["kind"] for q in queries]),
        "session": np.array([q["session_id"] or "" for q in queries]),
        "turn": np.array([q["turn"] for q in queries], dtype=np.int64),
        "night": np.array([q["night"] for q in queries], dtype=np.int64),
        "replayed": np.array([q["cycle_id"] != cycle_id and q["key"] in replayed for q in queries], dtype=bool),
        "tiers": np.array([*ladder.names, *[""] * (N_TIERS - len(ladder.names))]),
        "ladder": np.array(ladder.name),
        "layout_hash": np.array(LAYOUT.hash),
        "encoder_id": np.array(encoder_id),
        "latency_weight": np.array(settings.latency_weight),
        "cost_weight": np.array(settings.cost_weight),
    }


def _outcomes(
    queries: list[dict[str, Any]], runs: list[dict[str, Any]], ladder: Ladder
) -> dict[str, NDArray[np.float32]]:
    place = {query["key"]: row for row, query in enumerate(queries)}
    arrays = {
        name: np.full((len(queries), N_TIERS, N_BINS), np.nan, dtype=np.float32)
        for name in ("quality", "latency_s", "cost")
    }
    for run in runs:
        where = place[run["query"]], ladder.names.index(run["tier"]), BINS.index(run["context_bin"])
        for name, array in arrays.items():
            array[where] = run[name]
    return arrays


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LearningError(f"snapshot {path}: {error.strerror}; free some space and run the cycle again") from error


_RUNS = """
    WITH wanted AS (SELECT * FROM unnest(%(tiers)s::text[], %(hashes)s::text[]) AS t (tier, sha256))
    SELECT query, tier, context_bin, quality, latency_s, cost FROM (
        SELECT r.*, count(*) OVER (PARTITION BY r.query) AS places
        FROM learning.oracle_runs r JOIN wanted w ON w.tier = r.tier AND w.sha256 = r.model_sha256
        JOIN learning.oracle_queries q ON q.key = r.query AND q.layout_hash = %(layout)s
        WHERE r.prompt_version = %(version)s AND r.context_bin = ANY(%(bins)s)
    ) AS complete WHERE places = %(wanted)s
    ORDER BY query, tier, context_bin
"""
_QUERIES = """
    SELECT q.*, c.night FROM learning.oracle_queries q JOIN learning.cycles c ON c.id = q.cycle_id
    WHERE q.key = ANY(%(keys)s) ORDER BY c.night, q.created_at, q.key
"""
