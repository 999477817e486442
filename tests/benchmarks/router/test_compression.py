"""What each step of compression costs and brings: specification 7.3 row by row.

    python -m pytest -m benchmark tests/benchmarks/router/test_compression.py --data FOLDER --keep FOLDER --rounds 5

Times are of the numpy cell alone (`Folded.step`, a first turn), all forms in turn in one run, so that a busy machine
hits them alike. `--contenders` names sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from ruvllm.learning.compress import network_of
from ruvllm.learning.config import CompressionConfig
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.ours import FastGrnnQuality, FittedRouter
from ruvllm.router.compact import pack, unpack
from ruvllm.router.fastgrnn import Cell
from ruvllm.router.folded import Folded, fold
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import Arena, Predictions, reached_apgr
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

SETS = ("routellm_gsm8k", "paretobandit_k3", "paretobandit_k4", "llmrouter_mix")
HOW = CompressionConfig(kept=0.25, steps=80)
_FULL = Cell(rank=32)
_CALLS = 4000
_LIMIT = 8192  # bytes


@dataclass(frozen=True, eq=False)
class Form:
    name: str
    fitted: FittedRouter
    folded: Folded
    size: int  # bytes as stored


def forms(learner: FastGrnnQuality, x, score, seed: int) -> list[Form]:  # type: ignore[no-untyped-def]
    """The dense router and what follows from it, each step on top of the one before; rank 32 is fitted apart."""
    full = replace(learner, cell=_FULL).fit_router(x, score, seed)
    dense = learner.fit_router(x, score, seed)
    thresholded = learner.slim(dense, x, score, seed, replace(HOW, steps=0), linear=False)
    retrained = learner.slim(dense, x, score, seed, HOW, linear=False)
    lines = learner.slim(dense, x, score, seed, HOW)
    packed = pack(lines.network.export_arrays())
    rounded = replace(lines, network=network_of(unpack(packed), lines.network))
    return [
        _form("dense, full rank", full),
        _form("low rank U (8 of 32)", dense),
        _form("sparse W: a quarter kept, nothing retrained", thresholded),
        _form("three phases: thresholding, then retraining", retrained),
        _form("the same, lines for gates", lines),
        Form("the same, 8-bit weights", rounded, fold(unpack(packed), 1.0, True), len(save(dict(packed)))),
    ]


def _form(name: str, fitted: FittedRouter) -> Form:
    """Floats of 4 bytes, zeros stored as they are and U by its factors, as training keeps it."""
    arrays = fitted.network.export_arrays()
    size = 4 * sum(p.numel() for p in fitted.network.parameters()) + 4 * 2 * 128
    return Form(name, fitted, fold(arrays, 1.0, fitted.network.cell.linear_gates), size)


def step_times(folded: dict[str, Folded], x: NDArray[np.float64]) -> dict[str, float]:
    """Median microseconds of one first turn, the forms in turn."""
    spent: dict[str, list[int]] = {name: [] for name in folded}
    for call in range(_CALLS):
        row = x[call % len(x)]
        for name, cell in folded.items():
            before = time.perf_counter_ns()
            cell.step(row)
            spent[name].append(time.perf_counter_ns() - before)
    return {name: float(np.median(times)) / 1000 for name, times in spent.items()}


def early_exit(
    fitted: FittedRouter, x: NDArray[np.float32], share: float = 0.99
) -> Callable[..., tuple[NDArray[np.float64], float]]:
    """Where the linear path alone is so sure that the cell has not changed a decision by that much in `share` of cases.

    Returns a function of rows: predicted qualities, and the share of rows that left early.
    """
    straight, whole = _both(fitted, x)
    moved = np.abs(_margin(whole) - _margin(straight))
    needed = float(np.quantile(moved, share))

    def predict(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        straight, whole = _both(fitted, rows)
        sure = np.abs(_margin(straight)) > needed
        return np.where(sure[:, None], straight, whole), float(sure.mean())

    return predict


def _both(fitted: FittedRouter, x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Qualities by the linear path alone, with the head's bias, and by all of the network."""
    inputs = torch.as_tensor(fitted.reduction.apply(x))
    network = fitted.network
    with torch.no_grad():
        still = network.first_hidden(len(inputs))
        logits = network.read(still, inputs).quality[:, : fitted.tiers]
    return torch.sigmoid(logits).double().numpy(), fitted.predict(x)


