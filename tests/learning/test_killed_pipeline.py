"""A pipeline that was killed with kill -9: what it left is ended, its notes block nobody, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ruvllm import process
from ruvllm.errors import LearningError
from ruvllm.learning import dvc
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.workspace import run_pipeline
from ruvllm.settings import PROJECT_ROOT

PROGRAM = """
import sys
from pathlib import Path
from ruvllm.learning.workspace import run_pipeline
run_pipeline(Path(sys.argv[1]), Path(sys.argv[2]), None, None, "night-1", lambda *step: print(*step, flush=True))
"""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "snapshot.npz"
    write_fake_snapshot(path, fake_arrays(20, 9))
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "night-1"


@pytest.fixture
def left(workspace: Path, snapshot: Path) -> Iterator[list[psutil.Process]]:
    """The dvc and the stage that a run killed in training left there, stopped so that they cannot end by themselves."""
    command = [sys.executable, "-c", PROGRAM, str(workspace), str(snapshot)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT_ROOT) as program:
        assert program.stdout is not None
        assert any(b"fold" in line for line in program.stdout)  # the stage `train` is at work
        left = psutil.Process(program.pid).children(recursive=True)
        for each in left:
            each.suspend()
        program.kill()
    yield left
    for each in left:
        process.send(each, signal.SIGKILL)


def test_a_killed_run_is_taken_up_whoever_has_its_process_id_by_now(
    left: list[psutil.Process], workspace: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(left) >= 2
    assert all(process.alive(each) for each in left)
    note = {"pid": os.getpid(), "cmd": "dvc repro"}  # an id that lives and is no dvc's
    path = str(workspace / "features.npz")
    (workspace / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": {path: note}, "read": {path: [note]}}))

    monkeypatch.setattr(dvc, "_KILL_AFTER_S", 0.5)  # a stopped process hears no SIGTERM
    result = run_pipeline(workspace, snapshot, None, None, "night-1")

    assert result.metrics["n_train"] == 20
    assert not any(process.alive(each) for each in left)
    assert not (workspace / dvc.RUNNING).exists()


def test_a_second_run_in_the_same_workspace_is_refused(snapshot: Path, workspace: Path) -> None:
    with dvc.ours(workspace), pytest.raises(LearningError, match="another process runs the pipeline there"):
        run_pipeline(workspace, snapshot, None, None, "night-1")
    assert not (workspace / "dvc.yaml").exists()  # nothing was changed under the first one
