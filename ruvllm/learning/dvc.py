"""Runs `dvc repro` in a workspace that is this process's alone. Knows nothing of the stages.

dvc gets its settings, caches and locks inside the workspace and reaches no network. Whatever ends the call ends dvc
and its stages; where kill -9 left no time for that, the next run ends what was left before it begins. dvc notes in
`.dvc/tmp/rwlock` which process id reads and writes what, and asks only whether such an id lives: a note that a killed
run left blocks every later one once the id is another program's. Who holds the workspace's own lock, which the kernel
lets go of with its holder, throws such notes away.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from ruvllm import process
from ruvllm.errors import LearningError, ProcessError
from ruvllm.learning.command import heard
from ruvllm.progress import Progress, silent
from ruvllm.settings import PROJECT_ROOT

LOCK, RUNNING = "pipeline.lock", "dvc.pid.json"
_NOTES = Path(".dvc", "tmp", "rwlock")
_TAIL = 30  # lines of dvc's output that an error shows
_KILL_AFTER_S = 10.0


@contextmanager
def ours(workspace: Path) -> Iterator[None]:
    """No other process's pipeline in this workspace within the block, nor what a killed one left.

    Raises:
        LearningError: another process runs its pipeline there.
        OSError: the workspace cannot be made.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        with process.lock(workspace / LOCK, 0.0):
            process.stop(workspace / RUNNING, _KILL_AFTER_S)
            (workspace / _NOTES).unlink(missing_ok=True)
            yield
    except ProcessError as error:
        raise LearningError(
            f"workspace {workspace}: another process runs the pipeline there; wait for it, or end it: the next run goes"
            " on from its last stage"
        ) from error


def reproduce(workspace: Path, progress: Progress = silent) -> None:
    """`dvc repro`, after `dvc init` where that was never done; within `ours`.

    Raises:
        LearningError: a stage failed; the message ends with dvc's last lines.
    """
    if not (workspace / ".dvc" / "config").exists():
        _dvc(workspace, ["init", "--no-scm", "--force", "--quiet"], silent)
    _dvc(workspace, ["repro"], progress)


def _dvc(workspace: Path, arguments: list[str], progress: Progress) -> None:
    """Run dvc, pass its lines on; whatever ends the call ends dvc and its stages too."""
    command = [sys.executable, "-m", "dvc", *arguments]
    tail: deque[str] = deque(maxlen=_TAIL)
    with _started(command, workspace) as running:
        assert running.stdout is not None
        for line in _lines(running.stdout):
            tail.append(line)
            if (step := heard(line)) is not None:
                progress(*step)
        code = running.wait()
    if code != 0:
        raise LearningError(
            f"dvc {arguments[0]} in {workspace} ended with code {code}; its last lines:\n" + "\n".join(tail)
        )


@contextmanager
def _started(command: list[str], workspace: Path) -> Iterator[subprocess.Popen[str]]:
    """A session of its own, so that dvc, its shell and the stage can be ended together, by the next run too."""
    running = subprocess.Popen(
        command, cwd=workspace, env=_environment(workspace), text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        process.remember(workspace / RUNNING, psutil.Process(running.pid))
        yield running
    finally:
        if running.poll() is None:
            _end(running)
        if running.stdout is not None:
            running.stdout.close()
        (workspace / RUNNING).unlink(missing_ok=True)


def _end(running: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(running.pid, number)
            running.wait(_KILL_AFTER_S)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _environment(workspace: Path) -> dict[str, str]:
    own = workspace / ".dvc" / "tmp"
    return {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(own / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(own / "config"),
        "DVC_SYSTEM_CONFIG_DIR": str(own / "config"),
        "PYTHONPATH": str(PROJECT_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # `python` is ours
        "OMP_NUM_THREADS": "1",
    }


def _lines(stream: IO[str]) -> Iterator[str]:
    for line in stream:
        yield line.rstrip()
