"""MLflow with passwords: trainer, promoter and reviewer may each do their own part, and the whole way works so."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from ruvllm.answering.answer import Ask
from ruvllm.database.dsn import sqlalchemy_url
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.pool import Database
from ruvllm.errors import RegistryError, SettingsError
from ruvllm.registry import promotion
from ruvllm.registry.fetch import sync_champion
from ruvllm.registry.identities import (
    PROMOTER,
    REVIEWER,
    TRAINER,
    Identity,
    identity,
    make_identities,
    read_identities,
)
from ruvllm.registry.package import register_candidate
from ruvllm.registry.pages import attach
from ruvllm.registry.traces import EXPERIMENT as GATEWAY
from ruvllm.registry.traces import MlflowSpans
from ruvllm.registry.tracking import EXPERIMENT, MODEL, acting, mlflow_session
from ruvllm.router.store import BundleStore
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.tracing import open_tracings
from ruvllm.settings import PROJECT_ROOT, Settings
from tests.ports import free_port

ADMIN = Identity("admin", "an administrator's password")
BOUND_S = 120.0  # for the server's start, which is waited for


@dataclass(frozen=True)
class Guarded:
    settings: Settings
    identities: Path
    url: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[str]:
    """A real MLflow server with the settings of mlflow/basic_auth.ini, all of it in one Postgres, as in compose."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic-auth app needs Flask-WTF (mlflow[auth])")
    home, port = tmp_path_factory.mktemp("guarded"), free_port()
    text = (PROJECT_ROOT / "mlflow" / "basic_auth.ini").read_text()
    backend = sqlalchemy_url(postgres.create_database("mlflow"))
    filled = text.replace("sqlite:///basic_auth.db", backend.replace("%", "%%"))  # the file interpolates
    (home / "auth.ini").write_text(filled.replace("admin_password =\n", f"admin_password = {ADMIN.password}\n"))
    environment = {
        **os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "s" * 32,
        "MLFLOW_BACKEND_STORE_URI": backend, "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port",
             str(port), "--workers", "1", "--serve-artifacts", "--artifacts-destination", str(home / "artifacts")],
            env=environment, cwd=home, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + BOUND_S
    try:
        while not _answers(url):
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < ends, (home / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def guarded(server: str, settings: Settings, tmp_path: Path) -> Guarded:
    file = tmp_path / "identities.toml"
    make_identities(replace(settings, mlflow_tracking_uri=server), ADMIN, file)
    return Guarded(replace(settings, mlflow_tracking_uri=server, mlflow_identities_file=str(file)), file, server)


def test_each_identity_may_do_its_part_and_no_other(guarded: Guarded) -> None:
    again = guarded.identities.read_bytes()
    make_identities(replace(guarded.settings, mlflow_identities_file=""), ADMIN, guarded.identities)
    assert guarded.identities.read_bytes() == again  # a second time changes no password
    assert stat.S_IMODE(guarded.identities.stat().st_mode) == 0o600
    people = read_identities(guarded.identities)
    with mlflow_session(guarded.settings) as client:
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id

        def allowed(role: str, work: Callable[[], Any]) -> bool:
            from mlflow.exceptions import MlflowException

            with acting(people[role]):
                try:
                    work()
                except MlflowException as error:
                    if error.error_code != "PERMISSION_DENIED":
                        raise
                    return False
            return True

        with acting(people[TRAINER]):
            run = client.create_run(experiment)
        with acting(people[PROMOTER]):
            version = client.create_model_version(MODEL, run.info.artifact_uri, run_id=run.info.run_id).version
        parts: dict[str, Callable[[], Any]] = {
            "make a run": lambda: client.create_run(experiment),
            "log a metric": lambda: client.log_metric(run.info.run_id, "m", 1.0),
            "register": lambda: client.create_model_version(MODEL, run.info.artifact_uri, run_id=run.info.run_id),
            "tag": lambda: client.set_model_version_tag(MODEL, version, "validation_status", "approved"),
            "move the alias": lambda: client.set_registered_model_alias(MODEL, "champion", version),
            "delete": lambda: client.delete_model_version(MODEL, version),
        }
        may = {role: {name for name, work in parts.items() if allowed(role, work)} for role in people}
    assert may[TRAINER] == {"make a run", "log a metric"}
    assert may[PROMOTER] == {"make a run", "log a metric", "register", "tag", "move the alias"}
    assert may[REVIEWER] == {"register", "tag", "move the alias"}  # MLflow has one right for all three


def test_nobody_without_a_password(guarded: Guarded) -> None:
    for headers in ({}, {"Authorization": "Basic YWRtaW46YWRtaW4="}):
        reply = httpx.get(f"{guarded.url}/api/2.0/mlflow/registered-models/get?name={MODEL}", headers=headers)
        assert reply.status_code == 401
    nobody = replace(guarded.settings, mlflow_identities_file="")
    with pytest.raises(RegistryError, match=r"401|not authenticated"):
        promotion.approve(nobody, "1", "mallory")


def test_a_candidate_goes_the_whole_way_each_step_by_its_identity(
    guarded: Guarded, database: Database, bundles: tuple[Path, Path, Path], report: dict[str, Any], tmp_path: Path
) -> None:
    registered = register_candidate(guarded.settings, database, bundles[0], report, "night-1", {"rows": 10})
    attach(guarded.settings, registered.run_id, "night.html", "<p>the night</p>")
    promotion.approve(guarded.settings, registered.version, "alice", "looks good")
    row = promotion.promote(guarded.settings, database, registered.version)
    assert (row.version, row.approved_by) == (registered.version, "alice")
    current = sync_champion(database, BundleStore(tmp_path / "gateway"), guarded.settings)  # as a gateway elsewhere
    assert current is not None
    assert current.sha256 == registered.sha256
    assert "@" not in row.artifact_uri  # no password is written down
    secrets = [person.password for person in read_identities(guarded.identities).values()]
    with mlflow_session(guarded.settings) as client:
        run = client.get_run(registered.run_id)
        version = client.get_model_version(MODEL, registered.version)
    shown = f"{run.data.params} {run.data.tags} {version.tags} {version.description}"
    assert not any(secret in shown for secret in secrets)
    assert version.tags["report"] == f"runs:/{registered.run_id}/night.html"


def test_answers_are_traced_as_the_trainer_without_a_text(guarded: Guarded) -> None:
    (tracing,) = open_tracings(replace(guarded.settings, trace_share=1.0))
    answer = FakeAnswerer(router_version="night-7").stream(Ask("A secret?", request_id="r1"))
    list(answer)
    tracing.answered(answer.answer, 0.25)
    tracing.close()
    people = read_identities(guarded.identities)
    with mlflow_session(guarded.settings) as client, acting(people[TRAINER]):
        experiment = client.get_experiment_by_name(GATEWAY)
        [trace] = client.search_traces(locations=[experiment.experiment_id])
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"answer", *answer.answer.stage_ms}
    assert spans["answer"].attributes["ruvllm.request_id"] == "r1"
    assert spans["answer"].end_time_ns - spans["answer"].start_time_ns == pytest.approx(0.25e9, rel=1e-6)
    assert spans["embed"].parent_id == spans["answer"].span_id
    assert "secret" not in str(trace.to_dict())
    nobody = MlflowSpans(replace(guarded.settings, mlflow_identities_file="", trace_share=1.0))
    assert nobody.export([]) is SpanExportResult.FAILURE


def test_a_role_that_is_not_in_the_file_is_named(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "identities.toml"
    file.write_text('[reviewer]\nusername = "r"\npassword = "p"\n')
    here = replace(settings, mlflow_identities_file=str(file))
    assert identity(here, REVIEWER) == Identity("r", "p")
    with pytest.raises(SettingsError, match=r"holds reviewer, want \[promoter\]"):
        identity(here, PROMOTER)
    file.write_text("[reviewer]\nname = 1\n")
    with pytest.raises(SettingsError, match="want a table a role"):
        identity(here, REVIEWER)
    assert identity(settings, PROMOTER) is None
