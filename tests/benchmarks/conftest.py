"""What the measurements can be told; the folders' own conftest.py and fixtures hand it on."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memory benchmarks")
    group.addoption("--n", type=int, default=100_000, help="vectors (default 100000)")
    group.addoption("--dim", type=int, default=384, help="their dimension (default 384)")
    group.addoption("--queries", type=int, default=1000, help="queries measured (default 1000)")
    group.addoption(
        "--data", default=None, help="a .npy of vectors instead of made ones, or the folder that a test asks for"
    )
    group.addoption(
        "--keep", default=None, help="folder for vectors, indexes and databases, used again by the next run"
    )
    group.addoption("--out", default=None, help="folder for results, JSON and Markdown (default: <keep>/results)")
    group.addoption("--contenders", default="", help="only these, by name, with commas between (default: all)")
    group.addoption("--build-threads", type=int, default=1, help="threads that build an index (default 1)")
    tiers = parser.getgroup("inference benchmarks")
    tiers.addoption("--shapes", default="350m", help="LFM2 shapes, with commas between (default 350m)")
    tiers.addoption("--quantisations", default="Q4_0", help="with commas between (default Q4_0)")
    tiers.addoption("--rounds", type=int, default=5, help="how often each thing is measured (default 5)")
