"""What the deciding head is trained on: expected quality, the argmax label, or the oracle's tempered utilities.

    python -m pytest -m benchmark tests/benchmarks/router/test_objectives.py --data FOLDER --keep FOLDER --rounds 5

One network form, one optimiser, one trade-off (lambda at which the range of costs is worth the gap of quality). Only
the quality head can be asked at another lambda; the others have learnt this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ruvllm.evaluation.regret import Interval, make_bootstrap
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.networks import Training, make_reduction
from ruvllm.learning.outcomes.ours import FastGrnnQuality, Recipe
from ruvllm.learning.outcomes.splits import groups_of
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.router.layout import N_FEATURES
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import Arena, Ground, exchange
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

SETS = ("routellm_gsm8k", "paretobandit_k3", "paretobandit_k4", "llmrouter_mix")
_STEPS, _RATE, _DECAY, _DROPOUT, _TEMPERATURE = 160, 0.004, 2.0, 0.6, 0.1
Wide = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (n, m), utilities (n, m)


def label_loss(logits: Tensor, utility: Tensor) -> Tensor:
    """Cross-entropy with the argmax, as specification 5.3 has it."""
    return functional.cross_entropy(logits, utility.argmax(dim=1))


def distilled_loss(top_k: int) -> Loss:
    """Cross-entropy with softmax(U / T) over the `top_k` best tiers of each query."""

    def loss(logits: Tensor, utility: Tensor) -> Tensor:
        least = utility.topk(min(top_k, utility.shape[1]), dim=1).values[:, -1:]
        wanted = torch.where(utility >= least, utility / _TEMPERATURE, -1e9).softmax(dim=1)
        return -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()

    return loss


def utility_loss(logits: Tensor, utility: Tensor) -> Tensor:
    """Minus the expected utility of the softmax policy."""
    return -(logits.softmax(dim=1) * utility).sum(dim=1).mean() / _TEMPERATURE


OBJECTIVES: dict[str, Loss] = {
    "model head: argmax label": label_loss,
    "model head: distilled, all tiers": distilled_loss(4),
    "model head: distilled, best two": distilled_loss(2),
    "model head: expected utility": utility_loss,
}


@dataclass(frozen=True, eq=False)
class Chosen:
    rows: NDArray[np.int64]
    tier: NDArray[np.int64]


def by_model_head(ground: Ground, score: Wide, cost: Wide, weight: float, loss: Loss, seed: int) -> Chosen:
    x, train, test = ground.views["features"], ground.split.train, ground.split.test
    reduction = make_reduction(x[train], N_FEATURES)
    rows = torch.as_tensor(reduction.apply(x[train]))
    utility = torch.as_tensor(score[train] - weight * cost[train], dtype=torch.float32)
    network, draw = RouterNetwork(Cell(), seed), torch.Generator().manual_seed(seed)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=_RATE)
    for _ in range(_STEPS):
        keep = (torch.rand(rows.shape, generator=draw) >= _DROPOUT) / (1 - _DROPOUT)
        optimiser.zero_grad()
        loss(_logits(network, rows * keep, score.shape[1]), utility).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        logits = _logits(network, torch.as_tensor(reduction.apply(x[test])), score.shape[1])
    return Chosen(test, logits.argmax(dim=1).numpy())


def by_quality_head(ground: Ground, score: Wide, weight: float, order: float, seed: int) -> Chosen:
    x, train, test = ground.views["features"], ground.split.train, ground.split.test
    recipe = replace(Recipe(), training=Training(steps=_STEPS, order_weight=order))
    fitted = FastGrnnQuality(recipe=recipe).fit(x[train], score[train], seed)
    return Chosen(test, (fitted.predict(x[test]) - weight * ground.price[test]).argmax(axis=1))


def _logits(network: RouterNetwork, x: Tensor, tiers: int) -> Tensor:
    return network.read(network.step(x, network.first_hidden(len(x))), x).model[:, :tiers]


@pytest.mark.parametrize("name", SETS)
def test_objectives(
    name: str, data: Path, cache: EmbeddingCache, out: Path, command: str, seeds: int, request: pytest.FixtureRequest
) -> None:
    chosen = request.config.getoption("--contenders")
    if chosen and name not in chosen.split(","):
        pytest.skip("not among --contenders")
    outcomes = load(data, name)
    arena, score, cost = Arena(outcomes, cache.embed(outcomes.queries), cache.adapter.id), outcomes.score, outcomes.cost
    weight = exchange(score, cost)

    def found(choose: Callable[[Ground, int], Chosen]) -> tuple[Wide, NDArray[np.int64]]:
        """(k,) utility of each tested row, mean over the seeds, and the rows."""
        utilities, rows = [], np.zeros(0, dtype=np.int64)
        for seed in range(seeds):
            parts = [choose(ground, seed) for ground in arena.grounds(seed)]
            rows = np.concatenate([part.rows for part in parts])
            tier, order = np.concatenate([part.tier for part in parts]), np.argsort(rows)
            rows, tier = rows[order], tier[order]
            utilities.append(score[rows, tier] - weight * cost[rows, tier])
        return np.mean(utilities, axis=0), rows

    made = {
        "quality head": found(lambda g, s: by_quality_head(g, score, weight, 0.0, s)),
        "quality head, and the order of the tiers": found(lambda g, s: by_quality_head(g, score, weight, 0.5, s)),
    }
    for title, loss in OBJECTIVES.items():
        made[title] = found(lambda g, s, loss=loss: by_model_head(g, score, cost, weight, loss, s))
    base, rows = made["quality head"]
    groups = groups_of([outcomes.queries[row] for row in rows.tolist()]).astype(str)
    bootstrap = make_bootstrap(groups, 1000, 0)
    report = Report(f"objectives_{name}", out)
    report.conditions = conditions(n=len(rows), seeds=seeds, command=command)
    report.table(
        "Objectives at one trade-off, ours on features",
        ("trained on", "utility", "against the quality head [95 %]"),
        [(title, float(u.mean()), _interval(bootstrap.interval(u - base))) for title, (u, _) in made.items()],
        "Interval of the grouped bootstrap over tested rows, paired. Only the quality head can move lambda afterwards.",
    )
    assert (out / f"objectives_{name}.json").is_file()


def _interval(value: Interval) -> str:
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"
