"""A real night on servers that stand apart, with a handful of questions and the packaged models.

Postgres, Prefect and MLflow are processes of their own, the latter two on Postgres, as in infra/compose; flows and
gateway are what `make up` starts beside them.
"""

from __future__ import annotations

import json
import time

import httpx
import pytest
from prefect.client.orchestration import get_client

from ruvllm import services
from ruvllm.database.dsn import sqlalchemy_url
from ruvllm.learning import cycle as cycles
from ruvllm.registry import ledger
from ruvllm.registry.promotion import CHAMPION
from ruvllm.registry.tracking import MODEL, mlflow_session
from ruvllm.settings import load_settings

QUESTIONS = 3
SAMPLE = 15  # a third of them is held out
BUDGET_S = 600.0  # a bound, not a wait


@pytest.fixture
def mlflow_elsewhere(postgres, tmp_path):
    """The URL of an MLflow server whose database is Postgres and whose artifacts only it can reach."""
    store = sqlalchemy_url(postgres.create_database("mlflow_elsewhere"))
    host = load_settings({}, state_dir=tmp_path / "mlflow-host", mlflow_tracking_uri=store)
    services.start_service(host, "mlflow")
    yield f"http://127.0.0.1:{services.ports(host).mlflow}"
    services.stop_service(host, "mlflow")


@pytest.fixture
def night_environment(prefect_client, mlflow_elsewhere, empty_database_url, tmp_path, monkeypatch):
    """The environment that this process and those of `up` read their settings from."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_elsewhere)
    monkeypatch.setenv("RUVLLM_PREFECT_API_URL", prefect_client)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_ACCEPT_GEMMA_TERMS", "true")
    monkeypatch.setenv("RUVLLM_LADDER", "packaged")
    monkeypatch.setenv("RUVLLM_THREADS", "1")
    monkeypatch.setenv("RUVLLM_SEARCH_K", "2")  # short contexts: the models are real and slow
    monkeypatch.setenv("RUVLLM_MAX_TOKENS", "8")
    return load_settings()


@pytest.fixture
def up(night_environment):
    """`make up` beside the servers that stand apart; its deployments are taken back from the Prefect server."""
    services.up(night_environment)
    yield night_environment
    services.down(night_environment)
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)


@pytest.fixture
def small_corpus(monkeypatch):
    """The passages that the first night's questions are about, and no others: embedding all takes a minute."""
    from ruvllm.corpus import corpus_nodes
    from ruvllm.corpus.questions import day, oracle_sample

    needed = {key for q in (*day(1, QUESTIONS), *oracle_sample(1, SAMPLE)) for key in q.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    monkeypatch.setattr("ruvllm.corpus.corpus_nodes", lambda: nodes)


def test_a_night_that_was_stopped_is_taken_up_by_the_flows_of_make_up(night_environment, small_corpus, request):
    settings = night_environment
    from flows.collect import collect
    from ruvllm.nightly import night
    from ruvllm.workplace import open_workplace

    cycle_id = night.begin(settings)
    collect(cycle_id, QUESTIONS, BUDGET_S, SAMPLE)  # and here the process is killed
    with open_workplace(settings) as place:
        asked = _count(place, "serving.interactions WHERE cycle_id IS NOT NULL")
        runs = _count(place, "learning.oracle_runs")
    request.getfixturevalue("up")
    assert {each.name for each in services.status(settings) if each.note.startswith("your own")} == {
        "postgres", "prefect", "mlflow",
    }  # fmt: skip
    _run_deployed(settings, questions=QUESTIONS, budget_s=BUDGET_S, approve_as="tester", sample=SAMPLE)

    result = night.results(settings)
    steps = result["steps"]
    assert result["cycle_id"] == cycle_id
    assert steps["attend"]["lessons"]["oracle train"] > 0, steps["attend"]
    assert (steps["attend"]["part"], steps["attend"]["held"]) == (
        "none",
        steps["evaluate"]["n_test"],
    )  # too few to judge
    assert steps["promote"]["promoted"], steps["promote"]
    assert steps["promote"]["approved_by"] == "tester"
    assert steps["consolidate"]["consolidated"]
    assert steps["serve"]["served"]
    with open_workplace(settings) as place:
        assert (
            _count(place, "serving.interactions WHERE cycle_id IS NOT NULL") == asked == QUESTIONS
        )  # nothing was asked twice
        assert _count(place, "learning.oracle_runs") == runs
        champion = place.champion()
        with place.database.transaction() as connection:
            row = ledger.current(connection)
        assert cycles.open_cycle(place.database).night == 2
    assert champion is not None
    assert champion.version == steps["serve"]["router_version"]
    assert row.sha256 == champion.sha256
    assert row.cycle_id == cycle_id
    ready = httpx.get(f"{services.urls(settings).gateway}/readyz", trust_env=False).json()
    assert ready["router_version"] == champion.version  # the gateway that went on running
    with mlflow_session(settings) as client:
        assert str(client.get_registered_model(MODEL).aliases[CHAMPION]) == row.version
    assert not (settings.state_dir / "mlflow" / "mlflow.db").exists()
    json.dumps(result)  # what a script reads


def _run_deployed(settings, **parameters):
    """A run of the deployment, made as a form makes it, and done by the process that serves the flows."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("nightly/nightly")
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        ends = time.monotonic() + BUDGET_S
        while not (run := client.read_flow_run(run.id)).state.is_final():
            assert time.monotonic() < ends, f"still {run.state}"
            time.sleep(0.5)
    log = (settings.run_dir / "flows.log").read_text()
    assert run.state.is_completed(), f"{run.state}\n{log[-3000:]}"


def _count(place, table):
    with place.database.transaction() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # our own names
