"""The flows' deployments: on their schedules, alike in both files, started by themselves, and heard when they fail."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import ParameterTypeError
from prefect.schedules import Cron
from prefect.utilities.importtools import import_object

from flows.alarms import ensure_alarms, triggers
from flows.deployments import STEPS, deployments, schedules
from flows.nightly import nightly
from ruvllm.errors import SettingsError
from ruvllm.settings import PROJECT_ROOT, Settings

BOUND_S = 120.0  # for what a server does by itself; it is waited for, not slept through


def test_a_served_nightly_gets_runs_from_its_cron(prefect_client):
    """SQLAlchemy 2.1 breaks this silently: the server is healthy and never creates a run."""
    deployment = nightly.to_deployment("cron-test", schedule=Cron("0 2 * * *", timezone="Europe/Berlin"))
    deployment_id = deployment.apply()
    with get_client(sync_client=True) as client:
        ends = time.monotonic() + 60
        while not (runs := _runs(client, deployment_id)) and time.monotonic() < ends:
            time.sleep(0.2)
        client.delete_deployment(deployment_id)
    assert runs
    assert all(run.state.is_scheduled() for run in runs)


def _runs(client, deployment_id):
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])))


# -- the two lists


def test_the_file_and_the_process_serve_the_same(settings: Settings) -> None:
    """prefect.yaml is for work pools, flows/deployments.py for one process: same names, flows, times, limits."""
    here = replace(settings, nightly_cron="30 1 * * *", timezone="Europe/Berlin")
    text = (PROJECT_ROOT / "prefect.yaml").read_text()
    for variable, value in (("NIGHTLY_CRON", here.nightly_cron), ("TIMEZONE", here.timezone)):  # as prefect deploy does
        text = text.replace(f"{{{{ $RUVLLM_{variable} }}}}", value)
    document = yaml.safe_load(text)
    in_file = {each["name"]: each for each in document["deployments"]}
    assert {name: _described(each["schedules"][0]) for name, each in in_file.items()} == {
        name: _of(schedule) for name, (_, schedule) in schedules(here).items()
    }
    for name, (served, _) in schedules(here).items():
        assert import_object(in_file[name]["entrypoint"]).name == served.name
        assert in_file[name]["concurrency_limit"]["limit"] == 1
        assert in_file[name]["work_pool"]["name"] == "ruvllm"


def _described(schedule: dict[str, Any]) -> tuple[Any, ...]:
    return schedule.get("cron"), schedule.get("interval"), schedule.get("timezone")


def _of(schedule: Any) -> tuple[Any, ...]:
    interval = schedule.interval.total_seconds() if schedule.interval else None
    return schedule.cron, interval, schedule.timezone if schedule.cron else None


def test_every_deployment_runs_one_at_a_time(settings: Settings) -> None:
    made = {each.name: each for each in deployments(replace(settings, timezone="Europe/Berlin"))}
    assert set(made) == {*schedules(settings), *(step.name for step in STEPS)}
    assert {each.concurrency_limit for each in made.values()} == {1}
    (nightly_schedule,) = made["nightly"].schedules
    assert (nightly_schedule.schedule.cron, nightly_schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")


def test_a_form_can_show_every_parameter_and_wrong_ones_are_refused() -> None:
    properties = nightly.parameters.properties
    assert {name: p.get("default") for name, p in properties.items()} == {
        "questions": 24, "budget_s": None, "approve_as": "", "sample": None, "cycle_id": "",
    }  # fmt: skip
    assert nightly.parameters.required == []
    assert nightly.validate_parameters({"questions": 3})["questions"] == 3
    for wrong in ({"questions": 0}, {"budget_s": -1}, {"sample": "many"}, {"approve_as": "x" * 300}):
        with pytest.raises(ParameterTypeError):
            nightly.validate_parameters(wrong)


# -- started by itself


def test_a_cron_of_seconds_starts_a_run_by_itself(prefect_client: str, tmp_path: Path) -> None:
    """Nobody asks for a run: the server makes it, the serving process takes it, twice."""
    out, log = tmp_path / "ran", tmp_path / "log"
    environment = {
        **os.environ, "PREFECT_API_URL": prefect_client, "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_RUNNER_POLL_FREQUENCY": "1", "PYTHONPATH": str(PROJECT_ROOT),
    }  # fmt: skip
    with log.open("w") as file:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.ticking", str(out)], env=environment, cwd=PROJECT_ROOT,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        ends = time.monotonic() + BOUND_S
        while not (out.exists() and len(out.read_text().splitlines()) >= 2):
            assert program.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.2)
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


# -- alarms


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[tuple[Path, queue.Queue[dict[str, Any]]]]:
    """An address in a file, and what was sent to it."""
    heard: queue.Queue[dict[str, Any]] = queue.Queue()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        file = tmp_path / "webhook"
        file.write_text(f"http://127.0.0.1:{server.server_port}/alarm?token=secret\n")
        yield file, heard
        server.shutdown()
        thread.join()


def test_a_failed_run_calls_the_webhook(
    prefect_client: str, webhook: tuple[Path, queue.Queue[dict[str, Any]]], settings: Settings
) -> None:
    file, heard = webhook
    named = ensure_alarms(replace(settings, alert_webhook_file=str(file)))
    assert ensure_alarms(replace(settings, alert_webhook_file=str(file))) == named  # made anew, not twice

    @flow(name="breaks")
    def breaks() -> None:
        raise ValueError('no "room" left')

    with get_client(sync_client=True) as client:
        assert [len(client.read_automations_by_name(name)) for name in named] == [1, 1, 1]
        message, ends = None, time.monotonic() + BOUND_S
        while message is None and time.monotonic() < ends:  # an automation is loaded a moment after it was made
            with pytest.raises(ValueError, match=r"no .room. left"):
                breaks()
            try:
                message = heard.get(timeout=10)
            except queue.Empty:
                continue
        for name in named:
            for found in client.read_automations_by_name(name):
                client.delete_automation(found.id)
    assert message is not None
    assert (message["alarm"], message["flow"], message["state"]) == ("failed", "breaks", "Failed")
    assert 'no "room" left' in message["message"]


def test_alarms_watch_for_late_failed_and_stuck_runs() -> None:
    found = triggers()
    assert set(found) == {"failed", "late", "stuck"}
    assert found["late"].expect == {"prefect.flow-run.Late"}
    assert found["stuck"].after == {"prefect.flow-run.Running"}
    assert found["stuck"].within.total_seconds() == 6 * 3600


def test_an_address_that_will_not_do_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path / "nowhere"))):
        ensure_alarms(replace(settings, alert_webhook_file=str(tmp_path / "nowhere")))
    (tmp_path / "file").write_text("ftp://x")
    with pytest.raises(SettingsError, match="holds no http"):
        ensure_alarms(replace(settings, alert_webhook_file=str(tmp_path / "file")))
