"""Starting, finding and stopping servers, with a small program in vLLM's place; tests/vllm runs the real one."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from ruvllm.commands.vllm import app
from ruvllm.errors import InputError, ModelFileError, ProcessError, UnknownTierError
from ruvllm.inference import vllm_server
from ruvllm.inference.vllm_command import Plan, command, environment
from ruvllm.inference.vllm_settings import own_key_file, servers
from ruvllm.settings import Settings, to_environment

PROGRAM = Path(__file__).with_name("vllm_program.py")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """An interpreter that drops `-m vllm…` and runs our program instead."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
    python.chmod(0o755)
    return replace(settings, vllm_python=str(python))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiny"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"")
    return made


@pytest.fixture
def plan(folder: Path, settings: Settings) -> Iterator[Plan]:
    yield Plan("lfm2-tiny", folder, vllm_server.port_of(settings, "lfm2-tiny", 0), 2048)
    vllm_server.down(settings)


def told(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((plan.folder / "told.json").read_text())
    return found


def test_a_server_is_started_once_found_and_stopped_with_its_children(plan: Plan, settings: Settings) -> None:
    running = vllm_server.up(plan, settings)
    assert running.answers
    assert vllm_server.up(plan, settings).pid == running.pid
    assert vllm_server.port_of(settings, "lfm2-tiny", 0) == plan.port
    assert [each.pid for each in vllm_server.status(settings)] == [running.pid]
    assert servers(replace(settings, vllm=vllm_server.setting(vllm_server.status(settings)))) == {
        "lfm2-tiny": (plan.url,)
    }
    child = told(plan)["child"]
    assert vllm_server.down(settings) == [f"lfm2-tiny at {plan.url}"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert vllm_server.status(settings) == []
    assert vllm_server.down(settings) == []


def test_the_key_is_in_a_file_of_ours_and_in_no_command_line(plan: Plan, settings: Settings) -> None:
    vllm_server.up(plan, settings)
    path = own_key_file(settings)
    key = path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) >= 32
    assert key not in " ".join(told(plan)["argv"])
    assert told(plan)["environment"]["VLLM_API_KEY"] == key
    assert vllm_server.ensure_key(settings) == key


def test_a_server_gets_no_secret_of_ours(plan: Plan, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pw@db/x")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("RUVLLM_TENANT", "ours")
    vllm_server.up(plan, settings)
    got = told(plan)["environment"]
    assert not {"DATABASE_URL", "HF_TOKEN", "RUVLLM_TENANT"} & set(got)
    assert got["HF_HUB_OFFLINE"] == "1"
    assert got["VLLM_NO_USAGE_STATS"] == "1"


def test_a_server_that_ends_leaves_nothing_and_its_log_is_quoted(plan: Plan, settings: Settings) -> None:
    (plan.folder / "dies").touch()
    with pytest.raises(ProcessError, match="out of memory"):
        vllm_server.up(plan, settings)
    child = told(plan)["child"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert [each.pid for each in vllm_server.status(settings)] == [None]


def test_it_listens_here_alone_and_reads_no_pickle(plan: Plan) -> None:
    words = command(plan, Path("/python"))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--load-format") + 1] == "safetensors"
    assert "--trust-remote-code" not in words
    assert "--api-key" not in words


def test_on_a_cpu_the_kernel_that_misreads_lfm2_is_off(plan: Plan) -> None:
    words = command(plan, Path("/python"))
    options = json.loads(words[words.index("--compilation-config") + 1])
    assert "-rotary_embedding" in options["custom_ops"]
    assert "--enforce-eager" in words


def test_on_a_gpu_weights_are_quantised_and_parts_shared(plan: Plan) -> None:
    words = command(replace(plan, gpu=True, quantisation="8-bit", tensor_parallel=2), Path("/python"))
    assert words[words.index("--quantization") + 1] == "fp8"
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert "--enforce-eager" not in words


def test_prefix_caching_can_be_left_out(plan: Plan) -> None:
    assert "--enable-prefix-caching" in command(plan, Path("/python"))
    assert "--no-enable-prefix-caching" in command(replace(plan, prefix_caching=False), Path("/python"))


def test_threads_are_told_to_openmp_on_a_cpu(plan: Plan) -> None:
    assert environment(replace(plan, threads=2), "k", Path("/c"), {})["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in environment(plan, "k", Path("/c"), {})


@pytest.mark.parametrize("change", [{"quantisation": "8-bit"}, {"tensor_parallel": 0}, {"kv_gib": 0}])
def test_a_plan_that_cannot_be_is_refused(plan: Plan, change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(plan, **change)


def test_a_missing_interpreter_says_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(ProcessError, match=r"infra/vllm\.sh"):
        vllm_server.interpreter(replace(settings, vllm_python="/nowhere/python"))


def test_checkpoints_by_path_and_by_tier(folder: Path, settings: Settings) -> None:
    assert vllm_server.checkpoint(str(folder), settings) == ("tiny", folder)
    with pytest.raises(ModelFileError, match="put LiquidAI/LFM2-350M from the hub there"):
        vllm_server.checkpoint("350m", settings)
    with pytest.raises(UnknownTierError, match="lfm2-350m"):
        vllm_server.checkpoint("gpt", settings)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match="safetensors"):
        vllm_server.checkpoint(str(folder), settings)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a=b", "a;b", "-x", "a" * 65])
def test_names_that_cannot_be_files_or_tiers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="name: got"):
        vllm_server.checked_name(name)


def test_quantisation_follows_the_device(settings: Settings) -> None:
    assert vllm_server.quantisation("auto", "lfm2-350m", 2048, gpu=False)[0] == "none"
    assert vllm_server.quantisation("4-bit", "lfm2-350m", 2048, gpu=True)[0] == "4-bit"
    with pytest.raises(InputError, match="want one of auto"):
        vllm_server.quantisation("3-bit", "lfm2-350m", 2048, gpu=True)


def test_the_verbs(folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RUVLLM_")]:
        monkeypatch.delenv(name)
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    runner, one = CliRunner(), [str(folder), "--name", "lfm2-tiny"]
    try:
        started = runner.invoke(app, ["up", *one, "--replicas", "2", "--json"])
        assert started.exit_code == 0, started.output
        found = json.loads(started.stdout)
        assert len({each["pid"] for each in found["servers"]}) == 2
        assert found["setting"].count("http://127.0.0.1:") == 2
        assert "export RUVLLM_VLLM=" in runner.invoke(app, ["status"]).stdout
    finally:
        stopped = runner.invoke(app, ["down", "--json"])
    assert len(json.loads(stopped.stdout)) == 2
    shown = runner.invoke(app, ["command", *one]).stdout
    assert 'VLLM_API_KEY="$(cat ' in shown
    assert own_key_file(settings).read_text().strip() not in shown
