"""The packaged models, each in one process per test run, hashes checked once; and an LFM2 with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ruvllm.inference.blank import write_gguf
from ruvllm.inference.files import ensure
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.shapes import TINY
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.settings import Settings, load_settings


@pytest.fixture(scope="session")
def model_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A cache of the run's own, so that nothing depends on what a developer's cache holds."""
    folder = tmp_path_factory.mktemp("inference")
    return load_settings({}, state_dir=folder / "state", cache_dir=folder / "cache", accept_gemma_terms=True)


@pytest.fixture(scope="session")
def tiers() -> dict[str, Tier]:
    return {tier.style: tier for tier in load_catalogue()["packaged"]}


@pytest.fixture(scope="session")
def paths(tiers: dict[str, Tier], model_settings: Settings) -> dict[str, Path]:
    return {style: ensure(tier, model_settings) for style, tier in tiers.items()}


@pytest.fixture(scope="session")
def chat_worker(tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings) -> Iterator[LlamaWorker]:
    with LlamaWorker(tiers["chat"], paths["chat"], model_settings, threads=1) as worker:
        yield worker


@pytest.fixture(scope="session")
def few_shot_worker(tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings) -> Iterator[LlamaWorker]:
    with LlamaWorker(tiers["few-shot"], paths["few-shot"], model_settings, threads=1) as worker:
        yield worker


@pytest.fixture(scope="session")
def tiny_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of LFM2's architecture, 4 layers of 256, F16, random weights: it says nonsense until it is stopped."""
    return write_gguf(tmp_path_factory.mktemp("blank") / "blank-lfm2-tiny-F16.gguf", TINY)
