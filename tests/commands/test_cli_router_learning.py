"""`ruvllm router train|evaluate|ablate|bench`: training on small files; one line where something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from ruvllm.commands.router import app
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import PROJECT_ROOT

Door = Callable[..., str]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Door:
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stdout if "--json" in arguments else result.output

    return run


@pytest.fixture
def params(tmp_path: Path) -> str:
    """params.yaml with a short training."""
    document = yaml.safe_load((PROJECT_ROOT / "params.yaml").read_text())
    document["training"] |= {"steps": 20, "folds": 2}
    document["evaluation"] |= {"resamples": 50}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_what_is_trained_is_a_bundle_and_can_be_evaluated(door: Door, params: str, tmp_path: Path) -> None:
    write_fake_snapshot(tmp_path / "state" / "cycles" / "night-1" / "snapshot.npz", fake_arrays(24, 9))
    bundle = tmp_path / "bundle"
    trained = json.loads(door("train", "--out", str(bundle), "--params", params, "--version", "mine", "--json"))
    assert RouterRuntime.load(bundle, trained["sha256"]).version == "mine"
    assert trained["n_train"] == 24
    report = json.loads(door("evaluate", str(bundle), "--params", params, "--champion", str(bundle), "--json"))
    assert report["n_test"] == 9
    assert report["paired"]["champion"]["utility"]["mean"] == 0  # it is itself
    shown = door("evaluate", str(bundle), "--params", params)
    assert "| fastgrnn |" in shown
    assert "Held out: 9 questions" in shown


def test_ablate_names_every_part_and_what_was_absent(door: Door, params: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot.npz"
    write_fake_snapshot(snapshot, fake_arrays(24, 9))
    flags = ("--snapshot", str(snapshot), "--params", params, "--seeds", "1")
    found = json.loads(door("ablate", *flags, "--json"))
    assert found["tested"] == 9
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["without EWC"]["absent"] == "there was no EWC state, as in a first night"
    assert rows["without the quality head: the model head decides"]["difference"]["low"] <= 0
    assert {each["way"] for each in found["exploring"]} >= {"thompson", "epsilon-greedy"}


def test_without_a_night_the_way_out_is_named(door: Door, tmp_path: Path) -> None:
    said = door("train", "--out", str(tmp_path / "bundle"), code=1)
    assert "run `ruvllm cycle`, or give --snapshot FILE" in " ".join(said.split())


def outcomes(folder: Path, n: int = 120) -> Path:
    """Whoever asks a long thing needs the dear model; the cheap one answers the rest."""
    rng = np.random.default_rng(0)
    words = np.array(["apple", "river", "stone", "cloud", "tiger", "music", "train", "field", "north", "salt"])
    rows = []
    for number in range(n):
        hard = bool(number % 2)
        query = " ".join(["prove that" if hard else "what is", *rng.choice(words, 5), str(number)])
        scores = [0.1, 0.9] if hard else [0.9, 0.9]
        rows.append({"id": str(number), "query": query, "scores": scores, "cost_usd": [1.0, 10.0]})
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.meta.json").write_text(json.dumps({"models": ["cheap", "dear"]}))
    return path


def test_bench_puts_the_router_above_every_fixed_tier_where_words_tell(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = EmbeddingAdapter(HashingEncoder(64))
    monkeypatch.setattr("ruvllm.embedding.open_embedder", lambda settings: encoder)
    found = json.loads(door("bench", str(outcomes(tmp_path)), "--json"))
    assert found["tested"] == 120
    rows = {row["name"]: row for row in found["rows"]}
    ours = rows["FastGRNN (ours)"]
    assert ours["utility"] > max(rows["always cheap"]["utility"], rows["always dear"]["utility"])
    assert ours["above"] == 9
    assert ours["apgr"]["low"] > rows["fixed mixture (train)"]["apgr"]["high"]
    assert rows["always cheap"]["quality"] == pytest.approx(0.5)
    assert rows["always dear"]["regret"]["mean"] == pytest.approx(found["exchange"] * 9.0 / 2, rel=1e-6)
    assert "2 to 4 tiers" in " ".join(door("bench", str(outcomes(tmp_path)), "--tier", "dear", code=1).split())
