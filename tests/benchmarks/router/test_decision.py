"""How long one decision takes, without torch, beside the peer paretobandit where it is installed; and many at once.

    python -m pytest -m benchmark tests/benchmarks/router/test_decision.py --data FOLDER --keep FOLDER

The router is one that was trained on outcomes, served as any bundle; all heads, h != 0, one row. Both deciders take
turns within one run. The peer (PyPI, never a dependency) is timed at its bare choice of an arm, contexts of its paper's
26 dimensions, as many arms as we have tiers, after updates from the same queries.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.ours import FastGrnnQuality
from ruvllm.learning.train import make_golden
from ruvllm.router.batch import decide_batch
from ruvllm.router.bundle import write_bundle
from ruvllm.router.decision import Allowed
from ruvllm.router.layout import LAYOUT
from ruvllm.router.manifest import Manifest
from ruvllm.router.runtime import RouterRuntime
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import Arena
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

SET = "paretobandit_k4"
_CALLS = 20_000
_BATCH = 200_000
_PEER_DIMENSION = 26  # its paper's: 25 principal components and a bias
_PUBLISHED = "22.5 / 39.2 published"
_ALL = Allowed((True,) * 4, (True,) * 5)


def test_decision(data: Path, cache: EmbeddingCache, out: Path, command: str, tmp_path: Path) -> None:
    outcomes = load(data, SET)
    ground = Arena(outcomes, cache.embed(outcomes.queries), cache.adapter.id).grounds(0)[0]
    features, train = ground.views["features"], ground.split.train
    runtime = _served(tmp_path / "bundle", features, outcomes.score, train, outcomes.tiers)
    hidden = np.stack([runtime.decide(row, None, _ALL).hidden for row in features[:256]])
    contexts = _contexts(ground.views["embedding"])
    peer = _peer(outcomes.tiers, contexts, outcomes.score, train)

    def decide(call: int, h: Any = hidden) -> None:
        runtime.decide(features[call % 256], h[(call + 1) % 256], _ALL)

    def first(call: int) -> None:
        runtime.decide(features[call % 256], None, _ALL)

    deciders: dict[str, Callable[[int], object]] = {"ours, all heads, h != 0": decide, "ours, all heads, h = 0": first}
    if peer is not None:
        deciders["paretobandit, choice of an arm"] = lambda call: peer(contexts[call % 256])
    times = _in_turn(deciders)
    report = Report("decision", out)
    report.conditions = conditions(n=_CALLS, command=command, notes=f"one row a call; the peer: {_PUBLISHED}")
    report.table(
        "One decision",
        ("decider", "p50 µs", "p99 µs"),
        [(name, *np.quantile(spent, (0.5, 0.99)).tolist()) for name, spent in times.items()],
        "Deciders in turn, one call each, on one thread, without torch in the path.",
    )
    rows = _batched(runtime, features, hidden)
    report.table("Many decisions at once", ("what", "million rows a CPU second"), rows)
    p50, p99 = np.quantile(times["ours, all heads, h != 0"], (0.5, 0.99))
    report.target("one decision, h != 0", "p50 <= 20 µs, p99 <= 39 µs", f"{p50:.1f} and {p99:.1f} µs",
                  bool(p50 <= 20 and p99 <= 39))  # fmt: skip
    other = times.get("paretobandit, choice of an arm")
    report.target(
        "ahead of paretobandit in the same run", "lower p50",
        "paretobandit is not installed" if other is None else f"{p50:.1f} against {np.median(other):.1f} µs",
        None if other is None else bool(p50 < np.median(other)),
    )  # fmt: skip
    report.target("batched", ">= 1 M rows/s", f"{rows[1][1]:.2f} M with h, {rows[0][1]:.2f} M without",
                  rows[1][1] >= 1.0)  # fmt: skip
    assert (out / "decision.json").is_file()


def _served(folder: Path, features: Any, score: Any, train: Any, tiers: tuple[str, ...]) -> RouterRuntime:
    """The network trained on outcomes as a bundle of a ladder that is named by its tiers."""
    network = FastGrnnQuality().fit_router(features[train], score[train], 0).network
    names = (*tiers, *("",) * (4 - len(tiers)))
    manifest = Manifest(
        "benchmark", "2026-01-01T00:00:00+00:00", "outcomes", names, "spec", network.built.hidden, LAYOUT.hash,
        "benchmark", "0" * 64,
    )  # fmt: skip
    arrays = network.export_arrays()
    write_bundle(folder, arrays, manifest, golden=make_golden(network, features, 1.0))
    return RouterRuntime.load(folder)


def _contexts(embedding: Any) -> Any:
    """(n, 26) principal components and a 1."""
    centred = embedding - embedding.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][: _PEER_DIMENSION - 1]
    return np.concatenate([centred @ axes.T, np.ones((len(embedding), 1))], axis=1).astype(np.float64)


def _peer(tiers: tuple[str, ...], contexts: Any, score: Any, train: Any) -> Callable[[Any], object] | None:
    if importlib.util.find_spec("pareto_bandit") is None:
        return None
    policy = importlib.import_module("pareto_bandit.policy").DisjointLinUCBPolicy(
        list(tiers), dim=_PEER_DIMENSION, alpha=0.1, seed=0
    )
    for row in train[:200].tolist():
        for place, tier in enumerate(tiers):
            policy.update(tier, contexts[row], float(score[row, place]))
    penalties = dict.fromkeys(tiers, 0.1)
    return lambda context: policy.select_arm(context, candidates=list(tiers), cost_penalties=penalties)


def _in_turn(deciders: dict[str, Callable[[int], object]]) -> dict[str, Any]:
    """Microseconds (calls,) of each."""
    spent = {name: np.zeros(_CALLS) for name in deciders}
    for call in range(_CALLS):
        for name, decide in deciders.items():
            before = time.perf_counter_ns()
            decide(call)
            spent[name][call] = (time.perf_counter_ns() - before) / 1000
    return spent


def _batched(runtime: RouterRuntime, features: Any, hidden: Any) -> list[tuple[str, float]]:
    many = np.resize(features, (_BATCH, features.shape[1])).astype(np.float32)
    states = np.resize(hidden, (_BATCH, hidden.shape[1])).astype(np.float32)
    found = []
    for name, given in (("first turns", None), ("later turns", states)):
        spent = []
        for _ in range(5):
            before = time.process_time()
            decide_batch(runtime, many, _ALL, given)
            spent.append(time.process_time() - before)
        found.append((name, _BATCH / float(np.median(spent)) / 1e6))
    return found
