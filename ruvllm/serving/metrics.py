"""Prometheus metrics of one gateway, in a registry of its own. Knows nothing of HTTP routing or of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ruvllm import __version__
from ruvllm.answering.answer import Answer

if TYPE_CHECKING:
    from ruvllm.answering.interactions import OutboxState
    from ruvllm.inference.supervised import TierState
    from ruvllm.memory.retrieval.reading import ReadingState
    from ruvllm.serving.admission import Admission
    from ruvllm.serving.champion import HotRouter

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_STAGES = {"embed": "embed", "search": "retrieve", "attend": "attend", "route": "route"}  # stage of an answer -> metric


class Metrics:
    """Counters, gauges and histograms; `render` is the text of GET /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests", "route", "model", "status")
        self.rejected = self._counter("rejected", "Requests that were not taken up", "reason")
        self.tokens = self._counter("tokens", "Tokens of prompts and answers", "kind", "model")
        self.reused = self._counter("prefix_tokens_reused", "Prompt tokens whose state was kept")
        self.decisions = self._counter("router_decisions", "Routing decisions", "model", "ctx_bin", "source")
        self.settled = self._counter("outbox_settled", "Answers that were scored and, if good, written back")
        self.judged = self._counter("judged", "Answers that the judge took up while nobody asked", "outcome")
        self.request = self._histogram("request_seconds", "Whole request", "route")
        self.overhead = self._histogram("overhead_seconds", "Request without the model's time and the wait for it")
        self.ttft = self._histogram("ttft_seconds", "Until the first piece of an answer, wait for a thread left out")
        self.inter_token = self._histogram("inter_token_seconds", "Between tokens, the mean of an answer")
        self.queue = self._histogram("queue_seconds", "Wait for a thread and for the model")
        self.stages = {stage: self._histogram(f"{name}_seconds", f"Stage {name}") for stage, name in _STAGES.items()}
        self.confidence = Histogram(
            "ruvllm_router_confidence", "Confidence of decisions", buckets=_SHARES, registry=self.registry
        )
        self.quality = Histogram(
            "ruvllm_quality", "Of answers whose quality became known", buckets=_SHARES, registry=self.registry
        )
        self.writebacks = self._counter("writeback", "Answers, by what became of their interaction", "outcome")
        self.inflight = self._gauge("inflight", "Admitted requests that are not answered yet")
        self.queue_depth = self._gauge("queue_depth", "Requests that wait for a thread")
        self.queue_tokens = self._gauge("queue_tokens", "Prompt tokens of these, guessed by their characters")
        self.stale = self._gauge("router_stale_seconds", "Since the ledger was last read")
        self.db_up = self._gauge("db_up", "Whether Postgres answered last")
        self.outbox_depth = self._gauge("outbox_depth", "Answers that wait to be scored and written back")
        self.outbox_oldest = self._gauge("outbox_oldest_seconds", "How long the oldest of these has waited")
        self.outbox_failed = self._gauge("outbox_failed", "Answers whose settling was given up")
        self.replay = self._gauge("replay_size", "Settled answers that the replay reservoir holds")
        self.mlflow_up = self._gauge("mlflow_up", "Whether the MLflow server answered last")
        self.ingest_waiting = self._gauge("ingest_waiting", "Rows of bursts that are not found yet")
        self.version = self._gauge("router_version_info", "The router that decides", "version", "sha256")
        self._gauge("machine_memory_used_ratio", "Of this machine or its container").set_function(memory_used)
        self._gauge("build_info", "This code", "version").labels(__version__).set(1)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, answer: Answer, queue_s: float, overhead_s: float) -> None:
        """Count one answer. Seconds are of the monotonic clock of this process."""
        decision, generation = answer.decision, answer.generation
        self.decisions.labels(answer.tier, str(answer.context_bin), decision.decided_by).inc()
        if decision.confidence is not None:
            self.confidence.observe(decision.confidence)
        self.tokens.labels("prompt", answer.tier).inc(generation.prompt_tokens)
        self.tokens.labels("completion", answer.tier).inc(generation.completion_tokens)
        self.reused.inc(generation.cached_tokens)
        self.writebacks.labels(answer.writeback).inc()
        if answer.ttft_ms is not None:
            self.ttft.observe(answer.ttft_ms / 1000)
        if generation.completion_tokens > 1:
            self.inter_token.observe(generation.decode_s / generation.completion_tokens)
        self.queue.observe(queue_s)
        self.overhead.observe(overhead_s)
        for stage, histogram in self.stages.items():
            if stage in answer.stage_ms:
                histogram.observe(answer.stage_ms[stage] / 1000)

    def routed_by(self, version: str, sha256: str) -> None:
        """The router in use; the series of the one before ends."""
        self.version.clear()
        self.version.labels(version, sha256).set(1)

    def waiting(self, outbox: OutboxState) -> None:
        """What waits in the outbox, as of now."""
        self.outbox_depth.set(outbox.depth)
        self.outbox_oldest.set(outbox.oldest_s)
        self.outbox_failed.set(outbox.failed)
        self.replay.set(outbox.replay)

    def watch(self, admission: Admission, router: HotRouter, db_up: Callable[[], bool]) -> None:
        """Show the queue, how old the view of the ledger is, and whether Postgres answered, at each look."""
        self.inflight.set_function(lambda: admission.state.running + admission.state.queued)
        self.queue_depth.set_function(lambda: admission.state.queued)
        self.queue_tokens.set_function(lambda: admission.state.queued_tokens)
        self.stale.set_function(lambda: router.stale_s)
        self.db_up.set_function(lambda: float(db_up()))

    def watch_memory(self, reading: Callable[[], ReadingState | None]) -> None:
        """Show how memory is read, as `reading` says at each look."""
        self.registry.register(_MemoryMetrics(reading))

    def watch_models(self, states: Callable[[], Sequence[TierState]]) -> None:
        """Show how each tier's process is, as `states` says at each look."""
        self.registry.register(_ModelMetrics(states))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ruvllm_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ruvllm_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"ruvllm_{name}", text, labels, buckets=_SECONDS, registry=self.registry)


