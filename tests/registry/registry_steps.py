"""Register, approve and promote in one call, for tests of what comes between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruvllm.database.pool import Database
from ruvllm.registry import ledger, promotion
from ruvllm.registry.ledger import LedgerRow
from ruvllm.registry.package import Registered, register_candidate
from ruvllm.registry.tracking import MODEL, mlflow_session
from ruvllm.settings import Settings


@dataclass(frozen=True)
class Steps:
    """One installation, three routers, one report that keeps every gate."""

    settings: Settings
    database: Database
    bundles: tuple[Path, Path, Path]
    report: Mapping[str, Any]

    def register(self, number: int, **changes: Any) -> Registered:
        bundle, report = self.bundles[number - 1], {**self.report, **changes}
        return register_candidate(self.settings, self.database, bundle, report, f"night-{number}", {"rows": 10})

    def promote(self, number: int) -> LedgerRow:
        version = self.register(number).version
        promotion.approve(self.settings, version, "alice", "looks good")
        return promotion.promote(self.settings, self.database, version)

    def champion(self) -> LedgerRow | None:
        with self.database.transaction() as connection:
            return ledger.current(connection)

    def alias(self) -> str:
        with mlflow_session(self.settings) as client:
            return str(client.get_registered_model(MODEL).aliases.get("champion"))

    def tag(self, version: str, **tags: str) -> None:
        """As a reviewer does in MLflow's pages."""
        with mlflow_session(self.settings) as client:
            for name, value in tags.items():
                client.set_model_version_tag(MODEL, version, name, value)