def _margin(quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): dearest tier against the cheapest."""
    return np.asarray(quality[:, -1] - quality[:, 0], dtype=np.float64)


def measured(arena: Arena, seed: int) -> tuple[dict[str, list[float]], dict[str, Folded], dict[str, int]]:
    """APGR over cost of each form, of the early exit, and its share; the last fold's cells for timing."""
    made: dict[str, list[Predictions]] = {}
    exits, folded, sizes = [], {}, {}
    for ground in arena.grounds(seed):
        x, train, test = ground.views["features"], ground.split.train, ground.split.test
        found = forms(FastGrnnQuality(), x[train], arena.outcomes.score[train], seed)
        for form in found:
            quality = form.fitted.predict(x[test])
            made.setdefault(form.name, []).append(Predictions(test, quality, ground.price[test]))
            folded[form.name], sizes[form.name] = form.folded, form.size
        quality, share = early_exit(found[1].fitted, x[train])(x[test])
        made.setdefault("early exit by the linear path", []).append(Predictions(test, quality, ground.price[test]))
        exits.append(share)
    figures = {name: [reached_apgr(arena, parts)] for name, parts in made.items()}
    return {**figures, "share that left early": [float(np.mean(exits))]}, folded, sizes


@pytest.mark.parametrize("name", SETS)
def test_compression(
    name: str, data: Path, cache: EmbeddingCache, out: Path, command: str, seeds: int, request: pytest.FixtureRequest
) -> None:
    chosen = request.config.getoption("--contenders")
    if chosen and name not in chosen.split(","):
        pytest.skip("not among --contenders")
    outcomes = load(data, name)
    arena = Arena(outcomes, cache.embed(outcomes.queries), cache.adapter.id)
    report = Report(f"compression_{name}", out)
    report.conditions = conditions(n=len(outcomes), seeds=seeds, command=command)
    runs = [measured(arena, seed) for seed in range(seeds)]
    names = [key for key in runs[0][0] if key != "share that left early"]
    apgr = {key: np.array([run[0][key][0] for run in runs]) for key in names}
    x = np.random.default_rng(0).normal(size=(64, 129))
    x[:, -1] = 1.0
    times = step_times(runs[-1][1], x)
    left = float(np.mean([run[0]["share that left early"][0] for run in runs]))
    base, plain = apgr["low rank U (8 of 32)"], times["low rank U (8 of 32)"]
    straight = _linear_time(runs[-1][1]["low rank U (8 of 32)"], x)
    times["early exit by the linear path"] = straight + (1 - left) * plain
    rows = [
        (key, runs[0][2].get(key), float(values.mean()), float(values.std()), 100 * float((base - values).mean()),
         times[key], plain / times[key])
        for key, values in apgr.items()
    ]  # fmt: skip
    report.table(
        "Each step of compression (specification 7.3)",
        ("form", "bytes", "APGR over cost", "sd over seeds", "points of APGR lost", "µs a step", "speed-up"),
        rows,
        f"Lost and speed-up against the low-rank router. {left:.0%} of the queries left early. numpy multiplies zeros"
        " and bytes as floats: sparsity and bytes save memory here, not time.",
    )
    lost = 100 * float((base - apgr["the same, 8-bit weights"]).mean())
    size = runs[0][2]["the same, 8-bit weights"]
    report.target("compressed router", "<= 8 KB, <= 0.5 points of APGR lost", f"{size} bytes, {lost:+.2f} points",
                  size <= _LIMIT and lost <= 0.5)  # fmt: skip
    assert (out / f"compression_{name}.json").is_file()


def _linear_time(folded: Folded, x: NDArray[np.float64]) -> float:
    rows, times = np.ascontiguousarray(folded.first[-16:]), []
    for call in range(_CALLS):
        row = x[call % len(x)]
        before = time.perf_counter_ns()
        rows.dot(row)
        times.append(time.perf_counter_ns() - before)
    return float(np.median(times)) / 1000
