"""What is done once a week, outside of any night: upkeep, retention, health. Knows nothing of Prefect."""

from __future__ import annotations

import shutil
from typing import Any

from ruvllm.database import open_database
from ruvllm.settings import Settings

Result = dict[str, Any]

KEEP_VERSIONS = 30  # candidates that stay whole, beside every version that ever served


def maintain(settings: Settings) -> Result:
    """Reindex, vacuum, check and audit memory's indexes; archive what the retention rule lets go.

    Raises:
        DatabaseError, RegistryError: as the part says; what was done before it stays done.
    """
    from ruvllm.memory.tidy.upkeep import keep_up
    from ruvllm.registry.retention import archive_old

    database = open_database(settings)
    try:
        kept_up = keep_up(database).as_dict()
        archived = archive_old(settings, database, KEEP_VERSIONS)
    finally:
        database.close()
    for old in archived:
        shutil.rmtree(settings.state_dir / "cycles" / old.cycle_id, ignore_errors=True)
    return {"alarms": kept_up["alarms"], "archived": [old.version for old in archived]}


def health(settings: Settings) -> list[Result]:
    """Every check of `ruvllm doctor`, as rows."""
    from ruvllm.doctor import run_checks

    return [{"name": c.name, "ok": c.ok, "detail": c.detail, "mend": c.mend} for c in run_checks(settings)]
