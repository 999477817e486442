"""MLflow down, hanging or wiped, a full disk, and approvals that are none: the state is named, the champion stays."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import ArtifactError, GateError, RegistryError
from ruvllm.registry import promotion, tracking
from ruvllm.registry.ledger import LedgerRow
from ruvllm.settings import Settings
from tests.registry.registry_steps import Steps


@pytest.fixture
def steps(
    registry_settings: Settings, database: Database, bundles: tuple[Path, Path, Path], report: dict[str, Any]
) -> Steps:
    return Steps(registry_settings, database, bundles, report)


@pytest.fixture(params=["down", "hanging"])
def away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that refuses, or that takes a request and never answers."""
    monkeypatch.setitem(tracking._ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setitem(tracking._ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "hanging":
            server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def wipe(steps: Steps, migrated: Path) -> None:
    """MLflow as it was on its first day: numbers of versions begin anew."""
    shutil.rmtree(steps.settings.state_dir / "mlflow" / "artifacts")
    shutil.copy(migrated, steps.settings.state_dir / "mlflow" / "mlflow.db")


def test_without_mlflow_no_step_changes_the_champion(steps: Steps, away: str) -> None:
    row = steps.promote(1)
    waiting = steps.register(2).version
    promotion.approve(steps.settings, waiting, "alice")
    cut_off = replace(steps, settings=replace(steps.settings, mlflow_tracking_uri=away))
    tried: list[Callable[[], object]] = [
        lambda: cut_off.register(3),
        lambda: promotion.approve(cut_off.settings, waiting, "alice"),
        lambda: promotion.promote(cut_off.settings, steps.database, waiting),
        lambda: promotion.promote_approved(cut_off.settings, steps.database),
        lambda: promotion.reconcile_alias(cut_off.settings, steps.database),
    ]
    for step in tried:
        with pytest.raises(RegistryError, match=f"MLflow at {away}"):
            step()
    assert steps.champion() == row
    assert promotion.promote_approved(steps.settings, steps.database).version == waiting  # type: ignore[union-attr]  # nothing was lost


def test_after_mlflow_was_wiped_the_champion_stays_and_a_new_version_of_its_number_is_another(
    steps: Steps, migrated_mlflow: Path
) -> None:
    row = steps.promote(1)
    wipe(steps, migrated_mlflow)
    with pytest.raises(RegistryError, match="version '1': not in MLflow"):
        promotion.reconcile_alias(steps.settings, steps.database)
    assert promotion.promote_approved(steps.settings, steps.database) is None

    again = steps.register(2)  # gets number 1 anew
    assert again.version == row.version
    with pytest.raises(RegistryError, match=r"MLflow was wiped or replaced.*ruvllm restore"):
        promotion.reconcile_alias(steps.settings, steps.database)
    with pytest.raises(GateError, match="version 1 is pending"):
        promotion.promote(steps.settings, steps.database, again.version)
    assert steps.champion() == row

    promotion.approve(steps.settings, again.version, "alice")
    assert promotion.promote(steps.settings, steps.database, again.version).sha256 == again.sha256
    assert steps.alias() == again.version


def test_a_wiped_mlflow_does_not_let_a_candidate_pass_that_was_compared_with_nothing(
    steps: Steps, migrated_mlflow: Path
) -> None:
    steps.promote(1)
    wipe(steps, migrated_mlflow)
    policies = {name: each for name, each in steps.report["policies"].items() if name != "champion"}
    version = steps.register(2, policies=policies).version
    promotion.approve(steps.settings, version, "alice")
    with pytest.raises(GateError, match=r"not worse than the champion \(inconclusive"):
        promotion.promote(steps.settings, steps.database, version)


def test_an_approval_in_the_pages_of_a_version_that_fails_its_gates(steps: Steps) -> None:
    row = steps.promote(1)
    failing = steps.register(2, golden_max_error=0.5).version
    steps.tag(failing, validation_status="approved", approved_by="mallory")
    with pytest.raises(GateError, match="serving equals training"):
        promotion.promote_approved(steps.settings, steps.database)
    assert promotion.promote_approved(steps.settings, steps.database) is None  # it is told once
    assert steps.champion() == row


def test_an_approval_by_nobody_promotes_nothing(steps: Steps) -> None:
    version = steps.register(1).version
    steps.tag(version, validation_status="approved")
    assert promotion.promote_approved(steps.settings, steps.database) is None
    with pytest.raises(GateError, match="approved by nobody"):
        promotion.promote(steps.settings, steps.database, version)
    assert steps.champion() is None


def test_an_approval_of_an_old_version_is_judged_against_the_champion_of_now(steps: Steps) -> None:
    old = steps.register(3).version  # compared with no champion
    row = steps.promote(1)
    steps.tag(old, validation_status="approved", approved_by="alice")
    with pytest.raises(GateError, match=r"not worse than the champion \(inconclusive"):
        promotion.promote_approved(steps.settings, steps.database)
    assert steps.champion() == row


def test_a_disk_that_is_full_when_artifacts_are_written(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    row = steps.promote(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        patch.setattr("shutil.copy2", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.*free some space"):
            steps.register(2)
    assert steps.champion() == row
    assert steps.promote(2).previous == row.version  # the night goes on where it was


def test_a_promoter_that_was_overtaken_leaves_the_alias_at_the_newest(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.promote(1)
    point, overtaken = promotion._point, []

    def late(client: Any, row: LedgerRow) -> None:
        if not overtaken:
            overtaken.append(row.version)
            steps.promote(2)  # ledger and alias, between our look at the ledger and our call
            client.set_registered_model_alias(tracking.MODEL, "champion", row.version)
        point(client, row)

    monkeypatch.setattr(promotion, "_point", late)
    assert promotion.reconcile_alias(steps.settings, steps.database) == "2"
    assert steps.alias() == "2"


def test_two_promoters_of_two_versions_leave_one_champion_and_its_alias(steps: Steps) -> None:
    steps.promote(1)
    waiting = [steps.register(number).version for number in (2, 3)]
    for version in waiting:
        promotion.approve(steps.settings, version, "alice")

    def promote(version: str) -> str:
        try:
            return promotion.promote(steps.settings, steps.database, version).version
        except (RegistryError, GateError) as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(promote, waiting))
    won = [version for version, answer in zip(waiting, said, strict=True) if answer == version]
    lost = [answer for answer in said if answer not in waiting]
    assert (len(won), len(lost)) == (1, 1), said
    assert "another promotion came first" in lost[0] or "not worse than the champion (inconclusive" in lost[0]
    row = steps.champion()
    assert row is not None
    assert row.version == won[0] == steps.alias()
