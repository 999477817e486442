"""Files of outcomes: what is read from them, and that each fault names its line, the thing and the way out."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.files import Choice, read_outcomes
from ruvllm.learning.outcomes.records import OutcomeSet

ROWS = [
    {"id": "a", "query": "one", "domain": "d", "scores": [0.9, 0.1], "cost_usd": [3.0, 1.0], "split": "val"},
    {"id": "b", "query": "two", "domain": "d", "scores": [1, None], "cost_usd": [5.0, None], "split": "test"},
]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "set.jsonl.gz", **meta: Any) -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    stem = name.removesuffix(".gz").removesuffix(".jsonl")
    (folder / f"{stem}.meta.json").write_text(json.dumps({"models": ["big", "small"], **meta}))
    return path


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_tiers_come_cheapest_first_and_missing_stays_missing(tmp_path: Path, name: str) -> None:
    outcomes = read_outcomes(write(tmp_path, ROWS, name))
    assert outcomes.tiers == ("small", "big")
    assert outcomes.split.tolist() == ["train", "test"]
    assert np.array_equal(outcomes.score, [[0.1, 0.9], [np.nan, 1.0]], equal_nan=True)
    assert np.array_equal(outcomes.cost, [[1.0, 3.0], [np.nan, 5.0]], equal_nan=True)
    assert outcomes.complete.tolist() == [0]
    assert outcomes.has_split


def tokens(**more: Any) -> list[dict[str, Any]]:
    return [{"id": "a", "query": "x" * 40, "scores": [1, 0], "out_tokens": [100, 50], **more}]


def test_costs_from_tokens_and_prices(tmp_path: Path) -> None:
    path = write(tmp_path, tokens(), price_per_mtok={"big": [10, 30], "small": [1, 2]})
    outcomes = read_outcomes(path)
    assert outcomes.cost.tolist() == [[pytest.approx((10 * 1 + 50 * 2) / 1e6), pytest.approx((10 * 10 + 3000) / 1e6)]]
    assert outcomes.cost_unit == "USD from tokens"
    dearer = read_outcomes(path, Choice(prices={"small": (100, 200)}))
    assert dearer.tiers == ("big", "small")


def test_costs_from_tokens_alone_and_from_prices_alone(tmp_path: Path) -> None:
    alone = read_outcomes(write(tmp_path, tokens()))
    assert (alone.cost.tolist(), alone.cost_unit) == ([[50.0, 100.0]], "output tokens")
    row = {key: value for key, value in tokens()[0].items() if key != "out_tokens"}
    priced = read_outcomes(write(tmp_path, [row], price_per_mtok={"big": [10, 30], "small": [1, 2]}))
    assert (priced.cost.tolist(), priced.cost_unit) == ([[1.5, 20.0]], "USD a million tokens")


def test_a_subset_of_a_larger_file(tmp_path: Path) -> None:
    row = {"id": "a", "query": "q", "scores": [0, 0.1, 0.2, 0.3, 0.4], "cost": [5, 4, 3, 2, 1]}
    path = write(tmp_path, [row], models=list("abcde"))
    with pytest.raises(LearningError, match="5 models, a ladder has 2 to 4 tiers; name a subset"):
        read_outcomes(path)
    chosen = read_outcomes(path, Choice(tiers=("b", "e")))
    assert (chosen.tiers, chosen.score.tolist()) == (("e", "b"), [[0.4, 0.1]])
    with pytest.raises(LearningError, match="no model 'z'"):
        read_outcomes(path, Choice(tiers=("a", "z")))


def test_what_was_in_a_models_training_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [*tokens(contaminated=True), *[{**tokens()[0], "id": "b"}]])
    outcomes = read_outcomes(path)
    assert outcomes.ids == ("b",)
    assert outcomes.notes == ("1 queries marked as contaminated left out",)
    assert len(read_outcomes(path, Choice(drop_contaminated=False))) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": [1]}, "line 2: scores is 1 values, want a list of 2"),
        ({"scores": [1, 2]}, "line 2: scores of small is 2, want 0 to 1"),
        ({"scores": [1, float("nan")]}, "line 2: scores of small is nan"),
        ({"scores": [1, True]}, "line 2: scores of small is True"),
        ({"cost_usd": [1, -1]}, "line 2: cost_usd of small is -1"),
        ({"scores": [1, 1], "cost_usd": [1, None]}, "line 2: small has a score and no cost"),
        ({"query": " "}, "line 2: query is ' '"),
        ({"id": 7}, "line 2: id is 7"),
        ({"id": "a"}, "id 'a' is there twice"),
        ({"split": "dev"}, "line 2: split is 'dev'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(LearningError, match=said):
        read_outcomes(write(tmp_path, [ROWS[0], {**ROWS[1], **change}]))


def test_lines_of_two_cost_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="line 2: its cost is in output tokens, that of the lines before in USD"):
        read_outcomes(write(tmp_path, [ROWS[0], {**tokens()[0], "id": "b"}]))
    bare = {"id": "a", "query": "q", "scores": [1, 0]}
    with pytest.raises(LearningError, match="line 1: no cost, cost_usd or out_tokens"):
        read_outcomes(write(tmp_path, [bare]))


def test_faults_of_the_file_itself(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    with pytest.raises(LearningError, match=r"sha256 is [0-9a-f]{64}, want 00"):
        read_outcomes(path, Choice(sha256="00"))
    assert len(read_outcomes(path, Choice(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))) == 2
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(LearningError, match="truncated or altered"):
        read_outcomes(path)
    path.with_name("set.meta.json").unlink()
    with pytest.raises(LearningError, match=r"set\.meta\.json is missing"):
        read_outcomes(path)
    with pytest.raises(LearningError, match="no such file"):
        read_outcomes(tmp_path / "none.jsonl")
    with pytest.raises(LearningError, match="no query in it"):
        read_outcomes(write(tmp_path, []))


def test_a_tier_without_any_outcome_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match="small has no outcome at all"):
        read_outcomes(write(tmp_path, [ROWS[1]]))


@given(text=st.text(max_size=200))
def test_no_line_gets_past_unseen(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("lines")
    path = write(folder, ROWS[:1], "set.jsonl")
    path.write_text(path.read_text() + text + "\n", encoding="utf-8", newline="\n")
    if text.strip():
        with pytest.raises(LearningError, match="line"):
            read_outcomes(path)
    else:
        assert read_outcomes(path).ids == ("a",)


def test_a_set_holds_scores_and_costs_together() -> None:
    with pytest.raises(LearningError, match="known together"):
        OutcomeSet(
            "s", ("a", "b"), ("1",), ("q",), np.array(["d"]), np.array([[1.0, np.nan]]), np.ones((1, 2)), np.array([""])
        )
