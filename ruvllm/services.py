"""What `make up`, `make down` and `make status` keep running: Postgres, Prefect, MLflow, the flows and the gateway.

Every one can be started, found and stopped by itself, any number of times. Knows nothing of what flows or gateway do.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ruvllm import process
from ruvllm.database import database_url
from ruvllm.database.dsn import shown, sqlalchemy_url
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.ports import Ports, Urls, has_remote_mlflow, leave_taken_port, ports, urls
from ruvllm.process import Service
from ruvllm.progress import Progress, silent
from ruvllm.settings import PROJECT_ROOT, Settings, to_environment

__all__ = [
    "Ports",
    "Service",
    "ServiceStatus",
    "Urls",
    "down",
    "ensure_prefect",
    "gateway_running",
    "leaving_nothing",
    "ports",
    "postgres_as_found",
    "prefect_as_found",
    "prefect_environment",
    "prefect_running",
    "status",
    "stop_service",
    "up",
    "urls",
]

NAMES = ("postgres", "prefect", "mlflow", "flows", "gateway")  # in the order of their start
_LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class ServiceStatus:
    name: str
    running: bool
    pid: int | None
    url: str
    log: Path
    note: str = ""


def up(settings: Settings, progress: Progress = silent, foreground: bool = False) -> None:
    """Start everything that does not run. In the foreground: stay until SIGINT or SIGTERM, then stop everything.

    Raises:
        DatabaseError, ProcessError: one did not start; what was started before it goes on running.
    """
    if not foreground:
        return _start_all(settings, progress)
    with _until_signal():
        try:
            _start_all(settings, progress)
            threading.Event().wait()
        finally:
            down(settings, progress)


def _start_all(settings: Settings, progress: Progress) -> None:
    for done, name in enumerate(NAMES):
        progress(done, len(NAMES), name)
        start_service(settings, name)
    progress(len(NAMES), len(NAMES), "all run")


def down(settings: Settings, progress: Progress = silent) -> None:
    """Stop everything, the last started first."""
    for done, name in enumerate(reversed(NAMES)):
        progress(done, len(NAMES), name)
        stop_service(settings, name)
    progress(len(NAMES), len(NAMES), "all stopped")


def status(settings: Settings) -> list[ServiceStatus]:
    """What runs, without starting or changing anything but the choice of ports."""
    return [_postgres_status(settings)] + [_status(settings, name) for name in NAMES[1:]]


def start_service(settings: Settings, name: str) -> None:
    """Start `name`, and Postgres where it needs it; does nothing where it runs already, or is the user's own."""
    if name == "postgres":
        database_url(settings)
    elif not is_elsewhere(settings, name):
        if not is_running(settings, name):
            leave_taken_port(settings, name)
        process.start(_SERVICES[name](settings))


def is_elsewhere(settings: Settings, name: str) -> bool:
    """Whether a setting names one of the user's own, which is not ours to start or stop."""
    return (name == "mlflow" and has_remote_mlflow(settings)) or (name == "prefect" and bool(settings.prefect_api_url))


def stop_service(settings: Settings, name: str) -> None:
    """Stop `name`; does nothing where it does not run, or is the user's own."""
    if name != "postgres":
        process.stop(_pid_file(settings, name))
    elif not settings.database_url:
        EmbeddedPostgres(settings).stop()


def is_running(settings: Settings, name: str) -> bool:
    """Whether a service of ours, other than Postgres, lives."""
    return process.find(_pid_file(settings, name)) is not None


def ensure_prefect(settings: Settings) -> str:
    """The URL of the server's API; Postgres and the server are started where they do not run and are ours."""
    start_service(settings, "prefect")
    return urls(settings).prefect_api


@contextmanager
def prefect_running(settings: Settings) -> Iterator[str]:
    """The API's URL; a server that this started is stopped after the block. Postgres goes on running."""
    if settings.prefect_api_url:
        yield settings.prefect_api_url
        return
    with _running(settings, "prefect"):
        yield urls(settings).prefect_api


@contextmanager
def gateway_running(settings: Settings) -> Iterator[str]:
    """The gateway's URL; a gateway that this started is stopped after the block. One elsewhere is left alone."""
    if settings.gateway_url:
        yield settings.gateway_url
        return
    with _running(settings, "gateway"):
        yield urls(settings).gateway


@contextmanager
def _running(settings: Settings, name: str) -> Iterator[None]:
    ran_before = is_running(settings, name)
    start_service(settings, name)
    try:
        yield
    finally:
        if not ran_before:
            stop_service(settings, name)


