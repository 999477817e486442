"""Retention: which versions may lose their place on disk. Never one that served, waits, or is among the newest.

An archived version keeps its page, figures and gate table in MLflow; its workspace and its bundle are what goes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.registry import ledger
from ruvllm.registry.identities import PROMOTER
from ruvllm.registry.ledger import LedgerRow
from ruvllm.registry.package import BUNDLE, run_uri
from ruvllm.registry.tracking import MODEL, all_versions, mlflow_session
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ARCHIVED = "archived_at"
_CYCLE = re.compile(r"night-[\w-]+")  # a cycle's id becomes a path


@dataclass(frozen=True)
class Old:
    version: str
    cycle_id: str


def archive_old(settings: Settings, database: Database, keep: int) -> list[Old]:
    """Tag and empty what the rule lets go; the versions, oldest first. A second call finds nothing.

    Raises:
        InputError: `keep` is negative.
        RegistryError: MLflow cannot be reached.
    """
    if keep < 0:
        raise InputError(f"keep: got {keep}, want 0 or more versions")
    with database.transaction() as connection:
        rows = ledger.history(connection)
    now, gone = datetime.now(UTC).isoformat(timespec="seconds"), []
    with mlflow_session(settings, PROMOTER) as client:
        for version in lets_go(all_versions(client), rows, keep):
            # the tag first: what is only half emptied is not promoted any more
            client.set_model_version_tag(MODEL, version.version, ARCHIVED, now)
            _remove_bundle(run_uri(client, version))
            gone.append(Old(str(version.version), _cycle_of(version)))
    return gone


def lets_go(versions: Sequence[ModelVersion], rows: Sequence[LedgerRow], keep: int) -> list[ModelVersion]:
    """Versions beyond the newest `keep` that never served, do not wait for a reviewer and are not archived yet."""
    served = {row.version for row in rows} | {row.previous for row in rows}
    old = [
        v for v in versions[: max(0, len(versions) - keep)] if str(v.version) not in served and ARCHIVED not in v.tags
    ]
    return [v for v in old if v.tags.get("validation_status") == "rejected" or _superseded(v, rows)]


def _superseded(version: ModelVersion, rows: Sequence[LedgerRow]) -> bool:
    """Whether a later version has served since: nobody waits for this one any more."""
    return any(int(row.version) > int(version.version) for row in rows)


def _remove_bundle(uri: str) -> None:
    """Of artifacts on this disk; a server's own artifacts are its own retention's (mlflow gc)."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        shutil.rmtree(Path(unquote(parts.path)) / BUNDLE, ignore_errors=True)


def _cycle_of(version: ModelVersion) -> str:
    found = version.tags.get("cycle_id", "")
    return found if _CYCLE.fullmatch(found) else "none"
