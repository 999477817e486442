"""vLLM servers of this machine: start, find, stop. Each is a program of its own that outlives this process.

A server runs from an environment of its own (`RUVLLM_VLLM_PYTHON`, else .venv-vllm), since vLLM cannot share one with
Prefect and MLflow. Knows nothing of prompts.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ruvllm import process
from ruvllm.errors import InferenceError, InputError, ModelFileError, ProcessError, UnknownTierError
from ruvllm.inference.vllm_command import QUANTISATIONS, Plan, command, environment
from ruvllm.inference.vllm_http import Server
from ruvllm.inference.vllm_settings import own_key_file, read_key
from ruvllm.process import Service
from ruvllm.progress import Progress, silent
from ruvllm.settings import PROJECT_ROOT, Settings

START_S = 900.0  # imports, weights from a cold disk, and kernels that are compiled at the first token
MAX_REPLICAS = 8
_DONE_S = 5.0


@dataclass(frozen=True)
class Running:
    """A server as its record says, and whether it lives."""

    name: str
    url: str
    folder: str
    pid: int | None
    log: Path
    answers: bool


def interpreter(settings: Settings) -> Path:
    """The Python that has vLLM.

    Raises:
        ProcessError: there is none.
    """
    chosen = Path(settings.vllm_python).expanduser() if settings.vllm_python else _usual_python()
    if not chosen.is_file():
        raise ProcessError(
            f"vLLM: no interpreter at {chosen}; run `infra/vllm.sh` (3.4 GB, about 4 minutes), or name one that has "
            "vLLM with RUVLLM_VLLM_PYTHON"
        )
    return chosen.absolute()  # not resolved: a virtual environment's python is a link out of it


def _usual_python() -> Path:
    return PROJECT_ROOT / ".venv-vllm" / "bin" / "python"


def checkpoint(what: str, settings: Settings) -> tuple[str, Path]:
    """(served name, folder) of a tier by its name, or of a folder by its path.

    Raises:
        ModelFileError: there is no checkpoint of safetensors.
        UnknownTierError: neither a tier nor a folder.
    """
    from ruvllm.inference.tiers import load_catalogue

    folder = Path(what).expanduser()
    if folder.is_dir():
        return folder.absolute().name, _checked(folder.absolute())
    tiers = {tier.name: tier for found in load_catalogue().values() for tier in found if tier.repository}
    for name, tier in tiers.items():
        if what.lower() in (name, name.partition("-")[2]):
            return name, _checked(settings.models_dir / name, tier.repository.removesuffix("-GGUF"))
    raise UnknownTierError(f"{what!r}: neither a folder nor a tier; the tiers are {', '.join(tiers)}")


def _checked(folder: Path, repository: str = "") -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        source = (
            f"; put {repository} from the hub there, or give the path of a folder that has it" if repository else ""
        )
        raise ModelFileError(f"checkpoint {folder}: want config.json and *.safetensors in it{source}")
    return folder


def checked_name(name: str) -> str:
    """
    Raises:
        InputError: `name` cannot name a file and a tier in RUVLLM_VLLM.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(
            f"name: got {name!r}, want up to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def quantisation(wanted: str, name: str, n_ctx: int, gpu: bool) -> tuple[str, str]:
    """(quantisation, why) for this machine.

    Raises:
        InputError: no such quantisation.
    """
    if wanted not in QUANTISATIONS:
        raise InputError(f"quantisation: got {wanted!r}, want one of {', '.join(QUANTISATIONS)}")
    if wanted != "auto":
        return wanted, f"{wanted}: as asked for"
    if not gpu:
        return "none", "none: vLLM serves 16-bit weights on a CPU"
    return _for_gpu(name, n_ctx)


def _for_gpu(name: str, n_ctx: int) -> tuple[str, str]:
    from ruvllm.inference.machine import this_machine
    from ruvllm.inference.quantisation import select_gpu
    from ruvllm.inference.shapes import find_shape

    try:
        selection = select_gpu(find_shape(name), this_machine(with_gpus=True), n_ctx)
    except UnknownTierError:
        return "none", f"none: the shape of {name} is not known, so its size is not either"
    return selection.quantisation, selection.reason


def has_gpu() -> bool:
    """Whether NVIDIA's driver offers a card here."""
    return Path("/dev/nvidia0").exists()


def ensure_key(settings: Settings) -> str:
    """The key of this checkout's servers, made at the first call and readable by its owner alone."""
    path = own_key_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with process.lock(path.with_suffix(".lock"), 10.0):
        if not path.is_file():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            partial.write_text(f"{secrets.token_urlsafe(32)}\n")
            partial.replace(path)
    return read_key(path)


def up(plan: Plan, settings: Settings, place: int = 0, progress: Progress = silent) -> Running:
    """The server `plan` as the tier's replica number `place`, ready to answer. Where it runs, it is left as it is.

    Raises:
        ProcessError: no interpreter has vLLM, it ended, or it was not ready in time; it is then stopped again.
    """
    key = ensure_key(settings)
    service = _service(plan, settings, place, key)
    progress(0, 3, "starting")
    _record(service, plan)
    process.start(service)
    try:
        progress(1, 3, "first token")
        _first_token(plan, key)
    except BaseException:  # Ctrl-C, too, leaves nothing half-started
        process.stop(service.pid_file)
        raise
    progress(3, 3, plan.url)
    return _seen(_record_file(service))


def _service(plan: Plan, settings: Settings, place: int, key: str) -> Service:
    cache = settings.state_dir / "vllm"
    cache.mkdir(parents=True, exist_ok=True)
    return Service(
        name=f"vllm {plan.name}",
        argv=command(plan, interpreter(settings)),
        port=plan.port,
        health=f"{plan.url}/health",
        log=settings.run_dir / f"vllm-{plan.name}-{place}.log",
        env=environment(plan, key, cache),
        setting="--port",
        folder=cache,
        start_timeout_s=START_S,
    )


def _first_token(plan: Plan, key: str) -> None:
    """/health answers before the kernels are there: the first request would wait for them, half a minute on a CPU.

    Raises:
        ProcessError: it serves another model, or cannot answer.
    """
    server = Server(plan.url, key, limit=2)
    deadline = time.monotonic() + START_S
    try:
        served = [each["id"] for each in server.get("/v1/models", deadline)["data"]]
        if plan.name not in served:
            raise ProcessError(f"vllm {plan.name}: port {plan.port} serves {served}; choose another with --port")
        body = {"model": plan.name, "prompt": [1], "max_tokens": 1, "temperature": 0.0}
        server.post("/v1/completions", body, deadline)
    except (InferenceError, InputError, KeyError, TypeError) as error:
        raise ProcessError(f"vllm {plan.name}: it started but does not answer: {error}") from error
    finally:
        server.close()


def port_of(settings: Settings, name: str, place: int, wanted: int = 0) -> int:
    """The port asked for, else that of the server that runs in this place, else one that is free now."""
    running = [each for each in _here(settings) if each.pid and each.log.stem == f"vllm-{name}-{place}"]
    if wanted:
        return wanted
    return int(running[0].url.rpartition(":")[2]) if running else _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def down(settings: Settings, name: str = "", progress: Progress = silent) -> list[str]:
    """Stops the servers of `name`, or all of them; the names of those that ran."""
    chosen = [each for each in _here(settings) if not name or each.name == name]
    stopped = []
    for done, each in enumerate(chosen):
        progress(done, len(chosen), each.name)
        if process.stop(process.pid_file(each.log)):
            stopped.append(f"{each.name} at {each.url}")
        each.log.with_suffix(".json").unlink(missing_ok=True)
    return stopped


def status(settings: Settings) -> list[Running]:
    """Every server that was started here and not stopped, by name; asks each whether it answers."""
    return _here(settings, ask=True)


def setting(running: list[Running]) -> str:
    """RUVLLM_VLLM for the servers that run."""
    urls: dict[str, list[str]] = {}
    for each in running:
        if each.pid is not None:
            urls.setdefault(each.name, []).append(each.url)
    return ";".join(f"{name}={','.join(found)}" for name, found in urls.items())


def _here(settings: Settings, ask: bool = False) -> list[Running]:
    records = sorted(settings.run_dir.glob("vllm-*.json"))
    return [_seen(path, ask) for path in records if not path.name.endswith(".pid.json")]


def _seen(record: Path, ask: bool = True) -> Running:
    try:
        plan = json.loads(record.read_text(encoding="utf-8"))
        name, port, folder = str(plan["name"]), int(plan["port"]), str(plan["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProcessError(f"{record}: is not a record of a vLLM server ({error!r}); remove it") from error
    log = record.with_suffix(".log")
    found, url = process.find(process.pid_file(log)), f"http://127.0.0.1:{port}"
    return Running(name, url, folder, found.pid if found else None, log, bool(ask and found and _answers(url)))


def _answers(url: str) -> bool:
    server = Server(url, limit=1)
    try:
        return server.healthy(time.monotonic() + _DONE_S)
    finally:
        server.close()


def _record_file(service: Service) -> Path:
    return service.log.with_suffix(".json")


def _record(service: Service, plan: Plan) -> None:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    partial = service.log.with_suffix(".partial")
    partial.write_text(json.dumps({**asdict(plan), "folder": str(plan.folder)}), encoding="utf-8")
    partial.replace(_record_file(service))
