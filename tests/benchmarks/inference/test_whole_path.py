"""NFR-001's grid: whole requests over HTTP with real generation; embedding, memory, router, model, outbox as in use.

    python -m pytest -m benchmark tests/benchmarks/inference/test_whole_path.py --keep FOLDER -s \
        --shapes 350m,700m,1.2b,2.6b --rounds 20
    python -m tests.benchmarks.inference.latency_page FOLDER docs/latency.md

One gateway a shape, its model a file of the true shape with random weights, its memory the demonstration's passages.
First `--rounds` requests one after another, each another question, bin 256, an answer of 16 tokens; then an open loop
at five requests a second, the least that NFR-001 asks, for twenty seconds: what is answered of it a second, and what
the gateway refuses because its queue is full. Memory is what its process and the models' hold, without Postgres.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ruvllm.corpus import corpus_nodes
from ruvllm.database import open_database
from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.embedding import open_embedder
from ruvllm.inference.blank import write_gguf
from ruvllm.inference.shapes import find_shape
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.inference.cells import Cells
from tests.benchmarks.serving.openloop import Connections, Reply, on_schedule, percentiles
from tests.ports import free_port

pytestmark = pytest.mark.benchmark
PASSAGES, BIN, ANSWER = 400, 256, 16
OFFERED, SECONDS = 5.0, 20.0  # requests a second, and for how long
_READY_S, _ANSWER_S = 300.0, 600.0


def test_nfr_001(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    option = request.config.getoption
    keep = Path(option("--keep")).absolute() if option("--keep") else tmp_path_factory.mktemp("whole")
    kept = Cells(keep / "cells", option("--rounds"))
    shapes = [shape for shape in option("--shapes").split(",") if kept.missing(_name(shape))]
    print(f"\nwhole path: {len(shapes)} shapes to measure", flush=True)
    for shape in shapes:
        settings = _settings(keep, _tier(shape))
        _file(shape, settings)
        with _filled(settings), _gateway(settings) as server:
            kept.of(_name(shape), lambda server=server, shape=shape: _measured(server, _tier(shape).name, kept.n))


def _name(shape: str) -> tuple[str, str, str]:
    return ("http", find_shape(shape).name, "Q4_0")


def _tier(shape: str) -> Tier:
    wanted = (find_shape(shape).name, "Q4_0")
    return next(tier for tier in load_catalogue()["lfm2"] if (tier.name, tier.quantisation) == wanted)


def _settings(keep: Path, tier: Tier) -> Settings:
    """A cache of its own a tier: the ladder is what lies in it."""
    chosen = {"ladder": "lfm2", "quantisation": "Q4_0", "access": "open", "deadline_s": _ANSWER_S}
    state, cache = keep / "whole" / "state", keep / "whole" / tier.name
    return load_settings(state_dir=state, cache_dir=cache, gateway_port=free_port(), **chosen)


def _file(shape: str, settings: Settings) -> None:
    path = settings.models_dir / _tier(shape).file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(path, find_shape(shape), quantisation="Q4_0")


@contextmanager
def _filled(settings: Settings) -> Iterator[None]:
    """The server of the database, with the demonstration's first passages in memory."""
    postgres = EmbeddedPostgres(settings)
    postgres.ensure()
    try:
        embedder = open_embedder(settings)
        with closing(open_database(settings)) as database:
            Memory(database, embedder, settings).add(corpus_nodes()[:PASSAGES])
        yield
    finally:
        postgres.stop()


@contextmanager
def _gateway(settings: Settings) -> Iterator[psutil.Process]:
    """`ruvllm serve` in a process of its own, ready; its children are the models."""
    given = {
        "STATE_DIR": settings.state_dir, "CACHE_DIR": settings.cache_dir, "GATEWAY_PORT": settings.gateway_port,
        "LADDER": settings.ladder, "QUANTISATION": settings.quantisation, "ACCESS": "open",
        "DEADLINE_S": settings.deadline_s,
    }  # fmt: skip
    env = {**os.environ, **{f"RUVLLM_{name}": str(value) for name, value in given.items()}}
    process = subprocess.Popen([sys.executable, "-m", "ruvllm.serving"], env=env)
    try:
        asyncio.run(_ready(settings.gateway_port, process))
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def _ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            line = await reader.readline()
            writer.close()
            if b" 200 " in line:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise AssertionError(f"the gateway on port {port} was not ready within {_READY_S} s")


def _measured(server: psutil.Process, model: str, rounds: int) -> dict[str, Any]:
    port = int(server.environ()["RUVLLM_GATEWAY_PORT"])
    bodies = [_body(model, n) for n in range(rounds + int(OFFERED * SECONDS) + 2)]
    with _watched(server) as most:
        alone, offered, took = asyncio.run(_asked(port, bodies, rounds))
    good = [reply for reply in offered if reply.ok]
    assert all(reply.ok for reply in alone), [reply.status for reply in alone]
    p50, _, p99 = percentiles([reply.seconds for reply in alone])
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "own_p50_ms": float(np.median([float(reply.headers["x-ruvllm-overhead-ms"]) for reply in alone])),
        "offered_per_s": OFFERED,
        "answered_per_s": len(good) / took,
        "refused": sum(reply.status in (429, 503) for reply in offered),
        "loaded_p50_ms": percentiles([reply.seconds for reply in good])[0],
        "loaded_p99_ms": percentiles([reply.seconds for reply in good])[2],
        "tree_mb": most[0] / 1e6,
    }


async def _asked(port: int, bodies: list[bytes], rounds: int) -> tuple[list[Reply], list[Reply], float]:
    """Replies one after another, replies of the open loop, and the seconds until the last of those."""
    to = Connections("127.0.0.1", port)
    for body in bodies[:2]:  # the process's first requests fill its caches
        await to.post("/v1/chat/completions", body)
    alone = []
    for body in bodies[2 : rounds + 2]:
        alone += await on_schedule(to, "/v1/chat/completions", [body], 1000.0, 0.001)
    began = time.perf_counter()
    offered = await on_schedule(to, "/v1/chat/completions", bodies[rounds + 2 :], OFFERED, SECONDS)
    took = time.perf_counter() - began
    to.close()
    return alone, offered, took


def _body(model: str, n: int) -> bytes:
    question = f"What is the capital of place {n}, and which river runs by it?"
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": ANSWER}
    return json.dumps({**asked, "ruvllm": {"context_bin": BIN}}).encode()


@contextmanager
def _watched(server: psutil.Process) -> Iterator[list[int]]:
    """The most bytes that the process and its children held at once, resident, looked at twice a second."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            every = [server, *server.children(recursive=True)]
            most[0] = max(most[0], sum(each.memory_info().rss for each in every if each.is_running()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
