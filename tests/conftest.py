"""One real Postgres per test run; each test gets a database of its own, cloned from a migrated template."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import psycopg
import pytest

from ruvllm.database.dsn import with_database
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.settings import Settings, load_settings

# A machine that does other work is no failure; how fast something is stands in tests/benchmarks.
hypothesis.settings.register_profile("ruvllm", deadline=None)
hypothesis.settings.load_profile("ruvllm")

_PREFIX = "ruvllm-test-"
_UNSAFE_AND_FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "128MB", "log_statement": "ddl"}
_numbers = itertools.count()


@pytest.fixture(scope="session")
def open_dir() -> Iterator[Path]:
    """A directory that the server's user can enter: pytest's own is closed to all but its owner."""
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Servers and directories of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)) and folder.stat().st_uid == os.geteuid():
            for lock in folder.glob("*/postgres.lock"):
                EmbeddedPostgres(load_settings({}, state_dir=lock.parent)).stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(open_dir: Path) -> Iterator[EmbeddedPostgres]:
    """The test run's server; the DSN of a database is `postgres.create_database(name)`."""
    server = EmbeddedPostgres(load_settings({}, state_dir=open_dir / "shared"), _UNSAFE_AND_FAST)
    server.ensure()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The DSN of a migrated database: dimension 384, encoder "test-encoder"."""
    dsn = postgres.create_database("migrated")
    upgrade(dsn, "test-encoder", 384)
    return dsn


@pytest.fixture
def database_url(template: str) -> Iterator[str]:
    """The DSN of a fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    admin = with_database(template, "postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
    yield with_database(template, name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database, tenant "default"."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a state directory of the test's own and nothing from the environment."""
    return load_settings({}, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


@pytest.fixture(scope="session")
def prefect_api(open_dir: Path, postgres: EmbeddedPostgres) -> Iterator[str]:
    """The API URL of a real Prefect server on the test run's Postgres, started for the first test that asks; 5-10 s."""
    from ruvllm import services

    settings = load_settings({}, state_dir=open_dir / "shared", prefect_port=_free_port())
    with services.prefect_running(settings) as url:
        yield url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of a database without any schema: what opens it migrates it for its own encoder."""
    name = f"empty_{next(_numbers)}"
    dsn = postgres.create_database(name)
    yield dsn
    with psycopg.connect(with_database(dsn, "postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
