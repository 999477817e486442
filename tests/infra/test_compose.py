"""The compose file: closed to other machines, checked, pinned, its secrets in files, its commands ours."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ruvllm.registry.identities import read_identities
from tests.infra.infra_files import INFRA, command_tree, documents

FOLDER = INFRA / "compose"
(COMPOSE,) = documents(FOLDER / "compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
ONCE = {name for name, service in SERVICES.items() if service.get("restart") == "no"}  # they end when they are done


def make_secrets(folder: Path) -> str:
    done = subprocess.run(
        [FOLDER / "make-secrets.sh"],
        env={**os.environ, "FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_platform_is_all_there() -> None:
    assert set(SERVICES) == {
        "postgres", "prefect", "worker", "mlflow", "identities", "gateway", "vllm", "prometheus", "grafana",
    }  # fmt: skip
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["vllm"]


@pytest.mark.parametrize("name", SERVICES)
def test_each_is_pinned_checked_and_closed(name: str) -> None:
    service = SERVICES[name]
    image, _, tag = service["image"].partition(":")
    assert image
    assert re.search(r"\d+\.\d+", tag), service["image"]
    assert ("healthcheck" in service) == (name not in ONCE)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for other, condition in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert condition == {"condition": wanted}


@pytest.mark.parametrize("name", SERVICES)
def test_its_files_and_volumes_are_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (FOLDER / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", [name for name in SERVICES if SERVICES[name]["image"].startswith("ruvllm:")])
def test_our_containers_cannot_write_or_become_more(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    command = service["command"]
    if command[0] == "ruvllm":
        assert command[1] in command_tree()
    if command[0] == "python":
        assert importlib.util.find_spec(command[2]) is not None


def test_secrets_are_files_and_each_is_made(tmp_path: Path) -> None:
    """No variable holds a secret; what a service reads as one is declared, granted to it, and made by the script."""
    first = make_secrets(tmp_path / "secrets")
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= made
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "/run/secrets/" in str(value):
                assert Path(value).name in service["secrets"], (name, variable)
            else:
                assert not re.search(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|DATABASE_URL", variable), (name, variable)
    assert set(read_identities(tmp_path / "secrets" / "mlflow_identities")) == {"trainer", "promoter", "reviewer"}
    assert read_identities(tmp_path / "secrets" / "mlflow_admin")["admin"].username == "admin"
    assert "made" in first
    assert "://" not in first  # no secret is printed
    before = {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}
    assert make_secrets(tmp_path / "secrets") == ""
    assert {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()} == before
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_two_runs_make_different_passwords(tmp_path: Path) -> None:
    for name in "ab":
        make_secrets(tmp_path / name)
    assert (tmp_path / "a" / "postgres_password").read_text() != (tmp_path / "b" / "postgres_password").read_text()
    url = (tmp_path / "a" / "database_url").read_text()
    assert (tmp_path / "a" / "postgres_password").read_text() in url


# -- the image

DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text()


def test_the_image_is_built_in_stages_from_what_is_there() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert [name for _, name in stages] == ["build", "run"]
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image, _ in stages)
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text()
    for line in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert (INFRA.parent / source).exists(), source
            assert f"!{source.rstrip('/')}" in ignored, source
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["ruvllm"]
    assert "build-essential" not in DOCKERFILE.split(" AS run")[1]


def run_entrypoint(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [INFRA / "docker" / "entrypoint.sh", "sh", "-c", script], env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_entrypoint_reads_secrets_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p w%3D@h/db")
    script = 'echo "$DATABASE_URL|${DATABASE_URL_FILE-none}|$RUVLLM_VLLM_KEY_FILE"'
    done = run_entrypoint(script, DATABASE_URL_FILE=str(secret), RUVLLM_VLLM_KEY_FILE="/a/setting")
    assert done.stdout.strip() == "postgresql://u:p w%3D@h/db|none|/a/setting"


def test_the_entrypoint_names_a_secret_that_is_missing() -> None:
    done = run_entrypoint("echo started", DATABASE_URL_FILE="/nowhere/url")
    assert done.returncode == 1
    assert "DATABASE_URL_FILE: cannot read /nowhere/url" in done.stderr
    assert done.stdout == ""