class _MemoryMetrics(Collector):
    """The replica's state and how often Postgres was asked instead; without a replica, that alone."""

    def __init__(self, reading: Callable[[], ReadingState | None]) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        reading = self._reading()
        if reading is None:
            return
        fallbacks = CounterMetricFamily(
            "ruvllm_memory_replica_fallbacks", "Reads that Postgres answered for the replica", labels=["reason"]
        )
        for reason, count in sorted(reading.fallbacks.items()):
            fallbacks.add_metric([reason], count)
        yield fallbacks
        yield CounterMetricFamily("ruvllm_memory_cache_hits", "Searches answered from the cache", reading.cache.hits)
        if (replica := reading.replica) is not None:
            yield _sample("nodes", "Nodes that a search can find", replica.nodes)
            yield _sample("replica_ready", "Whether the replica may answer", float(replica.ready))
            yield _sample("replica_bytes", "Vectors, graph and arrays of the replica", replica.bytes)
            if (staleness := replica.staleness_s) is not None:
                yield _sample("replica_staleness_seconds", "Since the replica was level with Postgres", staleness)


class _ModelMetrics(Collector):
    """Which tiers are up, how often their processes were started again and why, and what these hold."""

    def __init__(self, states: Callable[[], Sequence[TierState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("ruvllm_model_up", "Whether the model is loaded and answers", labels=["model"])
        resident = GaugeMetricFamily("ruvllm_model_resident_bytes", "Of its process; 0: not loaded", labels=["model"])
        quarantined = GaugeMetricFamily(
            "ruvllm_model_quarantined", "Prompts that are refused because its process died of them", labels=["model"]
        )
        restarts = CounterMetricFamily(
            "ruvllm_model_restarts", "Processes that were replaced", labels=["model", "reason"]
        )
        for state in self._states():
            up.add_metric([state.name], float(state.ready))
            resident.add_metric([state.name], state.resident_mb * 2**20)
            quarantined.add_metric([state.name], state.quarantined)
            for reason in ("restarts", "recycled", "evicted"):
                restarts.add_metric([state.name, _REASONS[reason]], getattr(state, reason))
        yield from (up, resident, quarantined, restarts)
        yield from self._snapshots()

    def _snapshots(self) -> Iterator[Metric]:
        """Prompt states that are kept; a tier that is cold, or a server's, has none to tell of."""
        kept = GaugeMetricFamily("ruvllm_model_snapshots", "Prompt states that are kept", labels=["model"])
        size = GaugeMetricFamily("ruvllm_model_snapshot_bytes", "Of these", labels=["model"])
        lookups = CounterMetricFamily(
            "ruvllm_model_snapshot_lookups", "Prompts whose state was looked for", labels=["model", "found"]
        )
        dropped = CounterMetricFamily(
            "ruvllm_model_snapshot_dropped", "States that are not kept", labels=["model", "why"]
        )
        for state in self._states():
            if (counts := state.snapshots) is not None:
                kept.add_metric([state.name], counts.count)
                size.add_metric([state.name], counts.bytes)
                lookups.add_metric([state.name, "yes"], counts.hits)
                lookups.add_metric([state.name, "no"], counts.misses)
                dropped.add_metric([state.name, "room"], counts.evictions)
                dropped.add_metric([state.name, "size"], counts.refused)
        yield from (kept, size, lookups, dropped)


def memory_used(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Share in [0, 1] of this machine's memory that is taken; in a container with a limit, of that."""
    limit, used = (_number(root / name) for name in ("memory.max", "memory.current"))
    if limit and used is not None:
        return min(1.0, used / limit)
    found = psutil.virtual_memory()
    return 1.0 - float(found.available) / float(found.total)


def _number(path: Path) -> int | None:
    """None where there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


_REASONS = {"restarts": "death", "recycled": "worn", "evicted": "room"}


def _sample(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ruvllm_memory_{name}", text, value)
