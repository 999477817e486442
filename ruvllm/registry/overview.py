"""Every version at a glance: what serves, what waits, who reviewed. Reads MLflow and the ledger, changes neither."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ruvllm.database.pool import Database
from ruvllm.registry import ledger
from ruvllm.registry.tracking import all_versions, mlflow_session
from ruvllm.settings import Settings


@dataclass(frozen=True)
class VersionStatus:
    version: str
    champion: bool
    review: str  # pending | approved | rejected
    reviewed_by: str
    cycle_id: str
    created: str  # local day and time


def versions(settings: Settings, database: Database) -> list[VersionStatus]:
    """Every version, oldest first.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    with database.transaction() as connection:
        row = ledger.current(connection)
    champion = row.version if row else None
    with mlflow_session(settings) as client:
        return [
            VersionStatus(
                version=str(v.version),
                champion=str(v.version) == champion,
                review=v.tags.get("validation_status", "pending"),
                reviewed_by=v.tags.get("approved_by") or v.tags.get("rejected_by") or "",
                cycle_id=v.tags.get("cycle_id", ""),
                created=f"{datetime.fromtimestamp(v.creation_timestamp / 1000, UTC).astimezone():%Y-%m-%d %H:%M}",
            )
            for v in all_versions(client)
        ]
