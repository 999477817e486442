"""What a write costs, stage by stage, in a memory of `--n` nodes: write-back, a burst, and its catching up.

python -m pytest tests/benchmarks/memory/test_writes.py -m benchmark --n 100000 --keep FOLDER
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter, Floats, Role
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.memory import edges, rows
from ruvllm.memory.likeness import candidates
from ruvllm.memory.records import NewNode
from ruvllm.memory.tidy import merge
from ruvllm.memory.writing import burst, writeback, writes
from ruvllm.memory.writing.writeback import Answered
from ruvllm.settings import load_settings
from tests.benchmarks.memory import loading
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark
WRITES = 400
BURST = 50_000
CAUGHT_UP = 4_000
TARGET_MS, TARGET_RATE = 15.0, 5_000
WORDS = "harbour river copper market treaty railway dialect orchard bishop canal glacier senate".split()  # noqa: SIM905

STAGES = {
    "key and turn": ((writes, "claim"), (writes, "fulfil"), (writeback, "_take_turn")),
    "exact hash": ((rows, "live"),),
    "candidates: 2 HNSW searches, MinHash bands": ((candidates, "around"),),
    "candidates: texts": ((candidates, "of_interest"),),
    "decision on wording": ((writeback, "_alike"),),
    "insert: node, HNSW, text, bands": ((rows, "insert"),),
    "merge": ((merge, "absorb"), (merge, "strengthen"), (merge, "touch")),
    "edges and adjacency": ((edges, "link"),),
    "session": ((writeback, "_before"),),
}


class Near:
    """An encoder of the corpus's own vectors, a little turned: a new Fact has neighbours, as real ones have."""

    id = loading.ENCODER

    def __init__(self, vectors: Floats) -> None:
        self.dimension = vectors.shape[1]
        self._vectors, self._random = vectors, np.random.default_rng(5)

    def encode(self, texts: list[str], role: Role = "document") -> Floats:
        chosen = self._vectors[self._random.integers(0, len(self._vectors), len(texts))]  # (n, d)
        turned: Floats = chosen + self._random.normal(scale=0.02, size=chosen.shape).astype(np.float32)
        return turned


@contextmanager
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[float]]]:
    """Milliseconds spent in each stage, one entry a call."""
    spent: dict[str, list[float]] = defaultdict(list)

    def wrapped(stage: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[stage].append((time.perf_counter() - began) * 1e3)

        return call

    with monkeypatch.context() as patch:
        for stage, functions in STAGES.items():
            for module, name in functions:
                patch.setattr(module, name, wrapped(stage, getattr(module, name)))
        yield spent


def _answered(i: int) -> Answered:
    words = " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(6))
    return Answered(
        f"What is known of Place{i} and its {words}?", f"Its {words} were listed in {1000 + i}.", 1.0, "gold",
        key=f"benchmark {time.time_ns()} {i}", session=f"s{i % 20}", turn=1 + i // 20,
    )  # fmt: skip


def test_write_back_stage_by_stage(
    loaded: loading.Loaded, options: Options, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, settings = loaded.database(), load_settings({}, state_dir=options.keep)
    embedder = EmbeddingAdapter(Near(loaded.corpus.vectors))
    prepared = [writeback.prepare(embedder, settings, _answered(i)) for i in range(WRITES)]
    total: list[float] = []
    backend = _backend(database)
    client_cpu, server_cpu = time.thread_time(), _cpu_s(backend)
    with timed(monkeypatch) as spent:
        for i, each in enumerate(prepared):
            began = time.perf_counter()
            with database.transaction() as connection:
                writeback.commit(connection, _answered(i), each)
            total.append((time.perf_counter() - began) * 1e3)
    client_ms = (time.thread_time() - client_cpu) / WRITES * 1e3
    server_ms = (_cpu_s(backend) - server_cpu) / WRITES * 1e3
    p50 = float(np.median(total))
    lines = [(stage, round(float(np.sum(times)) / WRITES, 2)) for stage, times in spent.items()]
    lines.append(
        ("begin, commit (fsync) and the rest", round(float(np.mean(total)) - sum(each for _, each in lines), 2))
    )
    embedding = _embedding_ms()
    report.table(
        f"Write-back of {WRITES} new answers into {options.n} nodes",
        ("stage", "ms, mean"),
        [*lines, ("p50 of the whole, without embedding", round(p50, 2)),
         ("CPU a write: client", round(client_ms, 2)), ("CPU a write: server", round(server_ms, 2)),
         ("p99", round(float(np.quantile(total, 0.99)), 2)), ("embedding beside it (MiniLM, p50)", round(embedding, 1)),
         ("write-back / embedding", round(p50 / embedding, 2))],
    )  # fmt: skip
    report.target("write-back p50 beside the embedding", f"<= {TARGET_MS} ms", f"{p50:.1f} ms", p50 <= TARGET_MS)
    database.close()


def _backend(database: Database) -> psutil.Process:
    """The server's process behind the one connection that the loop uses again and again."""
    with database.transaction() as connection:
        return psutil.Process(connection.info.backend_pid)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _embedding_ms() -> float:
    """Question and answer together and the question alone, as a write-back embeds them; an answer of 130 tokens."""
    embedder = EmbeddingAdapter(MiniLMEncoder(threads=1))
    times = []
    for i in range(12):
        answered = _answered(i)
        text = f"Q: {answered.question}\nA: " + " ".join(WORDS[(i + j) % len(WORDS)] for j in range(110))
        began = time.perf_counter()
        embedder.embed([text, answered.question])
        times.append((time.perf_counter() - began) * 1e3)
    return float(np.median(times[2:]))


def test_a_burst_and_its_catching_up(loaded: loading.Loaded, options: Options, report: Report) -> None:
    database = loaded.database()
    nodes, vectors = _burst(loaded, min(BURST, options.n))
    began = time.perf_counter()
    added = burst.add(database, nodes, vectors)
    rate = added.accepted / (time.perf_counter() - began)
    began = time.perf_counter()
    merged = burst.merge(database, None, CAUGHT_UP)
    caught_up = merged.merged / (time.perf_counter() - began)
    report.table(
        "A burst",
        ("what", "nodes", "nodes/s"),
        [("into the ingest table, vectors given", added.accepted, round(rate)),
         ("merged into nodes: HNSW, texts, bands", merged.merged, round(caught_up))],
        "One connection; the second row is the index catching up in the background.",
    )  # fmt: skip
    report.target("ingest", f">= {TARGET_RATE} nodes/s", f"{rate:.0f} nodes/s", rate >= TARGET_RATE)
    _clear(database)
    database.close()


def _burst(loaded: loading.Loaded, count: int) -> tuple[list[NewNode], Floats]:
    random = np.random.default_rng(9)
    vectors = loaded.corpus.vectors[:count] + random.normal(scale=0.02, size=(count, loaded.corpus.dim))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # (n, d)
    stamp = time.time_ns()
    texts = (" ".join(WORDS[(i * 5 + j * j) % len(WORDS)] for j in range(40)) for i in range(count))
    return [NewNode(f"Burst {stamp} {i}: {text}", source="burst") for i, text in enumerate(texts)], unit


def _clear(database: Database) -> None:
    """The next run begins with an empty ingest table and the corpus alone."""
    with database.transaction() as connection:
        connection.execute("DELETE FROM memory.ingest")
        connection.execute(
            "DELETE FROM memory.nodes WHERE id = ANY(ARRAY("
            "SELECT node FROM memory.node_texts WHERE source IN ('burst', 'qa_pair')))"
        )
