"""Services with real child processes, small ones: `python -m http.server` stands for each of ours."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from ruvllm import process, services
from ruvllm.errors import ProcessError
from ruvllm.ports import Ports, leave_taken_port, ports
from ruvllm.process import Service
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings, to_environment

FOREIGN = "postgresql://someone:secret@db.example/theirs"  # never connected to


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def web(folder: Path, name: str = "web", **changes: object) -> Service:
    port = free_port()
    service = Service(
        name=name,
        argv=(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)),
        port=port,
        health=f"http://127.0.0.1:{port}/",
        log=folder / f"{name}.log",
        env={"MARK": "ours"},
        setting="RUVLLM_WEB_PORT",
        start_timeout_s=20.0,
        folder=folder,
    )
    return replace(service, **changes)  # type: ignore[arg-type]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = web(tmp_path)
    yield service
    process.stop(service.pid_file, 5.0)


def script(service: Service, text: str) -> Service:
    return replace(service, argv=("/bin/sh", "-c", text))


def test_starts_once_detached_and_stops_once(service: Service) -> None:
    (service.folder / "here").write_text("yes")
    running = process.start(service)
    assert process.start(service) == running
    assert os.getsid(running.pid) == running.pid != os.getsid(0)
    assert running.environ()["MARK"] == "ours"
    assert "PATH" not in running.environ()
    assert "here" in httpx.get(service.health).text
    assert process.stop(service.pid_file)
    assert not process.alive(running)
    assert not process.stop(service.pid_file)
    assert not service.pid_file.exists()


def test_two_starters_make_one(service: Service) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process.start, (service, service))
    assert first == second


def test_a_taken_port_names_port_setting_and_holder(service: Service) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", service.port))
        holder.listen()
        with pytest.raises(ProcessError, match=f"port {service.port} .*{os.getpid()}.*RUVLLM_WEB_PORT"):
            process.start(service)
    assert not service.pid_file.exists()


def test_anothers_answer_on_the_port_is_not_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that start at once both find the port free; the later one must not speak to the other's server."""
    monkeypatch.setattr(process, "check_port", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", service.port), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            with pytest.raises(ProcessError, match="did not answer"):
                process.start(replace(script(service, "exec sleep 60"), start_timeout_s=0.4))
        finally:
            other.shutdown()


def test_one_that_ends_shows_the_end_of_its_log(service: Service) -> None:
    with pytest.raises(ProcessError, match=r"ended while it started(.|\n)*no such database"):
        process.start(script(service, "echo no such database >&2; exit 3"))
    assert not service.pid_file.exists()


def test_one_that_is_never_ready_is_stopped_again(service: Service) -> None:
    with pytest.raises(ProcessError, match=r"did not answer in 0 s(.|\n)*mine is \d+") as caught:
        process.start(replace(script(service, "echo mine is $$; exec sleep 60"), start_timeout_s=0.4))
    assert not psutil.pid_exists(int(str(caught.value).split("mine is ")[1]))


def test_a_reused_pid_is_left_alone(service: Service) -> None:
    """The pid is another program's by now, after a reboot or without one: here, this test's own."""
    ours = vars(process._Record.of(psutil.Process()))
    for change in ({"born": ours["born"] - 10}, {"boot": "the one before"}):
        service.pid_file.write_text(json.dumps({**ours, **change}))
        assert process.find(service.pid_file) is None
        assert not process.stop(service.pid_file)
    service.pid_file.write_text(json.dumps({**ours, **change}))
    assert process.start(service).pid != os.getpid()


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[]", '{"pid": 99999999, "born": 1.0, "boot": ""}'])
def test_a_broken_pid_file_is_no_process(service: Service, text: str) -> None:
    service.pid_file.write_text(text)
    assert process.find(service.pid_file) is None


def test_stop_ends_children_that_do_not_listen(service: Service) -> None:
    server = " ".join(service.argv)
    running = process.start(script(service, f"(trap '' TERM; {server}; true) & wait"))
    family = [running, *running.children(recursive=True)]
    assert len(family) >= 3
    process.stop(service.pid_file, 0.3)
    assert not any(process.alive(each) for each in family)


def test_children_of_a_killed_one_do_not_hold_its_port(service: Service) -> None:
    server = " ".join(service.argv)
    running = process.start(script(service, f"{server} & wait"))
    (child,) = running.children()
    running.kill()
    process.wait_gone([running], 5.0)
    assert process.start(service).pid != running.pid
    assert not process.alive(child)


# -- ports and settings


def test_ports_are_chosen_once_and_kept(settings: Settings) -> None:
    first = services.ports(settings)
    held = [socket.create_server(("127.0.0.1", first.gateway))]
    try:
        assert services.ports(settings) == first
        other = services.ports(replace(settings, state_dir=settings.state_dir.parent / "other checkout"))
    finally:
        held[0].close()
    assert other.gateway != first.gateway
    assert len({first.gateway, first.prefect, first.mlflow, first.flows}) == 4


def test_a_set_port_wins_and_is_not_kept(settings: Settings) -> None:
    chosen = services.ports(settings)
    assert services.ports(replace(settings, mlflow_port=5999)) == replace(chosen, mlflow=5999)
    assert services.ports(settings) == chosen


def test_urls_can_be_opened_from_here(settings: Settings) -> None:
    urls = services.urls(replace(settings, host="::", gateway_port=8088, mlflow_tracking_uri="https://ml.example"))
    assert (urls.gateway, urls.mlflow) == ("http://127.0.0.1:8088", "https://ml.example")


def test_settings_survive_the_environment_of_a_child(settings: Settings) -> None:
    changed = replace(settings, accept_gemma_terms=True, explore=0.25, database_url=FOREIGN, gateway_port=1234)
    assert load_settings(to_environment(changed)) == changed


def test_what_ours_are_started_with(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.example")
    theirs = replace(settings, database_url=FOREIGN)
    prefect, mlflow, gateway = (services._SERVICES[name](theirs) for name in ("prefect", "mlflow", "gateway"))
    assert "PREFECT_API_URL" not in prefect.env
    assert prefect.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"].startswith("sqlite+aiosqlite:///")
    assert prefect.env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert mlflow.env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert mlflow.env["MLFLOW_BACKEND_STORE_URI"] == settings.tracking_uri
    assert gateway.env["RUVLLM_GATEWAY_PORT"] == str(gateway.port)
    assert "secret" not in str([each.argv for each in (prefect, mlflow, gateway)])


# -- all of them


Builder = Callable[[Settings], Service]


@pytest.fixture
def small(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings under which every service is a small web server, and Postgres is the user's own."""
    settings = replace(settings, database_url=FOREIGN)
    settings.run_dir.mkdir(parents=True)
    stand_ins = {name: web(settings.run_dir, name) for name in services.NAMES[1:]}

    def builder(name: str) -> Builder:
        return lambda _: stand_ins[name]

    monkeypatch.setattr(services, "_SERVICES", {name: builder(name) for name in stand_ins})
    yield settings
    services.down(settings)


def test_up_status_down(small: Settings) -> None:
    seen: list[str] = []
    services.up(small, lambda done, total, note="": seen.append(f"{done}/{total} {note}"))
    first = services.status(small)
    services.up(small)
    assert services.status(small) == first
    assert [(each.name, each.running) for each in first] == [(name, True) for name in services.NAMES]
    assert seen == ["0/5 postgres", "1/5 prefect", "2/5 mlflow", "3/5 flows", "4/5 gateway", "5/5 all run"]
    assert "secret" not in str(first)
    services.down(small)
    services.down(small)
    assert [each.name for each in services.status(small) if each.running] == ["postgres"]  # the user's own


def test_a_remote_mlflow_is_not_started(small: Settings) -> None:
    remote = replace(small, mlflow_tracking_uri="https://ml.example")
    services.up(remote)
    status = {each.name: each for each in services.status(remote)}
    assert not status["mlflow"].running
    assert "your own" in status["mlflow"].note


def test_a_prefect_server_elsewhere_is_neither_started_nor_stopped(small: Settings) -> None:
    elsewhere = replace(small, prefect_api_url="https://prefect.example/api")
    services.up(elsewhere)
    assert not services.is_running(elsewhere, "prefect")
    assert "your own" in {each.name: each for each in services.status(elsewhere)}["prefect"].note
    assert services.ensure_prefect(elsewhere) == services.urls(elsewhere).prefect_api == "https://prefect.example/api"
    with services.prefect_running(elsewhere) as url:
        assert url == "https://prefect.example/api"
    assert not services.is_running(elsewhere, "prefect")


def test_what_ran_before_goes_on_running(small: Settings) -> None:
    with services.gateway_running(small):
        assert services.is_running(small, "gateway")
    assert not services.is_running(small, "gateway")
    services.start_service(small, "prefect")
    with services.prefect_running(small) as url:
        assert url.endswith("/api")
    assert services.is_running(small, "prefect")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(PROJECT_ROOT)!r}, {str(PROJECT_ROOT / "tests")!r}]
from dataclasses import replace
from ruvllm import services
from ruvllm.settings import load_settings
from test_services import web
settings = load_settings({{}}, state_dir=Path({str(tmp_path)!r}), database_url={FOREIGN!r})
settings.run_dir.mkdir()
stand_in = web(settings.run_dir, "gateway")
services.NAMES = ("gateway",)
services._SERVICES = {{"gateway": lambda _: stand_in}}
services.up(settings, lambda done, total, note="": print(note, flush=True), foreground=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(2)] == ["gateway", "all run"]
        running = process.find(tmp_path / "run" / "gateway.pid.json")
        assert running is not None
        child.send_signal(number)
        assert "all stopped" in child.stdout.read()
    assert child.returncode == 0
    assert not process.alive(running)


def test_a_real_prefect_server_on_our_postgres(prefect_api: str) -> None:
    assert httpx.get(f"{prefect_api}/health").json() is True
    flow = httpx.post(f"{prefect_api}/flows/", json={"name": "probe"})
    assert flow.status_code == 201
    assert "probe" in {flow["name"] for flow in httpx.post(f"{prefect_api}/flows/filter", json={}).json()}
    page = httpx.get(f"{prefect_api.removesuffix('/api')}/ui-settings").json()
    assert page["api_url"] == prefect_api  # whatever its port: the page asks this server, not the one at 4200


def test_the_default_ports_are_the_usual_ones() -> None:
    assert (Ports().gateway, Ports().prefect, Ports().mlflow) == (8080, 4200, 5000)


def test_a_chosen_port_that_somebody_took_meanwhile_is_left_and_a_set_one_is_not(settings: Settings) -> None:
    chosen = ports(settings).prefect
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", chosen))
        other.listen()
        leave_taken_port(settings, "prefect")
        assert ports(settings).prefect != chosen
        leave_taken_port(replace(settings, prefect_port=chosen), "prefect")
        assert ports(replace(settings, prefect_port=chosen)).prefect == chosen
