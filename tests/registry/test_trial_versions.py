"""`ruvllm registry trial start`: a registered version on trial, unserved before a reviewer, serving only after one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ruvllm.commands import trials
from ruvllm.database.pool import Database
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.registry import promotion
from ruvllm.registry.package import Registered, register_candidate
from ruvllm.registry.tracking import MODEL, mlflow_session
from ruvllm.router.store import BundleStore
from ruvllm.serving import canary
from ruvllm.serving.canary import Candidates
from ruvllm.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def run(registry_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(registry_settings.state_dir))
    return lambda *arguments: CliRunner().invoke(trials.app, list(arguments))


@pytest.fixture
def registered(
    registry_settings: Settings, database: Database, bundles: tuple[Path, Path, Path], report: dict[str, Any]
) -> Registered:
    return register_candidate(registry_settings, database, bundles[0], report, "night-1", {"rows": 10})


def test_a_version_nobody_reviewed_is_tried_unserved_and_serves_once_it_is_approved(
    run: Run, registered: Registered, registry_settings: Settings, database: Database
) -> None:
    assert run("start", registered.version).exit_code == 0
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "of a test")
    candidates = Candidates(BundleStore(registry_settings.router_dir), registry_settings, ladder, lambda runtime: None)
    candidates.refresh(database, "champion")
    assert candidates.trial is not None
    assert (candidates.trial.runtime.version, candidates.trial.trial.share) == ("router-1", 0.0)
    refused = run("start", registered.version, "--share", "0.1")
    assert refused.exit_code == 1
    assert f"ruvllm registry approve {registered.version}" in " ".join(refused.output.split())
    promotion.approve(registry_settings, registered.version, "alice", "looks good")
    assert run("start", registered.version, "--share", "0.1").exit_code == 0
    found = canary.newest(database)
    assert found is not None
    assert (found.sha256, found.share) == (registered.sha256, 0.1)


def test_what_was_rejected_is_not_tried_at_all(
    run: Run, registered: Registered, registry_settings: Settings, database: Database
) -> None:
    promotion.reject(registry_settings, registered.version, "alice", "worse on land")
    refused = run("start", registered.version)
    assert (refused.exit_code, "is rejected" in refused.output) == (1, True)
    assert canary.newest(database) is None


def test_a_version_that_is_not_there_or_not_ours_is_named(
    run: Run, registered: Registered, registry_settings: Settings
) -> None:
    assert "99" in run("start", "99").output
    with mlflow_session(registry_settings) as client:
        client.delete_model_version_tag(MODEL, registered.version, "bundle_sha256")
    refused = run("start", registered.version)
    assert (refused.exit_code, "bundle_sha256 is missing" in refused.output) == (1, True)
