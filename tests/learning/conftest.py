"""Small training runs: one for all tests that only read what it gave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ruvllm.learning.config import Config, load_config, parse_config
from ruvllm.settings import PROJECT_ROOT


@pytest.fixture(scope="session")
def config() -> Config:
    """params.yaml of the repository."""
    return load_config(PROJECT_ROOT / "params.yaml")


@pytest.fixture(scope="session")
def with_params(config: Config) -> Callable[..., Config]:
    """The repository's settings with some changed: with_params(training={"steps": 20})."""

    def change(**sections: dict[str, Any]) -> Config:
        document = config.as_dict()
        for section, values in sections.items():
            document[section] |= values
        return parse_config(document)

    return change


@pytest.fixture(scope="session")
def quick(with_params: Callable[..., Config]) -> Config:
    """A short training, for tests that do not care how good it is."""
    return with_params(training={"steps": 20, "folds": 2}, evaluation={"resamples": 200})


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory, quick: Config) -> Path:
    """snapshot.npz and the bundle that was trained on it."""
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
    from ruvllm.learning.inputs import Inputs
    from ruvllm.learning.train import train, write

    single_thread()
    folder = tmp_path_factory.mktemp("night")
    snapshot = write_fake_snapshot(folder / "snapshot.npz", fake_arrays(30, 12))
    write(train(snapshot, quick), quick, Inputs("first", "2026-01-01T00:00:00+00:00"), folder / "bundle")
    return folder
