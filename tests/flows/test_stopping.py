"""A signal to `ruvllm cycle` or `ruvllm flows serve` leaves no server behind that the command had started.

Real Postgres, real Prefect server, the real flow; only what a night does first is replaced: it waits to be told off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ruvllm import process, services
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings

BOUND_S = 120.0
_BEGUN = "here is a night"
# In the flow's main thread, as every step of a night.
_WAITING = f"""
import signal, threading
from ruvllm.nightly import night
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where this test runs under nohup
night.begin = lambda *_: print({_BEGUN!r}, flush=True) or threading.Event().wait()
"""
_COMMAND = "import sys; from ruvllm.cli import app; app(sys.argv[1:])"


@pytest.fixture(scope="module")
def small(open_dir: Path) -> Settings:
    """An installation of this module's own; the second test finds its databases made."""
    return load_settings({}, state_dir=open_dir / "stopping")


@contextmanager
def running(settings: Settings, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`ruvllm` with these arguments, after `code`; killed with all that it left where it goes on too long."""
    foreign = ("PREFECT_", "RUVLLM_", "DATABASE_URL", "MLFLOW_")
    environment = {
        **{k: v for k, v in os.environ.items() if k == "RUVLLM_CACHE_DIR" or not k.startswith(foreign)},
        "RUVLLM_STATE_DIR": str(settings.state_dir), "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", code + _COMMAND, *arguments]
    child = subprocess.Popen(
        command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
        services.down(settings)


def hear(child: subprocess.Popen[str], word: str) -> str:
    """What was printed up to the line with `word`."""
    said = ""
    assert child.stdout is not None
    for line in child.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"ended with {child.wait()} and never said {word!r}:\n{said}")


def left(settings: Settings) -> list[str]:
    return [each.name for each in services.status(settings) if each.running]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_night_that_is_told_to_stop_stops_what_it_started(small: Settings, number: signal.Signals) -> None:
    with running(small, _WAITING, "cycle") as child:
        hear(child, _BEGUN)
        assert left(small) == ["postgres", "prefect"]
        child.send_signal(number)
        said, _ = child.communicate(timeout=BOUND_S)
        assert left(small) == []
    assert child.returncode == 130, said
    assert "run the same command again" in said


def test_served_flows_that_are_told_to_stop_stop_prefect_but_not_a_server_found_running(small: Settings) -> None:
    EmbeddedPostgres(small).ensure()
    with running(small, "", "flows", "serve") as child:
        hear(child, "nightly")
        assert left(small) == ["postgres", "prefect"]
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=BOUND_S)
        assert left(small) == ["postgres"]
    assert child.returncode in (0, 130), said  # 130 where Prefect's runner had not begun to listen to signals


def test_postgres_stays_where_something_of_ours_was_begun_meanwhile(small: Settings) -> None:
    """`ruvllm up` while a night runs: the night's end does not take its database away."""
    with services.postgres_as_found(small):
        EmbeddedPostgres(small).ensure()
        gateway = subprocess.Popen(["sleep", "600"], start_new_session=True)
        small.run_dir.mkdir(exist_ok=True)
        process.remember(small.run_dir / "gateway.pid.json", psutil.Process(gateway.pid))
    try:
        assert left(small) == ["postgres", "gateway"]
    finally:
        services.down(small)
        gateway.wait()
    assert left(small) == []
