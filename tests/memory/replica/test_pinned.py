"""A mapped file that is locked stays in memory, and the system's refusal is no failure."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from replica_nodes import ALONE, Written

from ruvllm.memory.replica import Replica
from ruvllm.memory.replica.pinned import Pinned


def locked_kb() -> int:
    """Of this process, as the kernel counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmLck")).split()[1])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "graph"
    path.write_bytes(bytes(40_960))
    return path


def test_what_is_pinned_is_locked_until_it_is_let_go(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = locked_kb()
    pinned = Pinned([tmp_path / "empty", file])
    assert (pinned.nbytes, locked_kb() - before) == (40_960, 40)
    pinned.close()
    pinned.close()
    assert (pinned.nbytes, locked_kb() - before) == (0, 0)


def test_a_system_that_refuses_is_told_of_and_leaves_nothing_mapped(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unmapped = []
    libc = SimpleNamespace(mmap=lambda *_: 4096, mlock=lambda *_: -1, munmap=lambda *given: unmapped.append(given))
    monkeypatch.setattr("ruvllm.memory.replica.pinned._libc", lambda: libc)
    with caplog.at_level(logging.INFO):
        assert Pinned([file, file]).nbytes == 0
    assert unmapped == [(4096, 40_960)]
    assert "ulimit -l" in caplog.text
    assert len(caplog.records) == 1


def test_a_system_without_the_calls_pins_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ruvllm.memory.replica.pinned._libc", lambda: None)
    assert Pinned([file]).nbytes == 0


def test_a_replicas_graph_is_locked_while_it_is_open_unless_that_is_not_wanted(
    written: Written, open_replica: Callable[..., Replica]
) -> None:
    before = locked_kb()
    open_replica(replace(ALONE, lock=False))
    assert locked_kb() == before
    replica = open_replica()
    assert locked_kb() > before
    replica.close()
    gc.collect()
    assert locked_kb() == before
