"""Starts the process that parses a model file for this one, with as little as it needs. Knows nothing of models.

The child gets one end of a socket pair and the open files it is given; none of our secrets (see waiting.py), no
terminal. It leaves when the socket closes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ruvllm.inference import waiting
from ruvllm.settings import PROJECT_ROOT

MAX_LOG = 1024 * 1024


def spawn(
    program: Sequence[str], log_path: Path, wait_policy: str, files: Sequence[int] = ()
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Python runs `program` with the number of its end of the socket behind it; `files` keep their numbers there."""
    ours, theirs = socket.socketpair()
    with theirs, _open_log(log_path) as log:
        process = subprocess.Popen(
            [sys.executable, *program, str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *files],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROJECT_ROOT,
            env=waiting.environment(os.environ, wait_policy),
            start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
        )
    return ours, process


def _open_log(path: Path) -> IO[bytes]:
    """Appends, so that the words of a process that died stay; starts anew when it has grown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grown = path.exists() and path.stat().st_size > MAX_LOG
    return path.open("wb" if grown else "ab")
