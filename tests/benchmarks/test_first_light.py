"""Speed and size of one request on this machine, as a table: `make bench` writes docs/first-light.md.

It measures the checkout's own state, so `make cycle` comes first. Medians with N; the load stands beside them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from ruvllm import services
from ruvllm.answering.answer import Ask
from ruvllm.corpus.questions import questions
from ruvllm.router.decision import Allowed
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from ruvllm.workplace import Workplace, open_workplace

pytestmark = pytest.mark.benchmark
TABLE = PROJECT_ROOT / "docs" / "first-light.md"
ALLOWED = Allowed((True, True, False, False), (True, True, True, False, False))


@pytest.fixture(scope="module")
def settings() -> Settings:
    os.environ["RUVLLM_ACCEPT_GEMMA_TERMS"] = "true"  # as `make cycle` did
    return load_settings()


@pytest.fixture(scope="module")
def place(settings: Settings):
    with open_workplace(settings) as opened:
        if opened.champion() is None:
            pytest.skip("no promoted router here: run `make cycle` first")
        yield opened


@pytest.fixture(scope="module")
def rows(place: Workplace):
    lines: list[tuple[str, str, str, int]] = []
    yield lines
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(_table(lines))


def _table(lines: list[tuple[str, str, str, int]]) -> str:
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"
    python, load = platform.python_version(), os.getloadavg()[0]
    head = f"Measured by `make bench` on {date.today()}: {machine}, Python {python}, load {load:.1f}."
    body = "\n".join(f"| {what} | {figure} | {wanted} | {n} |" for what, figure, wanted, n in lines)
    return f"# One request\n\n{head}\n\n| what | measured | wanted | N |\n|---|---|---|---|\n{body}\n"


def _times(work: Callable[[int], object], n: int) -> np.ndarray:
    """(n,) seconds; the first calls warm up and are left out."""
    for i in range(min(5, n)):
        work(i)
    times = []
    for i in range(n):
        started = time.perf_counter()
        work(i)
        times.append(time.perf_counter() - started)
    return np.array(times)


def _quantiles(times: np.ndarray, scale: float, unit: str) -> str:
    return f"p50 {np.median(times) * scale:.2f} {unit}, p99 {np.quantile(times, 0.99) * scale:.2f} {unit}"


def test_router_decision(place: Workplace, rows) -> None:
    runtime = place.champion()
    features = np.random.default_rng(0).random((100, 128), dtype=np.float32)
    hidden = np.full(runtime.hidden_size, 0.1, dtype=np.float32)
    times = _times(lambda i: runtime.decide(features[i % 100], hidden, ALLOWED), 10_000)
    rows.append(
        ("router decision, all heads, h not 0, without torch", _quantiles(times, 1e6, "µs"), "p50 < 100 µs", 10_000)
    )


def test_embedding(place: Workplace, rows) -> None:
    texts = [q.text for q in questions()[:300]]
    times = _times(lambda i: place.embedder.embed([texts[i]], role="query"), 200)
    rows.append(("embedding of a question", _quantiles(times, 1e3, "ms"), "< 10 ms", 200))


def test_retrieval(place: Workplace, rows) -> None:
    vectors = place.embedder.embed([q.text for q in questions()[:200]], role="query")
    times = _times(lambda i: place.memory.search(vectors[i], 32), 200)
    nodes = place.memory.counts()["nodes"]
    rows.append(
        (f"retrieval, k = 32 of {nodes} nodes, with text and vectors", _quantiles(times, 1e3, "ms"), "p50 < 3 ms", 200)
    )


@pytest.mark.parametrize(
    ("what", "text"), [("a question", questions()[0].text), ("18,500 characters", "what is the largest city? " * 711)]
)
def test_features(place: Workplace, rows, what: str, text: str) -> None:
    ask = Ask(text)
    vector = place.perception.vector(ask)
    hits, runtime = place.perception.search(vector), place.champion()
    times = _times(lambda i: place.perception.features(ask, vector, hits, runtime), 1_000)
    rows.append((f"128 features of {what}", _quantiles(times, 1e3, "ms"), "-", 1_000))


def test_gateway_overhead_and_size(settings: Settings, rows) -> None:
    asked = [q.text for q in questions() if q.session_id is None][:45]
    with services.gateway_running(settings) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        overheads = [_overhead(client, text) for text in asked][5:]
        pid = next(row.pid for row in services.status(settings) if row.name == "gateway")
        rss = psutil.Process(pid).memory_info().rss / 1e6
    rows.append(
        ("gateway overhead: everything but the model", _quantiles(np.array(overheads), 1, "ms"), "p50 < 25 ms", 40)
    )
    rows.append(("gateway memory without models (RSS)", f"{rss:.0f} MB", "< 300 MB", 1))


def _overhead(client: httpx.Client, text: str) -> float:
    body = {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
    response = client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return float(response.headers["x-ruvllm-overhead-ms"])


def test_import(rows) -> None:
    code = "import time; t = time.perf_counter(); import ruvllm; print(time.perf_counter() - t)"
    times = np.array([float(_run(code)) for _ in range(10)])
    rows.append(("`import ruvllm`", f"p50 {np.median(times):.3f} s", "< 0.5 s", 10))


def _run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(PROJECT_ROOT)
    ).stdout
