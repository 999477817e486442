"""The units start commands that are there, and a timer has its service."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from typing import Any

import pytest

from tests.infra.infra_files import INFRA, command_tree, verbs_named

UNITS = sorted((INFRA / "systemd").iterdir())


def read(path: Any) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("unit", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
def test_services_start_verbs_of_ours(unit: Any) -> None:
    service = read(unit)["Service"]
    command = service["ExecStart"]
    (verb, *_), *_ = verbs_named(command.replace("/opt/ruvllm/.venv/bin/", ""))
    assert verb in command_tree(), command
    assert service["User"] == "ruvllm"
    assert service["NoNewPrivileges"] == "true"


def test_a_timer_has_its_service() -> None:
    timers = [path for path in UNITS if path.suffix == ".timer"]
    assert timers
    assert [path for path in timers if not path.with_suffix(".service").exists()] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_reads_the_timer_as_we_do() -> None:
    for path in UNITS:
        if path.suffix == ".timer":
            when = read(path)["Timer"]["OnCalendar"]
            subprocess.run(["systemd-analyze", "calendar", when], check=True, capture_output=True)
