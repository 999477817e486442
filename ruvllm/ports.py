"""The ports of this checkout: a setting's, or one chosen once and kept. Starts nothing."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, fields

from ruvllm.process import lock, port_is_free
from ruvllm.settings import Settings


@dataclass(frozen=True)
class Ports:
    """The defaults are what a port is where it is free when it is chosen."""

    gateway: int = 8080
    prefect: int = 4200
    mlflow: int = 5000
    flows: int = 8081  # only answers whether the flows are being served


@dataclass(frozen=True)
class Urls:
    gateway: str
    prefect: str
    mlflow: str

    @property
    def prefect_api(self) -> str:
        return f"{self.prefect}/api"


def ports(settings: Settings) -> Ports:
    """Settings win over what is kept; what is neither is chosen now and kept in `run_dir/ports.json`."""
    return Ports(**{**_chosen(settings), **_set(settings)})


def leave_taken_port(settings: Settings, name: str) -> None:
    """Choose another port for the service `name`, which does not run, where somebody took the one that was chosen.

    Two checkouts that chose while the other was down would clash for ever. A port that a setting names stays.
    """
    if name not in _set(settings) and not port_is_free(getattr(ports(settings), name)):
        _chosen(settings, anew=name)


def _chosen(settings: Settings, anew: str = "") -> dict[str, int]:
    """The ports that are kept, completed, all but the one to choose `anew`."""
    kept_in = settings.run_dir / "ports.json"
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with lock(settings.run_dir / "ports.lock", 10.0):
        kept: dict[str, int] = json.loads(kept_in.read_text()) if kept_in.exists() else {}
        chosen = {name: port for name, port in kept.items() if name != anew}
        for name, default in asdict(Ports()).items():
            if name not in chosen:
                chosen[name] = _choose(default, set(chosen.values()))
        if chosen != kept:
            partial = kept_in.with_suffix(".partial")
            partial.write_text(json.dumps(chosen))
            partial.replace(kept_in)
    return chosen


def urls(settings: Settings) -> Urls:
    """Where the pages and the API are once `make up` has run."""
    of = ports(settings)
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  # compared, not bound
    mlflow = settings.mlflow_tracking_uri if has_remote_mlflow(settings) else f"http://127.0.0.1:{of.mlflow}"
    prefect = settings.prefect_api_url.rstrip("/").removesuffix("/api") or f"http://127.0.0.1:{of.prefect}"
    return Urls(f"http://{host}:{of.gateway}", prefect, mlflow)


def has_remote_mlflow(settings: Settings) -> bool:
    """Whether MLFLOW_TRACKING_URI is a server of the user's own."""
    return settings.mlflow_tracking_uri.startswith(("http://", "https://"))


def _set(settings: Settings) -> dict[str, int]:
    values = asdict(settings)
    return {field.name: port for field in fields(Ports) if (port := values.get(f"{field.name}_port", 0))}


def _choose(default: int, taken: set[int]) -> int:
    if default not in taken and port_is_free(default):
        return default
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
