"""`ruvllm models …` as a user meets it: what it says, what it leaves on disk, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ruvllm.commands.models import app
from ruvllm.inference.blank import write_outline
from ruvllm.inference.gguf_header import read_header
from ruvllm.inference.shapes import SHAPES
from ruvllm.inference.tiers import is_blank

Run = Callable[..., Result]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RUVLLM_ACCEPT_GEMMA_TERMS", "RUVLLM_QUANTISATION", "RUVLLM_LADDER", "RUVLLM_N_CTX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(cache: Path) -> Run:
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments))


def _rows(result: Result) -> dict[str, dict[str, object]]:
    assert result.exit_code == 0, result.output
    return {row["tier"]: row for row in json.loads(result.output)}


@pytest.fixture
def placed(cache: Path) -> Path:
    """A file as deep and wide as the 350M where the tier's belongs; its weights are a hole."""
    shape = replace(SHAPES["lfm2-350m"], feed_forward=64, vocabulary=264)
    return write_outline(cache / "models" / "LFM2-350M-Q8_0.gguf", shape)


def test_list_says_memory_at_the_context_and_whether_it_fits(run: Run) -> None:
    short, long = (_rows(run("list", "--json", "--context", str(n))) for n in (512, 32768))
    assert short["lfm2-350m"]["MiB"] < long["lfm2-350m"]["MiB"]  # type: ignore[operator]
    assert {row["fits"] for row in short.values()} <= {"yes", "no"}
    assert short["lfm2.5-embedding-350m"]["ladder"] == "encoder"
    assert "half of what is free" in run("list").output


def test_a_file_is_unverified_then_verified_then_changed(
    run: Run, placed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVLLM_QUANTISATION", "Q8_0")
    assert _rows(run("list", "--json"))["lfm2-350m"]["hash"] == "unverified"
    verified = run("verify", "350m")
    assert verified.exit_code == 0
    assert "lfm2-350m Q8_0: as recorded" in verified.output
    assert _rows(run("list", "--json"))["lfm2-350m"]["hash"] == "verified"
    with placed.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert _rows(run("list", "--json"))["lfm2-350m"]["hash"] == "changed"
    refused = run("verify")
    assert refused.exit_code == 1
    assert "expected" in " ".join(refused.output.split())


def test_random_weights_in_a_tiers_place_are_called_so(run: Run, placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _rows(run("list", "--json"))["lfm2-350m"]["quantisation"] != "Q8_0"  # no reason to choose it
    monkeypatch.setenv("RUVLLM_QUANTISATION", "Q8_0")
    row = _rows(run("list", "--json"))["lfm2-350m"]
    assert (row["file there"], row["in use"]) == ("random weights", "")


def test_remove_frees_what_was_there(run: Run, placed: Path) -> None:
    result = run("remove", "350m", "--quantisation", "Q8_0")
    assert result.exit_code == 0
    assert "MiB removed" in result.output
    assert not placed.exists()


def test_size_adds_up(run: Run) -> None:
    rows = json.loads(run("size", "350m", "--context", "4096", "--json").output)
    assert [row["quantisation"] for row in rows] == ["Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16"]
    for row in rows:
        parts = sum(row[part] for part in ("weights", "repacked", "kv", "state", "compute", "work", "process"))
        assert row["sum"] == pytest.approx(parts, abs=3)
    assert rows[0]["kv"] == 48  # 12 KiB a token
    assert "700m" in run("size", "9b").output


def test_blank_makes_files_that_say_so(run: Run, tmp_path: Path) -> None:
    result = run("blank", "tiny", "--quantisation", "Q8_0", "--quantisation", "Q4_K_M", "--to", str(tmp_path / "made"))
    assert result.exit_code == 0, result.output
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == ["blank-lfm2-tiny-Q4_K_M.gguf", "blank-lfm2-tiny-Q8_0.gguf"]
    assert all(is_blank(tmp_path / "made" / name) for name in made)
    assert read_header(tmp_path / "made" / made[0]).name == "blank lfm2-tiny"


def test_blank_makes_a_checkpoint(run: Run, tmp_path: Path) -> None:
    assert run("blank", "tiny", "--checkpoint", "--to", str(tmp_path)).exit_code == 0
    assert (tmp_path / "blank-lfm2-tiny" / "model.safetensors").stat().st_size > 5_000_000


@pytest.mark.parametrize("arguments", [("blank", "9b"), ("blank", "tiny", "--quantisation", "Q9"), ("verify", "9b")])
def test_a_wrong_name_is_one_line_and_exit_1(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert "want one of" in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("verb", ["list", "pull", "verify", "size", "remove", "blank"])
def test_every_verb_explains_itself(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output
