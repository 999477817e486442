"""`ruvllm router explain` on stored questions: the right one, its features' reasons, and one line where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.commands.router import app
from ruvllm.database.pool import Database
from ruvllm.router.bundle import read_bundle
from ruvllm.router.explain import explain
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT, N_FEATURES
from ruvllm.router.runtime import RouterRuntime

ROW = {
    "cycle_id": None, "session_id": None, "turn": 1, "history": "[]", "answer": "yes", "gold": None, "domain": "",
    "tier": "350m", "context_bin": 256, "temperature": 0.0, "top_p": 1.0, "decided_by": "champion", "confidence": None,
    "propensity": 1.0, "router_version": "3", "ladder": "test", "layout_hash": LAYOUT.hash, "retrieved": [],
    "similarities": [], "used": [], "writer": "", "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1,
    "cost": 0.0, "stage_ms": "{}", "total_ms": 1.0, "degraded": [],
}  # fmt: skip

Door = Callable[..., str]


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(LAYOUT.low, LAYOUT.high, N_FEATURES).astype(np.float32)


@pytest.fixture
def place(database: Database, tmp_path: Path) -> SimpleNamespace:
    write_random_bundle(tmp_path / "bundle", seed=3)
    runtime = RouterRuntime.load(tmp_path / "bundle")
    store = Interactions(database)
    for seed, more in enumerate(({}, {}, {"layout_hash": "0" * 64})):
        row = {**ROW, "request_id": f"r{seed}", "question": f"question {seed}?", "features": features(seed).tolist()}
        store.record(Interaction({**row, **more}))
    return SimpleNamespace(database=database, champion=lambda: runtime)


@pytest.fixture
def door(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Door:
    @contextmanager
    def opened(settings: object) -> Iterator[SimpleNamespace]:
        yield place

    monkeypatch.setattr("ruvllm.workplace.open_workplace", opened)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["explain", *arguments])
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stdout if "--json" in arguments else result.output

    return run


def test_json_has_the_reasons_of_the_question_that_was_named(door: Door, tmp_path: Path) -> None:
    found = json.loads(door("r1", "--json"))
    wanted = explain(read_bundle(tmp_path / "bundle"), features(1))
    assert (found["asked"]["question"], found["tier"]) == ("question 1?", wanted.tier)
    assert found["utility"] == pytest.approx(wanted.utility)
    assert [part["place"] for part in found["parts"]] == [part.place for part in wanted.parts]


def test_the_table_says_what_was_done_then_and_what_each_tier_would_bring(
    door: Door, place: SimpleNamespace, tmp_path: Path
) -> None:
    shown, wanted = door("r0", "--most", "3"), explain(read_bundle(tmp_path / "bundle"), features(0))
    assert "question 0?" in shown
    assert "350m with 256 tokens, decided by champion" in shown
    for name, utility in zip(place.champion().tiers, wanted.utility, strict=True):
        assert (f"{name} {utility:+.3f}" in shown) == bool(name)  # a tier that the ladder lacks is not listed
    rows = [line for line in shown.splitlines() if line.startswith("| ") and "all of" not in line][1:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {part.place}" for part in wanted.parts[:3]]


def test_without_an_id_it_is_the_last_question_and_another_layout_is_refused(door: Door) -> None:
    assert "question r2: its features are of layout" in door(code=1)


def test_several_of_the_last_questions_are_explained_the_newest_first(door: Door, place: SimpleNamespace) -> None:
    with place.database.transaction() as connection:
        connection.execute("DELETE FROM serving.outbox")
        connection.execute("DELETE FROM serving.interactions WHERE request_id = 'r2'")
    found = json.loads(door("--last", "5", "--json"))
    assert [each["asked"]["request_id"] for each in found] == ["r1", "r0"]
    shown = door("--last", "5")
    assert shown.index("question 1?") < shown.index("question 0?")


def test_an_unknown_question_and_a_missing_router_are_one_line(door: Door, place: SimpleNamespace) -> None:
    assert "no stored question nowhere" in door("nowhere", code=1)
    place.champion = lambda: None
    assert "no promoted router" in door("r0", code=1)
