"""Retention lets go what nobody needs, and never what served, waits or is among the newest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, InputError
from ruvllm.nightly import weekly
from ruvllm.registry import promotion
from ruvllm.registry.ledger import LedgerRow
from ruvllm.registry.package import Registered, register_candidate
from ruvllm.registry.retention import ARCHIVED, archive_old, lets_go
from ruvllm.registry.tracking import find_version, mlflow_session
from ruvllm.settings import Settings


@dataclass
class Version:
    version: str
    tags: dict[str, str] = field(default_factory=dict)


def row(version: int, previous: int | None = None) -> LedgerRow:
    before = None if previous is None else str(previous)
    return LedgerRow(version, "promote", str(version), before, "", "", "alice", "", (), None, datetime.now(UTC))


REJECTED, PENDING = {"validation_status": "rejected"}, {"validation_status": "pending"}


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (0, ["1", "4", "6"]),  # 3 served, 2 was champion before it, 5 is archived, 7 waits and nothing later served
        (2, ["1", "4"]),
        (6, ["1"]),
        (99, []),
    ],
)
def test_who_may_go(keep: int, gone: list[str]) -> None:
    versions: Any = [
        Version("1", PENDING), Version("2", PENDING), Version("3", PENDING), Version("4", REJECTED),
        Version("5", {**REJECTED, ARCHIVED: "2026-01-01"}), Version("6", REJECTED), Version("7", PENDING),
    ]  # fmt: skip
    assert [v.version for v in lets_go(versions, [row(2), row(3, 2)], keep)] == gone


def test_an_archived_version_keeps_its_page_and_is_not_promoted(
    registry_settings: Settings,
    database: Database,
    bundles: tuple[Path, Path, Path],
    report: dict[str, Any],
) -> None:
    register: Callable[[int], Registered] = lambda n: register_candidate(  # noqa: E731  # one line of a fixture
        registry_settings, database, bundles[n - 1], report, f"night-000{n}-x"
    )
    old, served = register(1), register(2)
    promotion.approve(registry_settings, served.version, "alice")
    promotion.promote(registry_settings, database, served.version)
    assert [(o.version, o.cycle_id) for o in archive_old(registry_settings, database, 0)] == [("1", "night-0001-x")]
    assert archive_old(registry_settings, database, 0) == []
    with mlflow_session(registry_settings) as client:
        version = find_version(client, old.version)
        assert ARCHIVED in version.tags
        assert "| gate | measured |" in version.description
        assert client.get_run(old.run_id).data.metrics["n_test"] == 200
    assert Path(urlsplit(served.artifact_uri).path).is_dir()
    promotion.approve(registry_settings, old.version, "alice")
    with pytest.raises(BundleError):
        promotion.promote(registry_settings, database, old.version)
    with pytest.raises(InputError, match="keep: got -1"):
        archive_old(registry_settings, database, -1)


def test_the_weekly_upkeep_removes_the_workspaces_of_what_it_archives(
    registry_settings: Settings,
    database_url: str,
    database: Database,
    bundles: tuple[Path, Path, Path],
    report: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = replace(registry_settings, database_url=database_url)
    workspaces = {n: here.state_dir / "cycles" / f"night-000{n}-x" for n in (1, 2)}
    for n, workspace in workspaces.items():
        workspace.mkdir(parents=True)
        register_candidate(here, database, bundles[n - 1], report, workspace.name)
    promotion.reject(here, "1", "alice", "no")
    monkeypatch.setattr(weekly, "KEEP_VERSIONS", 0)
    done = weekly.maintain(here)
    assert done["archived"] == ["1"]
    assert [n for n, workspace in workspaces.items() if workspace.exists()] == [2]  # 2 waits for a reviewer
