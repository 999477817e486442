"""A real vLLM server on the CPU with a blank LFM2 that is written here, started and stopped as `ruvllm vllm` does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ruvllm.inference import vllm_server
from ruvllm.inference.blank import write_checkpoint, write_gguf
from ruvllm.inference.engine import Engine
from ruvllm.inference.shapes import TINY
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.vllm import VllmModel
from ruvllm.inference.vllm_command import Plan
from ruvllm.settings import Settings, load_settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """State of our own; the interpreter that has vLLM is the one setting taken from outside."""
    state = tmp_path_factory.mktemp("state")
    return load_settings({}, state_dir=state, vllm_python=os.environ.get("RUVLLM_VLLM_PYTHON", ""), n_ctx=2048)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32-bit weights, so that what differs between two ways of reading a prompt is not rounding."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY, dtype="F32")


@pytest.fixture(scope="session")
def plan(folder: Path, settings: Settings) -> Plan:
    port = vllm_server.port_of(settings, TINY.name, 0)
    return Plan(TINY.name, folder, port, settings.n_ctx, threads=1, dtype="float32")


@pytest.fixture(scope="session")
def server(plan: Plan, settings: Settings) -> Iterator[vllm_server.Running]:
    yield vllm_server.up(plan, settings)
    vllm_server.down(settings)
    assert vllm_server.status(settings) == []


@pytest.fixture(scope="session")
def tier() -> Tier:
    """The prompts of the LFM2 family, for the tiny shape."""
    return replace(load_catalogue()["lfm2"][0], name=TINY.name)


@pytest.fixture
def model(server: vllm_server.Running, tier: Tier, settings: Settings) -> Iterator[VllmModel]:
    with VllmModel(tier, [server.url], settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same weights in llama.cpp, rounded to 16 bits: another program's opinion."""
    opened = Engine(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", TINY), 2048)
    opened.set_threads(1, 1)
    yield opened
    opened.close()
