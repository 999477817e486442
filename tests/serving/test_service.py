"""The gateway's insides: bounded admission, following the champion, living on while Postgres or MLflow is away."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import OverloadedError, ProcessError
from ruvllm.process import healthy
from ruvllm.registry import ledger
from ruvllm.registry.fetch import sync_champion
from ruvllm.registry.ledger import NewRow
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.store import BundleStore
from ruvllm.serving.__main__ import listen, require_fast_parts
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.gateway import client_of, serving

CHAT = "/v1/chat/completions"
QUESTION = {"model": "auto", "messages": [{"role": "user", "content": "Hello?"}]}


def promote(database: Database, folder: Path, version: str, tiers: tuple[str, ...] | None = None) -> None:
    more = {} if tiers is None else {"tiers": tiers}
    sha256 = write_random_bundle(folder, version=f"router-{version}", seed=int(version), **more)
    with database.transaction() as connection:
        row = NewRow("promote", version, sha256, str(folder), "tester")
        ledger.append(connection, ledger.current(connection), row)


@pytest.fixture
def connected(answerer: FakeAnswerer, database: Database, settings: Settings) -> GatewayService:
    """A gateway whose Postgres is there."""
    return GatewayService(answerer, database, BundleStore(settings.router_dir), settings)


def test_past_slots_and_queue_requests_are_refused_at_once(
    answerer: FakeAnswerer, away: Database, settings: Settings
) -> None:
    answerer.gate = threading.Event()
    settings = replace(settings, queue=0)
    service = GatewayService(answerer, away, BundleStore(settings.router_dir), settings)
    with serving(settings, service) as url, client_of(url) as client, ThreadPoolExecutor(4) as threads:
        running = [threads.submit(client.post, CHAT, json=QUESTION) for _ in range(4)]  # two tiers, two each
        for _ in running:
            assert answerer.began.acquire(timeout=10)
        refused = client.post(CHAT, json=QUESTION)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "server_overloaded"
        assert client.get("/healthz").status_code == 200
        metrics = client.get("/metrics").text
        assert 'ruvllm_rejected_total{reason="overloaded"} 1.0' in metrics
        assert "ruvllm_inflight 4.0" in metrics
        answerer.gate.set()
        assert {future.result().status_code for future in running} == {200}
        assert client.post(CHAT, json=QUESTION).status_code == 200


def test_a_request_past_its_deadline_keeps_its_slot_until_it_is_done(
    service: GatewayService, answerer: FakeAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ruvllm.serving.service.GRACE_S", -service.settings.deadline_s)
    answerer.gate = threading.Event()

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await service.run(service.door.caller(None), lambda of: answerer.gate.wait(10))

    asyncio.run(ask())
    assert service.light.admission.state.running + service.light.admission.state.queued == 1
    answerer.gate.set()
    service.stop()
    assert service.light.admission.drained(10)


def test_after_its_end_a_gateway_admits_nothing(service: GatewayService, answerer: FakeAnswerer) -> None:
    service.stop()
    with pytest.raises(OverloadedError, match="shutting down"):
        asyncio.run(service.run(service.door.caller(None), lambda of: None))
    assert not service.state().ready
    assert answerer.settled == 1  # what waited in the outbox was settled once more


def test_the_gateway_follows_promotion_and_rollback(
    connected: GatewayService, database: Database, tmp_path: Path
) -> None:
    connected.sync()
    assert connected.state().router_version == ""
    for version in ("1", "2"):
        promote(database, tmp_path / version, version)
        connected.sync()
        assert connected.state().router_version == f"router-{version}"
    with database.transaction() as connection:
        first = ledger.history(connection)[0]
        row = NewRow("rollback", "1", first.sha256, first.artifact_uri, "tester")
        ledger.append(connection, ledger.current(connection), row)
    connected.sync()
    assert connected.state().router_version == "router-1"
    assert b'ruvllm_router_version_info{sha256="' + first.sha256.encode() in connected.metrics.render()
    assert connected.metrics.render().count(b"ruvllm_router_version_info{") == 1


def test_a_gateway_that_starts_while_postgres_and_mlflow_are_away_serves_the_cached_champion(
    service: GatewayService, database: Database, settings: Settings, tmp_path: Path
) -> None:
    promote(database, tmp_path / "artifacts", "1")
    sync_champion(database, BundleStore(settings.router_dir), settings)
    shutil.rmtree(tmp_path / "artifacts")  # MLflow's files are gone; `service` has no Postgres either
    with serving(settings, service) as url, client_of(url) as client:
        ready = client.get("/readyz")
        response = client.post(CHAT, json=QUESTION)
    assert response.headers["x-ruvllm-router-version"] == "router-1"
    assert (ready.status_code, ready.json()["router_version"]) == (200, "router-1")


def test_what_is_away_is_said_and_forgotten_when_it_is_back(
    service: GatewayService, connected: GatewayService, caplog: pytest.LogCaptureFixture
) -> None:
    service.sync()
    service.sync()
    assert [text.split(":")[0] for text in service.state().degraded] == ["database"]
    assert len([r for r in caplog.records if "database" in r.message]) == 1  # logged once, not every second
    service.database, service.door = connected.database, connected.door
    service.sync()
    assert service.state().degraded == ()


@pytest.mark.parametrize("fault", ["altered", "of another ladder"])
def test_a_champion_that_cannot_be_used_leaves_the_one_before(
    connected: GatewayService, database: Database, tmp_path: Path, fault: str
) -> None:
    promote(database, tmp_path / "1", "1")
    connected.sync()
    promote(database, tmp_path / "2", "2", ("other", "", "", "") if fault == "of another ladder" else None)
    if fault == "altered":
        (tmp_path / "2" / "router.safetensors").write_bytes(b"rot")
    connected.sync()
    connected.sync()
    assert connected.state().router_version == "router-1"
    assert connected.state().degraded[0].startswith("router: ")


def test_readiness_names_what_is_missing(client: httpx.Client, service: GatewayService) -> None:
    body = client.get("/readyz").json()
    assert (body["ready"], body["cold_start"], body["reasons"]) == (True, True, [])
    service._ending.set()
    response = client.get("/readyz")
    assert (response.status_code, "shutting down" in response.json()["reasons"]) == (503, True)


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ProcessError, match=rf"port {port} of 127\.0\.0\.1.*RUVLLM_GATEWAY_PORT"):
            listen("127.0.0.1", port)
    require_fast_parts()


def test_an_address_that_is_none_does_not_answer() -> None:
    assert not healthy("http://127.0.0.1:9/health")
    assert not healthy("http://127.0.0.1:port/health")


def test_whether_mlflow_answers_is_shown_and_a_look_that_fails_ends_nothing(
    answerer: FakeAnswerer, away: Database, settings: Settings
) -> None:
    looks: list[bool | Exception] = [True, False, OSError("no space left"), True]

    def look() -> bool:
        seen = looks.pop(0)
        if isinstance(seen, Exception):
            raise seen
        return seen

    service = GatewayService(answerer, away, BundleStore(settings.router_dir), settings, registry_is_up=look)
    shown = []
    for _ in range(4):
        service.look_at_registry()
        shown.append("ruvllm_mlflow_up 1.0" in service.metrics.render().decode())
        degraded = [text for text in service.state().degraded if text.startswith("mlflow")]
        assert bool(degraded) == (len(shown) == 3)
    assert shown == [True, False, False, True]
