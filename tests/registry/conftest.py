"""A migrated MLflow database per test (migration costs seconds, a copy does not) and reports to judge."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ruvllm.registry.tracking import mlflow_session
from ruvllm.router.fake import write_random_bundle
from ruvllm.settings import Settings, load_settings


@pytest.fixture(scope="session")
def migrated_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database."""
    home = tmp_path_factory.mktemp("mlflow")
    with mlflow_session(load_settings({}, state_dir=home)) as client:
        client.search_registered_models()
    return home / "mlflow" / "mlflow.db"


@pytest.fixture
def registry_settings(settings: Settings, migrated_mlflow: Path) -> Settings:
    """Settings whose tracking database is migrated already."""
    (settings.state_dir / "mlflow").mkdir(parents=True)
    shutil.copy(migrated_mlflow, settings.state_dir / "mlflow" / "mlflow.db")
    return settings


@pytest.fixture
def report() -> dict[str, Any]:
    """A candidate that keeps every gate of every ladder."""
    return make_report()


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three different routers."""
    paths = tuple(tmp_path / "made" / f"router-{n}" for n in (1, 2, 3))
    for seed, path in enumerate(paths):
        write_random_bundle(path, version=path.name, seed=seed)
    return paths


BASELINES = ("always-small", "always-big", "random", "logistic-regression")


def _better() -> dict[str, float]:
    return {"mean": -0.2, "low": -0.22, "high": -0.18}


def make_report(**regrets: float) -> dict[str, Any]:
    """`regrets` are mean utility regrets by policy, with an interval of ±0.02."""
    means = {"fastgrnn": 0.1, "best-fixed": 0.3, "always-big": 0.4, "champion": 0.15, "oracle": 0.0, **regrets}
    return {
        "n_train": 300,
        "n_test": 200,
        "policies": {name: _policy(mean) for name, mean in means.items()},
        "seen": {"accuracy_tier": 0.97, "accuracy_pair": 0.9, "n": 300},
        "calibration": {"ece": 0.03, "n": 200},
        "forgetting": {"rate": 0.01, "n_nights": 1},
        "paired": {name: {"utility": _better()} for name in BASELINES},
        "per_domain": {"people": {"n": 90, "utility_regret": 0.1}, "land": {"n": 110, "utility_regret": 0.12}},
        "off_policy": {"n": 400, "candidate": _better(), "champion": {"mean": -0.3, "low": -0.32, "high": -0.28}},
        "decision_us": {"p50": 20.0, "p99": 30.0, "n": 2000},
        "golden_max_error": 2e-7,
        "warnings": [],
    }


def _policy(regret: float) -> dict[str, Any]:
    interval = {"mean": regret, "low": regret - 0.02, "high": regret + 0.02}
    flat = {"mean": 0.01, "low": 0.0, "high": 0.02}
    return {
        "utility": 3.0 - regret, "quality": 3.5, "latency_s": 0.5, "cost": 0.2 if regret < 0.2 else 0.8,
        "regret": {"utility": interval, "quality": flat, "latency_s": flat, "cost": flat},
        "accuracy_tier": 0.9, "accuracy_pair": 0.8,
    }  # fmt: skip
