"""The command: it teaches, it complains in one line, and it speaks JSON to scripts."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ruvllm import __version__
from ruvllm.cli import app

VERBS = [
    "cycle", "report", "ask",
    "serve", "up", "down", "status", "ingest", "doctor", "version", "models list", "models pull",
    "memory search", "registry approve", "registry rollback", "db psql",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("RUVLLM_ACCEPT_GEMMA_TERMS", raising=False)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run, verb):
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_version_as_json(run):
    assert json.loads(run("version", "--json").output) == {"version": __version__}


def test_a_wrong_setting_is_one_line_and_exit_1(run, monkeypatch):
    monkeypatch.setenv("RUVLLM_SEARCH_K", "many")
    result = run("models", "list")
    assert result.exit_code == 1
    assert "RUVLLM_SEARCH_K" in result.output
    assert "Traceback" not in result.output


def test_models_list_says_why_this_ladder_and_that_gemma_waits_for_its_terms(run):
    result = run("models", "list")
    assert result.exit_code == 0
    assert "RUVLLM_ACCEPT_GEMMA_TERMS" in result.output
    names = [row["tier"] for row in json.loads(run("models", "list", "--json").output)]
    assert {"smollm2-135m", "gemma3-270m", "lfm2-350m", "lfm2-2.6b"} <= set(names)


def test_an_unknown_tier_is_named_with_the_choices(run):
    result = run("models", "pull", "70b")
    assert result.exit_code == 1
    assert "70b" in result.output
    assert "lfm2-350m" in result.output


def test_terms_that_were_accepted_once_stay_accepted_for_this_state(tmp_path, monkeypatch):
    import os

    from ruvllm.commands.verbs import settings_here

    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_ACCEPT_GEMMA_TERMS", "")
    assert not settings_here().accept_gemma_terms
    assert settings_here(accept_gemma_terms=True).accept_gemma_terms
    monkeypatch.setenv("RUVLLM_ACCEPT_GEMMA_TERMS", "")
    assert settings_here().accept_gemma_terms
    assert os.environ["RUVLLM_ACCEPT_GEMMA_TERMS"] == "true"
