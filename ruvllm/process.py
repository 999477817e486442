"""Processes that outlive the one that starts them: start, find, wait for, stop. Knows no service of ours by name.

A process is remembered by its id and its time of birth, so that an id that the kernel has given to another program
since is never taken for ours, let alone killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

import httpx
import psutil

from ruvllm.errors import ProcessError

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_SAME_S = 0.5
_LOG_LIMIT = 16 * 2**20
_IN_FOLDER = 'cd "$1" && shift && exec "$@"'  # posix_spawn has no working directory


@dataclass(frozen=True)
class Service:
    """A program to keep running. `health` is a URL that answers 200 once it is ready."""

    name: str
    argv: tuple[str, ...]
    port: int
    health: str
    log: Path
    env: Mapping[str, str] = dataclass_field(default_factory=dict)  # the whole environment, not an addition
    setting: str = ""  # the variable that changes the port
    host: str = "127.0.0.1"
    folder: Path = Path("/")
    start_timeout_s: float = 120.0

    @property
    def pid_file(self) -> Path:
        return pid_file(self.log)


def pid_file(log: Path) -> Path:
    """Beside the service's log."""
    return log.with_suffix(".pid.json")


def start(service: Service) -> psutil.Process:
    """The running process of `service`, started and ready; does nothing more where it runs already.

    Raises:
        ProcessError: its port is taken, it ended, or it was not ready in time (then it is stopped again).
    """
    service.log.parent.mkdir(parents=True, exist_ok=True)
    with lock(service.log.with_suffix(".lock"), 2 * service.start_timeout_s):
        process = find(service.pid_file)
        if process is None:
            stop(service.pid_file)  # children that outlived it
            check_port(service)
            process = _spawn(service)
        try:
            _wait_ready(service, process)
        except BaseException:  # Ctrl-C in the middle, too, leaves nothing half-started
            stop(service.pid_file, 5.0)
            raise
        return process


def stop(record_file: Path, timeout_s: float = 30.0) -> bool:
    """End the process and its whole session: SIGTERM, then SIGKILL. False where nothing ran."""
    record, process = _read(record_file), find(record_file)
    leftover = [process, *_session(process.pid)] if process else _orphans(record)
    _end(leftover, timeout_s)
    record_file.unlink(missing_ok=True)
    return bool(leftover)


def remember(record_file: Path, process: psutil.Process) -> None:
    """Note which process it is, for `find` and `stop`; they take its session for its own, so it leads one."""
    partial = record_file.with_suffix(".partial")
    partial.write_text(json.dumps(vars(_Record.of(process))))
    partial.replace(record_file)


def find(record_file: Path) -> psutil.Process | None:
    """The living process that the file remembers."""
    record = _read(record_file)
    if record is None or record.is_anothers():
        return None
    try:
        process = psutil.Process(record.pid)
    except _GONE:
        return None
    return process if alive(process) else None


def alive(process: psutil.Process) -> bool:
    """False for a zombie, which nobody may ever reap, and for an id that is another process's by now."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except _GONE:
        return False


def send(process: psutil.Process, number: signal.Signals) -> None:
    """psutil refuses an id that is another process's by now."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_gone(processes: Sequence[psutil.Process], timeout_s: float) -> bool:
    """Whether all ended within the time. psutil's own wait never returns for a zombie that is not our child."""
    deadline = time.monotonic() + timeout_s
    while any(alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8000))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return f"{log} is not there"
    return f"end of {log}:\n" + "\n".join(text.splitlines()[-lines:])


def check_port(service: Service) -> None:
    """Raises ProcessError where the port is taken: names it, the setting that changes it, and its holder if seen."""
    if port_is_free(service.port, service.host):
        return
    raise ProcessError(
        f"{service.name}: port {service.port} of {service.host} is taken{_holder(service.port)}; "
        f"end that program, or choose another port with {service.setting}"
    )


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no holder
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


@contextmanager
def lock(path: Path, timeout_s: float) -> Iterator[None]:
    """One process at a time; the kernel lets go of it when its holder dies.

    Raises:
        ProcessError: another process held it for the whole time.
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by what we start
    try:
        deadline = time.monotonic() + timeout_s
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise ProcessError(f"{path}: another process has held it for {timeout_s:.0f} s; wait for it, or end it")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _spawn(service: Service) -> psutil.Process:
    """Detached: a session of its own, output to the log, no pipe of ours."""
    if service.log.exists() and service.log.stat().st_size > _LOG_LIMIT:
        service.log.replace(service.log.with_suffix(".log.1"))
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _IN_FOLDER, "sh", str(service.folder), *service.argv],
        dict(service.env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(service.log), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    process = psutil.Process(pid)
    remember(service.pid_file, process)
    return process


@dataclass(frozen=True)
class _Record:
    """What a pid file holds."""

    pid: int
    born: float  # seconds after the boot: the time of day may be set, and then moves every process's time of birth
    boot: str  # which boot

    @classmethod
    def of(cls, process: psutil.Process) -> _Record:
        boot = Path("/proc/sys/kernel/random/boot_id")
        born = process.create_time() - psutil.boot_time()
        return cls(process.pid, round(born, 2), boot.read_text().strip() if boot.exists() else "")

    def is_anothers(self) -> bool:
        """Whether the id is a process's that is not the one remembered."""
        try:
            now = _Record.of(psutil.Process(self.pid))
        except _GONE:
            return False
        return now.boot != self.boot or abs(now.born - self.born) >= _SAME_S


def _read(record_file: Path) -> _Record | None:
    try:
        return _Record(**json.loads(record_file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none, or not whole
        return None


def _wait_ready(service: Service, process: psutil.Process) -> None:
    deadline = time.monotonic() + service.start_timeout_s
    while not (healthy(service.health) and _listens(process, service.port)):
        if not alive(process):
            raise ProcessError(f"{service.name}: ended while it started; {tail(service.log)}")
        if time.monotonic() > deadline:
            limit = f"{service.start_timeout_s:.0f} s"
            raise ProcessError(f"{service.name}: {service.health} did not answer in {limit}; {tail(service.log)}")
        time.sleep(0.1)


def healthy(url: str) -> bool:
    """Whether `url` answers with 200 within two seconds."""
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK  # no proxy to ourselves
    except (httpx.TransportError, httpx.InvalidURL):
        return False


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether it, or what it started, has the port: another program may have taken it meanwhile, and answer there."""
    for each in (process, *_session(process.pid)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found = each.net_connections(kind="tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found):
                return True
    return False


def _end(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    for number, patience in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
        for process in processes:
            send(process, number)
        if wait_gone(processes, patience):
            break
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # where it is our own child: leave no zombie


def _session(leader: int) -> list[psutil.Process]:
    """The other processes of the session that `leader` was started in."""
    return [each for each in psutil.process_iter() if each.pid != leader and _session_id(each.pid) == leader]


def _session_id(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _orphans(record: _Record | None) -> list[psutil.Process]:
    """What a killed leader left. Its id is given to nobody else while its session lasts."""
    if record is None or record.is_anothers():
        return []
    return [each for each in _session(record.pid) if alive(each)]


def _holder(port: int) -> str:
    """Who listens there, where this user may know."""
    try:
        listening = [
            c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        ]
        process = next((psutil.Process(c.pid) for c in listening if c.pid), None)
        return f" by process {process.pid} ({' '.join(process.cmdline())[:120]})" if process else ""
    except _GONE:
        return ""


def python(*arguments: str) -> tuple[str, ...]:
    """A command line for this interpreter."""
    return (sys.executable, *arguments)
