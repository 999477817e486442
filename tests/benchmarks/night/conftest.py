"""What the measurements of the night share: a report of results. Options: one folder up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.memory.report import Report, conditions


@pytest.fixture(scope="session")
def n(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--n"))


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, n: int, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """This module's results, as <keep>/results/<module>-<n>.json and .md."""
    keep = request.config.getoption("--keep")
    folder = Path(keep).absolute() / "results" if keep else tmp_path_factory.mktemp("night")
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    made = Report(f"{name}-{n}", folder)
    words = (word if "/" not in word or word.startswith("tests/") else "FOLDER" for word in sys.argv[1:])
    made.conditions = conditions(n=n, command=f"python -m pytest {' '.join(words)}")
    return made
