"""Do the off-policy bounds hold? 1,000 logs drawn from an outcome file, where the truth is known.

python -m pytest -m benchmark tests/benchmarks/router/test_offpolicy.py --data FOLDER --keep FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.evaluation.offpolicy import ESTIMATORS, Log, effective_size, estimate, gate, importance
from ruvllm.learning.outcomes.baselines import Ridge
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.splits import splits_of
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

Wide = NDArray[np.float64]
LOGS, ROWS, RESAMPLES = 1000, 500, 200
FIRST = 10_000  # seed: logs 0 to 299 were looked at while the form of the interval was chosen
EXPLORED = 0.2  # of the logging policy: epsilon-greedy
POWER_LOGS = 200  # for each length of the power curve
LENGTHS = (250, 500, 1000, 2000, 4000)
SPOILT = (0.25, 0.5, 1.0)  # share of its queries that the current policy sends by lot, in the power curve


@dataclass(frozen=True, eq=False)
class World:
    """The test rows of a set: true utility (n, m), a model fitted on its training rows, a logging policy."""

    utility: Wide
    predicted: Wide
    logging: Wide

    def value(self, policy: Wide) -> float:
        return float((policy * self.utility).sum(axis=1).mean())

    def draw(self, seed: int, n: int = ROWS) -> tuple[Log, NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, len(self.utility), n)
        chances = self.logging[rows]
        action = (chances.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=chances.shape[1] - 1)
        at = np.arange(n)
        return Log(action, chances[at, action], self.utility[rows, action], self.predicted[rows]), rows


def one_hot(chosen: NDArray[np.int64], tiers: int) -> Wide:
    policy: Wide = np.eye(tiers)[chosen]
    return policy


@pytest.fixture(scope="module")
def world(data: Path, cache: EmbeddingCache) -> World:
    outcomes = load(data, "paretobandit_k4")
    (split,) = splits_of(outcomes, 0)
    embedding = cache.embed(outcomes.queries)
    weight = 0.05 / outcomes.cost.mean(axis=0).max()  # the dearest call is worth 0.05 of quality
    utility = outcomes.score - weight * outcomes.cost
    tiers = len(outcomes.tiers)
    fitted = Ridge("ridge", 300.0).fit(embedding[split.train], outcomes.score[split.train], 0)
    predicted = fitted.predict(embedding[split.test]) - weight * outcomes.cost[split.train].mean(axis=0)
    logging = EXPLORED / tiers + (1 - EXPLORED) * one_hot(predicted.argmax(axis=1), tiers)
    return World(utility[split.test], predicted, logging)


def policies(world: World) -> dict[str, Wide]:
    n, tiers = world.utility.shape
    noisy = world.predicted + np.random.default_rng(0).normal(0, 0.05, world.predicted.shape)
    fixed = {f"always tier {tier}": one_hot(np.full(n, tier), tiers) for tier in range(tiers)}
    return {
        "greedy": one_hot(world.predicted.argmax(axis=1), tiers),
        "greedy, noisy": one_hot(noisy.argmax(axis=1), tiers),
        **fixed,
    }


def test_offpolicy(world: World, out: Path, command: str, logs: int) -> None:
    report = Report("offpolicy", out)
    report.conditions = conditions(n=logs, command=command)
    asked = policies(world)
    drawn = [world.draw(FIRST + seed) for seed in range(logs)]
    rows, least = [], 1.0
    for name, policy in asked.items():
        sizes = [effective_size(importance(log, policy[at])) for log, at in drawn[:100]]
        for how in ESTIMATORS:
            held, width = _held(drawn, policy, world.value(policy), how)
            least = min(least, held) if how == "dr" else least
            rows.append((name, world.value(policy), how, held, width, float(np.mean(sizes))))
    columns = ("policy", "true value", "estimator", "bounds hold", "mean width", "effective rows")
    report.table(f"95 % bounds on {logs} logs of {ROWS} rows", columns, rows)
    report.target("95 % bounds (DR) hold the truth, least of the policies", ">= 93 %", f"{least:.1%}", least >= 0.93)
    _gate(report, world, asked, drawn)
    _power(report, world, asked["greedy"], min(logs, POWER_LOGS))
    assert (out / "offpolicy.json").is_file()


def _held(drawn, policy: Wide, truth: float, how: str) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    held, width = 0, 0.0
    for seed, (log, at) in enumerate(drawn):
        value = estimate(log, policy[at], how, resamples=RESAMPLES, seed=seed).value
        held += value.low <= truth <= value.high
        width += value.high - value.low
    return held / len(drawn), width / len(drawn)


def _gate(report: Report, world: World, asked: dict[str, Wide], drawn) -> None:  # type: ignore[no-untyped-def]
    current = asked["greedy"]
    rows, least = [], 1.0
    for name, policy in asked.items():
        if name == "greedy":
            continue
        gain = world.value(policy) - world.value(current)
        refused = np.mean([
            not gate(log, policy[at], current[at], resamples=RESAMPLES, seed=seed).accepted
            for seed, (log, at) in enumerate(drawn)
        ])  # fmt: skip
        least = min(least, float(refused)) if gain < 0 else least
        rows.append((name, gain, float(refused)))
    report.table("The gate, against the greedy policy", ("candidate", "true gain", "refused"), rows)
    report.target("the gate refuses truly worse policies", ">= 95 %", f"{least:.1%}", least >= 0.95)


def _power(report: Report, world: World, greedy: Wide, logs: int) -> None:
    """How often the gate lets the greedy policy replace a spoilt one, and the spoilt one replace it."""
    n, tiers = greedy.shape
    rng = np.random.default_rng(1)
    by_lot, when = one_hot(rng.integers(0, tiers, n), tiers), rng.random((n, 1))
    rows = []
    for share in SPOILT:
        spoilt = np.where(when < share, by_lot, greedy)
        gain = world.value(greedy) - world.value(spoilt)
        for name, candidate, current, true in (
            ("greedy for spoilt", greedy, spoilt, gain), ("spoilt for greedy", spoilt, greedy, -gain),
        ):  # fmt: skip
            passed = [_accepted(world, candidate, current, length, logs) for length in LENGTHS]
            rows.append((name, f"{share:.0%}", true, *(f"{each:.0%}" for each in passed)))
    report.table(
        "Power of the gate: accepted, by rows of the log",
        ("candidate", "spoilt share", "true gain", *(str(length) for length in LENGTHS)),
        rows,
        f"{logs} logs each; the spoilt policy sends a share of its queries to a tier by lot. A strict gate: what a log"
        " cannot show is refused, better or not. The nightly gate's rule is the milder one: refused is what is shown"
        " to be worse.",
    )


def _accepted(world: World, candidate: Wide, current: Wide, length: int, logs: int) -> float:
    found = []
    for seed in range(logs):
        log, at = world.draw(FIRST + LOGS + seed, length)
        found.append(gate(log, candidate[at], current[at], resamples=RESAMPLES, seed=seed).accepted)
    return float(np.mean(found))


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> int:
    """`--rounds` below 5 asks for a quick look."""
    return LOGS if int(request.config.getoption("--rounds")) >= 5 else 20