@contextmanager
def postgres_as_found(settings: Settings) -> Iterator[None]:
    """The embedded server is stopped after the block where it did not run before, and nothing of ours needs it."""
    server = None if settings.database_url else EmbeddedPostgres(settings)
    ran_before = server is None or server.status().running
    try:
        yield
    finally:
        if server is not None and not ran_before and not any(is_running(settings, name) for name in NAMES[1:]):
            server.stop()


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Within the block what ends a process at once is a KeyboardInterrupt, so that what it started is stopped.

    That is SIGTERM, and SIGHUP of a terminal that closes. The first counts; while things are stopped a second is not
    heard. Signals that have a handler, or are ignored (nohup), stay as they are, and so does a thread.
    """
    heard = _deadly_signals() if threading.current_thread() is threading.main_thread() else []

    def interrupt(*_: object) -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


def _deadly_signals() -> list[signal.Signals]:
    return [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]


@contextmanager
def prefect_as_found(settings: Settings) -> Iterator[str]:
    """`prefect_running`, with Postgres as it was found too, and nothing left behind by a SIGTERM."""
    with leaving_nothing(), postgres_as_found(settings), prefect_running(settings) as api_url:
        yield api_url


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What keeps Prefect, server and client, local, quiet and inside the state directory."""
    return {
        "PREFECT_HOME": str(settings.state_dir / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }


def prefect_database(settings: Settings) -> str:
    """A database of the embedded server; with the user's own Postgres, which it must not be written into, sqlite.

    Not starting Postgres twice: the caller of this is about to start the Prefect server, which needs it to run.
    """
    if settings.database_url:
        return f"sqlite+aiosqlite:///{settings.state_dir / 'prefect' / 'prefect.db'}"
    server = EmbeddedPostgres(settings)
    server.ensure()
    return sqlalchemy_url(server.create_database("prefect", ("pg_trgm",)), "asyncpg")


def _prefect(settings: Settings) -> Service:
    port = ports(settings).prefect
    folder = settings.state_dir / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    return Service(
        name="prefect",
        argv=process.python("-m", "prefect", "server", "start", "--host", _LOCAL, "--port", str(port)),
        port=port,
        health=f"http://{_LOCAL}:{port}/api/health",
        log=_log(settings, "prefect"),
        env={
            **_environment(settings),
            **prefect_environment(settings),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(settings),
            "PREFECT_SERVER_UI_API_URL": f"http://{_LOCAL}:{port}/api",  # else the page asks port 4200
        },
        setting="RUVLLM_PREFECT_PORT",
    )


def _mlflow(settings: Settings) -> Service:
    port = ports(settings).mlflow
    artifacts = settings.state_dir / "mlflow" / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    return Service(
        name="mlflow",
        argv=process.python(
            *("-m", "mlflow", "server", "--host", _LOCAL, "--port", str(port), "--workers", "1"),
            *("--artifacts-destination", str(artifacts), "--serve-artifacts"),
        ),
        port=port,
        health=f"http://{_LOCAL}:{port}/health",
        log=_log(settings, "mlflow"),
        env={
            **_environment(settings),
            "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,  # not an argument: it may hold a password
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes more, for jobs that we have not
        },
        setting="RUVLLM_MLFLOW_PORT",
    )


def _flows(settings: Settings) -> Service:
    """Healthy as long as its runner asks the Prefect server for scheduled runs."""
    api, port = ensure_prefect(settings), ports(settings).flows
    return Service(
        name="flows",
        argv=process.python("-m", "flows.deployments"),
        port=port,
        health=f"http://{_LOCAL}:{port}/health",
        log=_log(settings, "flows"),
        env={
            **_environment(settings),
            **prefect_environment(settings),
            **_prefect_key(settings),
            "PREFECT_API_URL": api,
            "PREFECT_RUNNER_SERVER_ENABLE": "true",
            "PREFECT_RUNNER_SERVER_HOST": _LOCAL,
            "PREFECT_RUNNER_SERVER_PORT": str(port),
        },
        setting=f"the entry 'flows' of {settings.run_dir / 'ports.json'}",
        folder=PROJECT_ROOT,
    )


def _gateway(settings: Settings) -> Service:
    database_url(settings)
    port = ports(settings).gateway
    return Service(
        name="gateway",
        argv=process.python("-m", "ruvllm.serving"),
        port=port,
        health=f"{urls(settings).gateway}/healthz",
        log=_log(settings, "gateway"),
        env=_environment(replace(settings, gateway_port=port)),
        setting="RUVLLM_GATEWAY_PORT",
        host=settings.host,
        folder=PROJECT_ROOT,
    )


_SERVICES = {"prefect": _prefect, "mlflow": _mlflow, "flows": _flows, "gateway": _gateway}


def _environment(settings: Settings) -> dict[str, str]:
    """Ours, with the settings as they are here (a flag may have changed one) and no Prefect or MLflow of the user's."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return {**ours, **to_environment(settings)}


def _prefect_key(settings: Settings) -> dict[str, str]:
    """What the user's own server asks for; ours, on the loopback, asks for nothing."""
    named = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY") if settings.prefect_api_url else ()
    return {name: os.environ[name] for name in named if name in os.environ}


def _log(settings: Settings, name: str) -> Path:
    return settings.run_dir / f"{name}.log"


def _pid_file(settings: Settings, name: str) -> Path:
    return process.pid_file(_log(settings, name))


def _status(settings: Settings, name: str) -> ServiceStatus:
    found = process.find(_pid_file(settings, name))
    of = urls(settings)
    url = {"prefect": of.prefect, "mlflow": of.mlflow, "gateway": of.gateway}.get(name, "")
    note = ""
    if name == "prefect" and settings.prefect_api_url:
        note = "your own, by RUVLLM_PREFECT_API_URL"
    elif name == "prefect" and settings.database_url:
        note = "on sqlite, since DATABASE_URL is your own"
    if name == "mlflow" and has_remote_mlflow(settings):
        note = "your own, by MLFLOW_TRACKING_URI"
    return ServiceStatus(name, found is not None, found.pid if found else None, url, _log(settings, name), note)


def _postgres_status(settings: Settings) -> ServiceStatus:
    log = EmbeddedPostgres(settings).log
    if settings.database_url:
        return ServiceStatus("postgres", True, None, shown(settings.database_url), log, "your own, by DATABASE_URL")
    found = EmbeddedPostgres(settings).status()
    return ServiceStatus("postgres", found.running, found.pid, found.dsn, log, f"data in {found.data_dir}")


@contextmanager
def _until_signal() -> Iterator[None]:
    """Ends the block, and is no error, on SIGINT or SIGTERM.

    SIGINT too: a shell starts its background jobs with that signal ignored, and Python then leaves it so.
    """
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
