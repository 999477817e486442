"""A candidate's way from registration to champion and back: real MLflow on sqlite, real Postgres, real bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, GateError, InputError, RegistryError
from ruvllm.nightly.machine import read_samples, sampled
from ruvllm.registry import ledger, promotion
from ruvllm.registry.ledger import LedgerRow
from ruvllm.registry.package import Registered, register_candidate
from ruvllm.registry.tracking import MODEL, find_version, mlflow_session
from ruvllm.router.fake import write_random_bundle
from ruvllm.settings import Settings

Register = Callable[..., Registered]


@pytest.fixture
def register(
    registry_settings: Settings, database: Database, bundles: tuple[Path, Path, Path], report: dict[str, Any]
) -> Register:
    def register(number: int, **changes: Any) -> Registered:
        return register_candidate(
            registry_settings,
            database,
            bundles[number - 1],
            {**report, **changes},
            f"night-{number}",
            {"rows": 10, "attention.gain": 0.5},
        )

    return register


@pytest.fixture
def promoted(register: Register, registry_settings: Settings, database: Database) -> Callable[..., LedgerRow]:
    """Registers, approves and promotes router 1, 2 or 3."""

    def promoted(number: int, **changes: Any) -> LedgerRow:
        version = register(number, **changes).version
        promotion.approve(registry_settings, version, "alice", "looks good")
        return promotion.promote(registry_settings, database, version)

    return promoted


def champion_alias(settings: Settings) -> str | None:
    with mlflow_session(settings) as client:
        alias = client.get_registered_model(MODEL).aliases.get("champion")
        return str(alias) if alias else None


def current(database: Database) -> LedgerRow | None:
    with database.transaction() as connection:
        return ledger.current(connection)


def artifact(registered: Registered, name: str) -> Path:
    return Path(urlsplit(registered.artifact_uri).path) / name


def test_a_candidate_is_registered_pending_with_its_gate_table(register: Register, registry_settings: Settings) -> None:
    registered = register(1)
    with mlflow_session(registry_settings) as client:
        version = find_version(client, registered.version)
        run = client.get_run(registered.run_id)
        candidate = client.get_model_version_by_alias(MODEL, "candidate")
    assert version.tags["validation_status"] == "pending"
    assert version.tags["bundle_sha256"] == registered.sha256
    assert "| not worse than the best fixed choice | -0.2 |" in version.description
    assert f"ruvllm registry approve {registered.version} --by" in version.description
    assert "ruvllm registry rollback --by NAME" in version.description
    assert "| always-big | 2.600 |" in version.description  # beside the other policies
    assert len(version.description) <= 5000  # what MLflow's column holds, on Postgres too
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == [run.data.params["snapshot"][:36]]
    assert str(candidate.version) == registered.version
    assert (run.info.status, run.data.params["rows"]) == ("FINISHED", "10")
    assert run.data.metrics["policies/fastgrnn/regret/utility/mean"] == 0.1
    assert run.data.metrics["attention.gain"] == 0.5  # a figure, to be compared over nights


def test_what_the_machine_did_in_training_is_on_the_run(
    registry_settings: Settings,
    database: Database,
    bundles: tuple[Path, Path, Path],
    report: dict[str, Any],
    tmp_path: Path,
) -> None:
    with sampled(tmp_path / "system.json", every_s=0.001):
        sum(range(1_000_000))
    samples = read_samples(tmp_path / "system.json")
    run_id = register_candidate(registry_settings, database, bundles[0], report, "night-1", machine=samples).run_id
    with mlflow_session(registry_settings) as client:
        kept = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert 1 <= len(kept) <= 200
    assert kept[0].timestamp == samples[0].timestamp_ms
    assert all(0 <= each.value <= 100 for each in kept)


def test_a_resumed_night_registers_nothing_twice(register: Register, registry_settings: Settings) -> None:
    first = register(1)
    assert register(1) == first
    with mlflow_session(registry_settings) as client:
        assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1


def test_the_logged_model_decides_without_pickle(register: Register, registry_settings: Settings) -> None:
    registered = register(1)
    with mlflow_session(registry_settings):
        import mlflow

        model = mlflow.pyfunc.load_model(f"models:/{MODEL}/{registered.version}")
        decisions = model.predict(np.zeros((3, 128), dtype=np.float32))
    assert [list(decision) for decision in decisions] == 3 * [
        ["tier", "context_bin", "temperature", "top_p", "confidence"]
    ]
    assert {decision["tier"] for decision in decisions} <= {"smollm2-135m", "gemma3-270m"}
    stored = {path.suffix for path in (registry_settings.state_dir / "mlflow" / "artifacts").rglob("*")}
    assert not stored & {".pkl", ".pickle", ".pt"}


def test_from_pending_to_champion_to_rollback(
    register: Register, promoted: Callable[..., LedgerRow], registry_settings: Settings, database: Database
) -> None:
    first = register(1)
    with pytest.raises(GateError, match=r"version 1 is pending.*ruvllm registry approve 1"):
        promotion.promote(registry_settings, database, first.version)
    assert current(database) is None

    row = promoted(1)
    assert (row.version, row.previous, row.approved_by, row.sha256) == ("1", None, "alice", first.sha256)
    assert {gate["outcome"] for gate in row.gates} >= {"pass"}
    assert champion_alias(registry_settings) == "1"
    assert promotion.promote(registry_settings, database, "1") == row

    assert promoted(2).previous == "1"
    assert champion_alias(registry_settings) == "2"

    back = promotion.rollback(registry_settings, database, "bob", "slower")
    assert (back.action, back.version, back.previous, back.sha256) == ("rollback", "1", "2", first.sha256)
    assert champion_alias(registry_settings) == "1"
    with pytest.raises(RegistryError, match=r"version 2 was rolled back by bob \(slower\)"):
        promotion.promote(registry_settings, database, "2")
    assert promotion.promote_approved(registry_settings, database) is None
    with pytest.raises(RegistryError, match="no earlier champion"):
        promotion.rollback(registry_settings, database, "bob", "again")


def test_gates_are_judged_again_at_promotion_against_the_champion_of_then(
    register: Register, promoted: Callable[..., LedgerRow], registry_settings: Settings, database: Database
) -> None:
    early = register(3)  # compared with nothing, for there was no champion
    promoted(1)
    promotion.approve(registry_settings, early.version, "alice")
    with pytest.raises(GateError, match=r"not worse than the champion \(inconclusive"):
        promotion.promote(registry_settings, database, early.version)
    assert current(database).version != early.version  # type: ignore[union-attr]


def test_a_champion_of_another_ladder_is_not_compared_with(
    promoted: Callable[..., LedgerRow],
    registry_settings: Settings,
    database: Database,
    tmp_path: Path,
    report: dict[str, Any],
) -> None:
    promoted(1)
    write_random_bundle(tmp_path / "lfm2", version="lfm2", ladder="lfm2", tiers=("350m", "700m", "", ""))
    del report["policies"]["champion"]
    version = register_candidate(registry_settings, database, tmp_path / "lfm2", report, "night-2").version
    promotion.approve(registry_settings, version, "alice")
    assert promotion.promote(registry_settings, database, version).previous == "1"


def test_a_failed_gate_stops_an_approved_version_until_it_is_approved_again(
    register: Register, registry_settings: Settings, database: Database
) -> None:
    version = register(1, golden_max_error=0.5).version
    promotion.approve(registry_settings, version, "alice")
    with pytest.raises(GateError, match="serving equals training"):
        promotion.promote_approved(registry_settings, database)
    assert promotion.promote_approved(registry_settings, database) is None
    assert current(database) is None


def test_rejected_means_not_promoted(register: Register, registry_settings: Settings, database: Database) -> None:
    version = register(1).version
    promotion.reject(registry_settings, version, "alice", "no")
    with pytest.raises(GateError, match="is rejected"):
        promotion.promote(registry_settings, database, version)


@pytest.mark.parametrize("name", ["router.safetensors", "manifest.json", "../report.json"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_an_altered_or_missing_artifact_is_refused(
    register: Register, registry_settings: Settings, database: Database, name: str, damage: str
) -> None:
    registered = register(1)
    promotion.approve(registry_settings, registered.version, "alice")
    path = artifact(registered, name)
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=path.name):
        promotion.promote(registry_settings, database, registered.version)
    assert current(database) is None


def test_concurrent_promotions_of_one_version_make_one_row(
    register: Register, registry_settings: Settings, database: Database
) -> None:
    version = register(1).version
    promotion.approve(registry_settings, version, "alice")

    def promote(_: int) -> str:
        try:
            return promotion.promote(registry_settings, database, version).version
        except RegistryError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(promote, range(4)))
    with database.transaction() as connection:
        assert len(ledger.history(connection)) == 1
    assert version in results
    assert all(result == version or "another promotion came first" in result for result in results)


def test_the_alias_follows_the_ledger_when_someone_moved_it(
    register: Register, promoted: Callable[..., LedgerRow], registry_settings: Settings, database: Database
) -> None:
    promoted(1)
    register(2)
    with mlflow_session(registry_settings) as client:
        client.set_registered_model_alias(MODEL, "champion", "2")
    assert promotion.reconcile_alias(registry_settings, database) == "1"
    assert champion_alias(registry_settings) == "1"


def test_a_rollback_works_while_mlflow_is_away(
    promoted: Callable[..., LedgerRow], registry_settings: Settings, database: Database
) -> None:
    promoted(1)
    promoted(2)
    away = replace(registry_settings, mlflow_tracking_uri="http://127.0.0.1:9")
    assert promotion.rollback(away, database, "bob", "MLflow burns").version == "1"
    assert promotion.reconcile_alias(registry_settings, database) == "1"


def test_approvals_need_a_name_and_a_version_that_exists(register: Register, registry_settings: Settings) -> None:
    register(1)
    with pytest.raises(InputError, match="reviewer"):
        promotion.approve(registry_settings, "1", " ")
    with pytest.raises(RegistryError, match="version '9': not in MLflow; want one of 1"):
        promotion.approve(registry_settings, "9", "alice")


def test_a_bundle_that_is_not_whole_is_not_registered(
    register: Register, bundles: tuple[Path, Path, Path], registry_settings: Settings
) -> None:
    (bundles[0] / "golden.safetensors").unlink()
    with pytest.raises(BundleError, match=r"golden\.safetensors"):
        register(1)
    shutil.rmtree(bundles[0])
