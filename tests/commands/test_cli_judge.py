"""`ruvllm judge …` from the door: scores, decides, says so, and refuses bad data in one line that names the place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ruvllm.commands.judge import app
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.judge import judging
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Choice, Prompt


class Judge(FakeModel):
    """5 for an answer that holds "right", else 1; of every tenth question the opposite."""

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        return [self._one([s.text for s in prompt.question if not s.trusted]) for prompt in prompts]

    def _one(self, said: list[str]) -> Choice:
        high = ("right" in said[1]) != said[0].endswith("0?")
        return Choice((0.05, 0.05, 0.05, 0.05, 0.7) if high else (0.7, 0.05, 0.05, 0.05, 0.05), 1, 0, 0.0)


Door = Callable[..., str]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Door:
    for name in [name for name in os.environ if name.startswith("RUVLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(judging, "ModelPool", lambda settings, ladder: ModelPool(settings, ladder, start=start))

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output + str(result.exception)
        assert "Traceback" not in result.output
        return result.stdout if "--json" in arguments else result.output

    return run


def start(tier: Tier) -> Any:
    return Judge()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"question": f"question {n}?", "answer": answer, "gold": ["right"] if n % 2 else gold, "context": "a passage"}
        for n in range(60)
        for answer, gold in (("right", 1.0), ("wrong", 0.0))
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_score_writes_a_line_per_item_and_no_quality_before_a_calibration(
    door: Door, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    shown = json.loads(door("score", "--data", str(data), "--out", str(out), "--json"))
    assert (shown["items"], shown["scored"], shown["without a score"]) == (120, 120, {})
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["score"] > 3 for line in lines[:4]] == [False, True, True, False]
    assert {line["quality"] for line in lines} == {None}
    assert "labels come from gold answers only" in shown["labels"]


def test_calibrate_decides_and_list_shows_it(door: Door, data: Path, tmp_path: Path) -> None:
    shown = json.loads(door("calibrate", "--data", str(data), "--json"))
    assert (shown["decision"], shown["data"], shown["n"]) == ("accepted", ["answers"], 120)
    (listed,) = json.loads(door("list", "--json"))
    assert (listed["judge"], listed["refusals"]) == (shown["judge"], [])
    assert shown["judge"] in door("list")
    door("score", "--data", str(data), "--out", str(tmp_path / "scores.jsonl"))
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[2])
    assert first["quality"] == pytest.approx(0.9, abs=0.02)  # nine in ten of its fives are right


def test_agreement_changes_nothing(door: Door, data: Path) -> None:
    shown = door("agreement", "--data", str(data), "--tier", "135m")
    assert "Spearman" in shown
    assert "no calibration yet" in door("list")


def test_requests_says_who_may_label(door: Door, data: Path) -> None:
    before = json.loads(door("requests", "--json"))
    door("calibrate", "--data", str(data))
    after = json.loads(door("requests", "--json"))
    assert (before["labelled"], before["skipped"]) == (after["labelled"], after["skipped"]) == (0, {})
    assert before["labels"].startswith("labels come from gold answers only")
    assert after["labels"].startswith("without gold, judge ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "q"}', "line 2: got an object with 'question'"),
        ('["q", "a"]', "line 2: got a list"),
        ('{"question": "q", "answer": 3}', "line 2: answer: got a int"),
        ('{"question": "q", "answer": "a", "gold": 7}', "line 2: gold: got 7.0, want a quality from 0 to 1"),
        ('{"question": "q", "answer": "a", "gold": [1]}', "line 2: gold: got a list, want a text"),
        ('{"question": "q", "answer": " "}', "line 2: answer: got an empty text"),
        ('{"question": "q", "answer": "a", "godl": 1}', "line 2: got an object with 'question', 'answer', 'godl'"),
        ('{"question": "q"', "line 2: Expecting"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_scored(door: Door, data: Path, line: str, said: str) -> None:
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], line, *lines[1:]]))
    assert said in door("score", "--data", str(data), code=1)


def test_where_scores_cannot_be_written_nothing_is_scored(door: Door, data: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "away" / "scores.jsonl", tmp_path):
        said = door("score", "--data", str(data), "--out", str(out), code=1)
        assert "nothing was scored" in " ".join(said.split())


def test_what_is_no_file_of_lines(door: Door, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    assert "No such file" in door("score", "--data", str(tmp_path / "none.jsonl"), code=1)
    assert "got no item" in door("score", "--data", str(tmp_path / "empty.jsonl"), code=1)
    assert "UTF-8" in door("score", "--data", str(tmp_path / "binary.jsonl"), code=1)


def test_a_tier_that_is_not_there(door: Door, data: Path) -> None:
    assert "want one of smollm2-135m" in door("score", "--data", str(data), "--tier", "huge", code=1)


def test_too_little_gold_is_said_in_one_line(door: Door, data: Path) -> None:
    data.write_text("\n".join(data.read_text().splitlines()[:8]))
    assert "got 4 questions with gold, want at least 10" in door("calibrate", "--data", str(data), code=1)
