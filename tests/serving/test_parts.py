"""The gateway's real parts at its edges: memory that joins late, and the probe that a night ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from ruvllm.answering.interactions import OutboxState
from ruvllm.attention.gather import gather
from ruvllm.attention.source import MemorySource
from ruvllm.database.pool import Database
from ruvllm.embedding import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import DatabaseError, EncoderMismatchError, ProcessError, SettingsError
from ruvllm.inference.supervised import TierState
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.writing import burst
from ruvllm.router.store import BundleStore
from ruvllm.serving.build import LateMemory
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.probe import ask_gateway
from ruvllm.serving.service import GatewayService
from ruvllm.settings import PROJECT_ROOT, Settings
from tests.serving.gateway import serving

VECTOR = np.eye(1, 384, dtype=np.float32)[0]


def test_memory_that_was_away_is_an_error_and_then_joins(
    settings: Settings, database_url: str, database: Database, away: Database
) -> None:
    embedder = EmbeddingAdapter(HashingEncoder())
    late = LateMemory(replace(settings, database_url="postgresql://nobody@127.0.0.1:9/none"), away, embedder)
    with pytest.raises(DatabaseError):
        late.search(VECTOR, 3)
    late._settings, late._database = replace(settings, database_url=database_url), database  # Postgres is back
    assert late.search(VECTOR, 3) == []


def test_memory_of_another_encoder_is_refused(settings: Settings, database_url: str, database: Database) -> None:
    late = LateMemory(
        replace(settings, database_url=database_url), database, EmbeddingAdapter(HashingEncoder(id="another"))
    )
    with pytest.raises(EncoderMismatchError, match="another"):
        late.open()


def test_the_probe_says_which_router_answered(
    service: GatewayService, answerer: FakeAnswerer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer.router_version = "night-0001"
    monkeypatch.setattr("ruvllm.services.gateway_running", lambda settings: serving(settings, service))
    reply = ask_gateway(settings, "night-0001", "Hello?")
    assert (reply.text, reply.model, reply.router_version) == ("You asked: Hello?", "smollm2-135m", "night-0001")


def test_the_probe_sends_the_key_of_its_file(
    service: GatewayService, answerer: FakeAnswerer, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"ruvllm-{'0' * 16}-{'x' * 43}"
    caller, sent = service.door.caller(None), []
    monkeypatch.setattr(service.door, "caller", lambda authorization, peer, site: sent.append(authorization) or caller)
    monkeypatch.setattr("ruvllm.services.gateway_running", lambda settings: serving(settings, service))
    (tmp_path / "key").write_text(f"{key}\n")
    ask_gateway(replace(settings, probe_key_file=str(tmp_path / "key")), "", "Hello?")
    assert sent == [f"Bearer {key}"]
    with pytest.raises(SettingsError, match="PROBE_KEY_FILE"):
        ask_gateway(replace(settings, probe_key_file=str(tmp_path / "none")), "", "Hello?")


def test_the_probe_refuses_another_router(
    service: GatewayService, answerer: FakeAnswerer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer.router_version = "night-0001"
    monkeypatch.setattr("ruvllm.services.gateway_running", lambda settings: serving(settings, service))
    monkeypatch.setattr("ruvllm.serving.probe._RELOAD_S", 0.0)
    with pytest.raises(ProcessError, match="router 'night-0001' decides, want 'night-0002'"):
        ask_gateway(settings, "night-0002", "Hello?")


def test_the_gateway_takes_bursts_in_and_says_what_waits(
    settings: Settings, database_url: str, database: Database, answerer: FakeAnswerer
) -> None:
    embedder = EmbeddingAdapter(HashingEncoder())
    late = LateMemory(replace(settings, database_url=database_url), database, embedder)
    burst.add(database, [NewNode(f"Passage {i} of a burst.", source="burst") for i in range(5)])
    service = GatewayService(
        answerer, database, BundleStore(settings.router_dir), settings, take_in=late.take_in,
        outbox=lambda: OutboxState(depth=3, oldest_s=42.0, retrying=1, failed=2, replay=7),
    )  # fmt: skip
    service.settle()
    shown = service.metrics.render().decode()
    assert "ruvllm_outbox_depth 3.0" in shown
    assert "ruvllm_outbox_oldest_seconds 42.0" in shown
    assert "ruvllm_outbox_failed 2.0" in shown
    assert "ruvllm_replay_size 7.0" in shown
    assert "ruvllm_ingest_waiting 0.0" in shown
    assert late.open().counts()["nodes"] == 5
    late.close()


def test_attention_reads_a_memory_that_joined_late(settings: Settings, database_url: str, database: Database) -> None:
    embedder = EmbeddingAdapter(HashingEncoder())
    late = LateMemory(replace(settings, database_url=database_url), database, embedder)
    late.add([NewNode(f"Passage {i} about Ghana.", source="test") for i in range(5)])
    graph = gather(MemorySource(cast(Memory, late)), "Ghana?", embedder.embed_one("Ghana?"))
    assert graph.n == 5
    late.close()


def test_bursts_wait_and_settling_goes_on_while_they_cannot_be_taken_in(
    settings: Settings, away: Database, answerer: FakeAnswerer
) -> None:
    late = LateMemory(
        replace(settings, database_url="postgresql://nobody@127.0.0.1:9/none"), away, EmbeddingAdapter(HashingEncoder())
    )
    service = GatewayService(answerer, away, BundleStore(settings.router_dir), settings, take_in=late.take_in)
    service.settle()
    service.settle()
    assert answerer.settled == 2
    assert [text.split(":")[0] for text in service.state().degraded] == ["bursts"]


def test_a_tier_that_cannot_start_is_named_and_every_tier_is_counted(
    settings: Settings, away: Database, answerer: FakeAnswerer
) -> None:
    well = TierState(
        "smollm2-135m", "ready", "", busy=0, resident_mb=250, restarts=2, recycled=1, evicted=0, quarantined=3
    )
    ill = TierState("gemma3-270m", "failing", "its process died 4 times in a row", 0, 0, 4, 0, 0, 0)
    service = GatewayService(answerer, away, BundleStore(settings.router_dir), settings, models=lambda: [well, ill])
    service.metrics.watch_models(lambda: [well, ill])
    assert service.state().degraded == ("model gemma3-270m: its process died 4 times in a row",)
    shown = service.metrics.render().decode()
    for line in (
        'ruvllm_model_up{model="smollm2-135m"} 1.0',
        'ruvllm_model_up{model="gemma3-270m"} 0.0',
        'ruvllm_model_resident_bytes{model="smollm2-135m"} 2.62144e+08',
        'ruvllm_model_restarts_total{model="smollm2-135m",reason="death"} 2.0',
        'ruvllm_model_restarts_total{model="smollm2-135m",reason="worn"} 1.0',
        'ruvllm_model_quarantined{model="smollm2-135m"} 3.0',
    ):
        assert line in shown


_BUILDS = """
import numpy as np
from threadpoolctl import threadpool_info
from ruvllm.serving import build
from ruvllm.settings import load_settings

def nothing_opens(settings):
    raise FileNotFoundError

build.open_embedder = nothing_opens
try:
    build.build_service(load_settings({}))
except FileNotFoundError:
    np.ones((8, 8)) @ np.ones((8, 8))
    print({each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"})
"""


def test_a_gateways_small_products_wake_no_other_threads() -> None:
    """Of BLAS: spinning, they took four times the time of all else."""
    freely = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", _BUILDS], env=freely, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert done.stdout.strip() == "{1}", done.stderr
