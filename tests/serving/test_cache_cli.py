"""`ruvllm cache`: a calibration is made from the corpus, kept for its encoder, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ruvllm.commands import cache
from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.serving.cache import FollowedCache
from ruvllm.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    return lambda *arguments: CliRunner().invoke(cache.app, list(arguments))


def test_a_calibration_is_kept_shown_and_followed_by_the_gateway(
    run: Run, database: Database, settings: Settings
) -> None:
    assert json.loads(run("show", "--json").stdout) is None
    assert "ruvllm cache calibrate" in " ".join(run("show").output.split())
    made = run("calibrate", "--questions", "200", "--target", "0.5", "--json")
    assert made.exit_code == 0, made.output
    calibration = json.loads(made.stdout)
    assert (calibration["questions"], calibration["target"]) == (200, 0.5)
    assert 0 < calibration["hits"] <= 200
    shown = json.loads(run("show", "--json").stdout)  # kept in single precision
    assert shown == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in calibration.items()}
    assert f"{calibration['hits']} hits among 200 questions" in " ".join(run("show").output.split())
    followed = FollowedCache(database, open_embedder(settings).id)
    followed.refresh_if_old()
    assert followed.threshold == shown["threshold"]


def test_too_few_questions_for_the_promise_are_refused_and_the_cache_stays_off(run: Run) -> None:
    refused = run("calibrate", "--questions", "20", "--target", "0.001")
    assert refused.exit_code == 1
    assert "lookups found an answer, want 2995 or more" in " ".join(refused.output.split())
    assert "the cache never hits" in " ".join(run("show").output.split())


@pytest.mark.parametrize("option", [("--target", "0"), ("--target", "1.5"), ("--confidence", "1")])
def test_a_share_that_is_none_is_refused(run: Run, option: tuple[str, str]) -> None:
    refused = run("calibrate", "--questions", "20", *option)
    assert refused.exit_code == 1
    assert option[0].removeprefix("--") in refused.output
