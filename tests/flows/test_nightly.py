"""A real night on a real Prefect server, with a handful of questions, the packaged models and a real registry."""

from __future__ import annotations

import json

import pytest

from ruvllm.learning import cycle as cycles
from ruvllm.registry import ledger
from ruvllm.settings import load_settings

QUESTIONS = 3
SAMPLE = 15  # a third of them is held out
BUDGET_S = 600.0  # a bound, not a wait


@pytest.fixture
def night_environment(prefect_client, empty_database_url, tmp_path, monkeypatch):
    """The environment that a night reads its settings from."""
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_ACCEPT_GEMMA_TERMS", "true")
    monkeypatch.setenv("RUVLLM_LADDER", "packaged")
    monkeypatch.setenv("RUVLLM_THREADS", "1")
    monkeypatch.setenv("RUVLLM_SEARCH_K", "2")  # short contexts: the models are real and slow
    monkeypatch.setenv("RUVLLM_MAX_TOKENS", "8")
    return load_settings()


@pytest.fixture
def small_corpus(monkeypatch):
    """The passages that the first night's questions are about, and no others: embedding all takes a minute."""
    from ruvllm.corpus import corpus_nodes
    from ruvllm.corpus.questions import day, oracle_sample

    needed = {key for q in (*day(1, QUESTIONS), *oracle_sample(1, SAMPLE)) for key in q.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    monkeypatch.setattr("ruvllm.corpus.corpus_nodes", lambda: nodes)


def test_a_night_that_was_stopped_goes_on_and_its_champion_answers_over_http(night_environment, small_corpus):
    settings = night_environment
    from flows.collect import collect
    from flows.nightly import nightly
    from ruvllm.nightly import night
    from ruvllm.workplace import open_workplace

    cycle_id = night.begin(settings)
    collect(cycle_id, QUESTIONS, BUDGET_S, SAMPLE)  # and here the process is killed
    with open_workplace(settings) as place:
        asked = _count(place, "serving.interactions WHERE cycle_id IS NOT NULL")
        runs = _count(place, "learning.oracle_runs")
    result = nightly(questions=QUESTIONS, budget_s=BUDGET_S, approve_as="tester", sample=SAMPLE)

    steps = result["steps"]
    assert result["cycle_id"] == cycle_id
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
    json.dumps(result)  # what a script reads


def _count(place, table):
    with place.database.transaction() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # our own names
