"""What the measurements of attention share: the sets as array memories, a report. Options: one up.

Vectors are kept in the folder of `--keep`; `--queries` bounds the questions of the sets without several hops.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ruvllm.learning.attention import AttentionConfig
from tests.benchmarks.attention.sets import SETS, Setting, opened
from tests.benchmarks.memory.report import Report, conditions

EPOCHS = 15


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = request.config.getoption("--keep")
    return Path(given).absolute() if given else tmp_path_factory.mktemp("attention")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest, keep: Path) -> list[Setting]:
    """Every set of `--contenders` (by name; default all), linked and embedded."""
    torch.set_num_threads(1)
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("give the folder of the public sets with --data")
    chosen = request.config.getoption("--contenders")
    names = chosen.split(",") if chosen else list(SETS)
    asked = min(400, request.config.getoption("--queries"))
    return [opened(Path(data), SETS[name], asked, keep) for name in names]


@pytest.fixture(scope="session")
def config(request: pytest.FixtureRequest) -> AttentionConfig:
    asked = request.config.getoption("--rounds")
    return AttentionConfig(epochs=EPOCHS if asked == 5 else asked)  # 5 is the option's default, of other benchmarks


@pytest.fixture
def report(request: pytest.FixtureRequest, keep: Path) -> Report:
    given = request.config.getoption("--out")
    name = request.node.name.removeprefix("test_").replace("_", "-").replace("[", "-").rstrip("]")
    made = Report(name, Path(given).absolute() if given else keep / "results")
    words = (word if "/" not in word or word.startswith("tests/") else "FOLDER" for word in sys.argv[1:])
    made.conditions = conditions(command=f"python -m pytest {' '.join(words)}")
    return made
