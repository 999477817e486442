"""The processes of one Postgres data directory: which live, and how to end them. Knows nothing of SQL or settings.

A pid file alone proves nothing: after a crash or a reboot its pid may be another program's, or a zombie's. A process
is ours when its command line says so: the postmaster's names the data directory, its children's the cluster's name.
Command lines can be read where /proc/<pid>/cwd cannot (root in a container without CAP_SYS_PTRACE).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from ruvllm.process import send, wait_gone

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_STATUS = 7  # the line of a pid file that says what the server is at, as pg_ctl reads it


@dataclass(frozen=True)
class Cluster:
    """A data directory and the name (`cluster_name`) that its processes carry."""

    data: Path
    name: str

    def postmaster(self) -> psutil.Process | None:
        """The living postmaster of this directory, found through its pid file."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
        except (FileNotFoundError, ValueError, *_GONE):
            return None
        return process if self._is_postmaster(process) else None

    def died(self) -> bool:
        """Whether the server was killed, or recovers from that just now; one that was stopped took its pid file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return self.postmaster() is None or [line.strip() for line in lines[_STATUS:]] == ["starting"]

    def processes(self) -> list[psutil.Process]:
        """Every living process of this cluster, orphans of a killed postmaster among them."""
        return [each for each in psutil.process_iter() if self._is_postmaster(each) or self._is_child(each)]

    def forget_dead(self, grace_s: float = 2.0) -> None:
        """After a crash: no orphan and no stale pid file is left that would keep a new postmaster from starting.

        Orphans end by themselves within moments; one that hangs still holds the shared memory block and is killed.
        Only for when `postmaster()` is None.
        """
        if not wait_gone(self.processes(), grace_s):
            self.kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self, timeout_s: float) -> None:
        """Fast shutdown, then an immediate one, then SIGKILL. Smart shutdown would wait for clients for ever."""
        for number, patience in ((signal.SIGINT, timeout_s), (signal.SIGQUIT, 10.0)):
            process = self.postmaster()
            if process is None:
                break
            send(process, number)
            if wait_gone([process], patience):
                break
        if not wait_gone(self.processes(), 1.0):
            self.kill()

    def kill(self) -> None:
        leftover = self.processes()
        for process in leftover:
            send(process, signal.SIGKILL)
        wait_gone(leftover, 10.0)

    def _is_postmaster(self, process: psutil.Process) -> bool:
        command = _command(process)
        return Path(command[0]).name == "postgres" and str(self.data) in command[1:] if command else False

    def _is_child(self, process: psutil.Process) -> bool:
        return " ".join(_command(process)).startswith(f"postgres: {self.name}: ")


def _command(process: psutil.Process) -> list[str]:
    """Empty for a zombie and for what is gone."""
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except _GONE:
        return []
