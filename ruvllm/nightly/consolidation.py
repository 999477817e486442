"""The EWC state between nights: the champion's Fisher information and anchors, kept in Postgres. Trains nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.registry import ledger
from ruvllm.settings import Settings


def newest_state(database: Database, workspace: Path) -> Path | None:
    """The newest EWC state, as a file in `workspace`; None before the first consolidation.

    Raises:
        LearningError: the stored state is not what its digest says.
    """
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT state, sha256, router_version FROM learning.ewc_state ORDER BY id DESC LIMIT 1"
        ).fetchone()
    if row is None:
        return None
    state = bytes(row[0])
    if hashlib.sha256(state).hexdigest() != row[1]:
        raise LearningError(f"EWC state of router {row[2]}: sha256 does not match; restore the database from a backup")
    path = workspace / "ewc.safetensors"
    path.write_bytes(state)
    return path


def consolidate_champion(settings: Settings, database: Database, cycle_id: str | None) -> dict[str, Any]:
    """Store the state of the champion that `cycle_id` made; a second time nothing changes.

    Raises:
        LearningError: there is no champion, or no cycle that made it.
    """
    from ruvllm.learning.ewc import consolidate_bundle

    with database.transaction() as connection:
        row = ledger.current(connection)
    if row is None or cycle_id is None:
        raise LearningError("consolidate: there is no champion yet; promote a candidate first")
    workspace = settings.state_dir / "cycles" / cycle_id
    result = consolidate_bundle(workspace / "bundle", workspace / "snapshot.npz", newest_state(database, workspace))
    with database.transaction() as connection:
        connection.execute(_STORE_EWC, {**result.row(), "tenant": database.tenant, "version": row.version})
    return {"consolidated": True, "version": row.version, "samples": result.samples}


_STORE_EWC = """
    INSERT INTO learning.ewc_state (tenant, router_version, layout_hash, state, sha256, penalty, decay, samples)
    VALUES (%(tenant)s, %(version)s, %(layout_hash)s, %(state)s, %(sha256)s, %(penalty)s, %(decay)s, %(samples)s)
    ON CONFLICT (tenant, router_version) DO NOTHING
"""
