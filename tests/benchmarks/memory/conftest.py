"""What every measurement of memory shares: sizes, vectors, a kept folder, a report. Knows nothing of contenders.

Options are in tests/benchmarks/conftest.py. With `--keep FOLDER` vectors, indexes and databases are left there and
found again by the next run, so a killed run of an hour goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.memory import hnsw
from tests.benchmarks.memory import loading, vectors
from tests.benchmarks.memory.report import Report, conditions


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    n: int
    dim: int
    queries: int
    data: Path | None
    keep: Path
    out: Path
    contenders: str
    build_threads: int

    @property
    def band(self) -> hnsw.Band:
        return hnsw.band(self.n)


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Options:
    def given(name: str, default: object) -> object:
        return request.config.getoption(name, default) or default

    keep = given("--keep", None)
    folder = Path(str(keep)).absolute() if keep else tmp_path_factory.mktemp("memory")
    data = given("--data", None)
    return Options(
        n=int(str(given("--n", 100_000))),
        dim=int(str(given("--dim", 384))),
        queries=int(str(given("--queries", 1000))),
        data=Path(str(data)) if data else None,
        keep=folder,
        out=Path(str(given("--out", folder / "results"))).absolute(),
        contenders=str(given("--contenders", "")),
        build_threads=int(str(given("--build-threads", 1))),
    )


@pytest.fixture(scope="session")
def corpus(options: Options) -> vectors.Corpus:
    """`--n` vectors of `--dim`, queries and their exact neighbours."""
    if options.data is not None:
        return vectors.given(options.data, options.queries, options.keep, options.n)
    return vectors.made(options.n, options.dim, options.queries, options.keep)


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, options: Options) -> Report:
    """This module's results, as <out>/<module>-<n>.json and .md."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    made = Report(f"{name}-{options.n}", options.out)
    made.conditions = conditions(n=options.n, dim=options.dim, queries=options.queries, command=_command())
    return made


def _command() -> str:
    """As a user would type it: folders of this machine are left out."""
    words = (word if "/" not in word or word.startswith("tests/") else "FOLDER" for word in sys.argv[1:])
    return f"python -m pytest {' '.join(words)}"


@pytest.fixture(scope="session")
def bench_postgres(options: Options, corpus: vectors.Corpus) -> Iterator[EmbeddedPostgres]:
    """A real Postgres, sized for the corpus; fsync is on."""
    with loading.server(options.keep, corpus) as server:
        yield server


@pytest.fixture(scope="session")
def loaded(bench_postgres: EmbeddedPostgres, options: Options, corpus: vectors.Corpus) -> loading.Loaded:
    """A database whose memory holds the corpus and ten edges a node, indexed by its band."""
    return loading.fill(bench_postgres, corpus, options.build_threads)
