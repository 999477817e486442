"""What the measurements of routing share: where the outcome files lie, kept vectors, a report. Options: one up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.learning.outcomes.features import EmbeddingCache


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path:
    given = request.config.getoption("--data")
    if given is None:
        pytest.skip("give the folder of the outcome files with --data")
    return Path(given)


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("router")


@pytest.fixture(scope="session")
def out(request: pytest.FixtureRequest, keep: Path) -> Path:
    given = request.config.getoption("--out")
    return Path(given).absolute() if given else keep / "results"


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(1)
    return int(request.config.getoption("--rounds"))


@pytest.fixture(scope="session")
def cache(keep: Path) -> EmbeddingCache:
    return EmbeddingCache(keep, EmbeddingAdapter(MiniLMEncoder()))


@pytest.fixture(scope="session")
def command() -> str:
    """As a user would type it: folders of this machine are left out."""
    words = (word if "/" not in word or word.startswith("tests/") else "FOLDER" for word in sys.argv[1:])
    return f"python -m pytest {' '.join(words)}"
