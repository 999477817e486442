"""Ten thousand updates over tasks that drift: what naive training, EWC, replay and both keep, beside joint training.

    python -m pytest -m benchmark tests/benchmarks/router/test_continual.py --data FOLDER --keep FOLDER --rounds 3

`make bench-router` runs it with the others and puts its tables on their page.

`llmrouter_mix` by task and `paretobandit_k4` by domain. `--rounds` is the number of seeds: each is another order of the
tasks, another division of their rows (seven tenths to train on) and another first network. The inputs are the default
encoder's vectors behind one random projection to 128 places, so that nothing of a later task is known beforehand.
avalanche-lib's EWC and replay run beside ours where an interpreter that has it is named (AVALANCHE_PYTHON; it is no
dependency): the same network, first weights, rows, loss and optimiser; see avalanche_peer.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.learning.outcomes.bench import exchange
from ruvllm.learning.outcomes.continual import METHODS, Learnt, Plan, Task, learn, search_penalty
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.router.layout import N_FEATURES
from ruvllm.settings import PROJECT_ROOT
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

SETS = ("llmrouter_mix", "paretobandit_k4")
LEAST_ROWS = 150  # of a task; smaller domains join "others"
EARLIER = 3  # tasks that lambda is searched on
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
SEARCH_UPDATES = 900
TRANSFER, BELOW_JOINT = -0.010, 0.005
_COLUMNS = (
    "method", "average accuracy", "sd over seeds", "backward transfer", "largest drop", "utility", "below joint",
    "s a run",
)  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_ten_thousand_updates(
    name: str, data: Path, keep: Path, out: Path, cache: EmbeddingCache, seeds: int, command: str
) -> None:
    outcomes = load(data, name)
    vectors = cache.embed(outcomes.queries)
    began = time.perf_counter()
    rows: dict[str, list[tuple[Learnt, float]]] = {method.name: [] for method in METHODS}
    peers: dict[str, list[tuple[NDArray[np.float64], float]]] = {}
    chosen: dict[str, list[float]] = {}
    for seed in range(seeds):
        tasks = tasks_of(outcomes, vectors, seed)
        plan = Plan(exchange=exchange(outcomes.score, outcomes.cost))
        search = replace(plan, updates=SEARCH_UPDATES)
        for method in METHODS:
            started = time.perf_counter()
            if method.ewc:
                plan = replace(plan, penalty=search_penalty(tasks[:EARLIER], method, search, seed, PENALTIES))
                chosen.setdefault(method.name, []).append(plan.penalty)
            learnt = learn(tasks, method, plan, seed)
            rows[method.name].append((learnt, time.perf_counter() - started))
            print(f"{name}, seed {seed}, {method.name}: {learnt.average:.4f}, {rows[method.name][-1][1]:.0f} s")
        for peer, found in by_avalanche(tasks, plan, seed, keep).items():
            peers.setdefault(peer, []).append(found)
    _report(name, outcomes, tasks, rows, peers, chosen, time.perf_counter() - began, out, seeds, command)


def tasks_of(outcomes: OutcomeSet, vectors: NDArray[np.float32], seed: int) -> list[Task]:
    """A task a domain, in an order of the seed's."""
    random = np.random.default_rng(seed)
    projection = np.linalg.qr(random.normal(size=(vectors.shape[1], N_FEATURES)))[0] * vectors.shape[1] ** 0.5
    x = (vectors @ projection).astype(np.float32)
    counts = Counter(outcomes.domain.tolist())
    names = np.array([each if counts[each] >= LEAST_ROWS else "others" for each in outcomes.domain.tolist()])
    order = sorted(set(names.tolist()))
    random.shuffle(order)
    return [_task(name, np.flatnonzero(names == name), x, outcomes, random) for name in order]


def _task(
    name: str, rows: NDArray[np.int64], x: NDArray[np.float32], outcomes: OutcomeSet, random: np.random.Generator
) -> Task:
    train, test = np.split(random.permutation(rows), [int(0.7 * len(rows))])
    score, cost = outcomes.score, outcomes.cost
    return Task(name, x[train], score[train], cost[train], x[test], score[test], cost[test])


def by_avalanche(
    tasks: Sequence[Task], plan: Plan, seed: int, keep: Path
) -> dict[str, tuple[NDArray[np.float64], float]]:
    """Name -> accuracies (T, T) and seconds; empty where no interpreter with avalanche-lib is named."""
    python = os.environ.get("AVALANCHE_PYTHON")
    if not python:
        print("avalanche-lib: not measured; name an interpreter that has it in AVALANCHE_PYTHON")
        return {}
    given, found = keep / "avalanche-given.npz", keep / "avalanche-found.npz"
    arrays = {
        f"{place}.{part}": getattr(task, part)
        for place, task in enumerate(tasks)
        for part in ("x", "score", "test_x", "test_score")
    }
    about = [len(tasks), plan.updates, plan.batch, plan.learning_rate, plan.weight_decay, plan.penalty]
    np.savez(given, about=np.array([*about, plan.capacity, seed]), allow_pickle=False, **arrays)
    script = Path(__file__).with_name("avalanche_peer.py")  # by its path: avalanche brings a package `tests` of its own
    command = [python, str(script), str(given), str(found)]
    subprocess.run(command, cwd=PROJECT_ROOT, env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, check=True)
    with np.load(found, allow_pickle=False) as archive:
        return {
            name.removeprefix("accuracy."): (archive[name], float(archive[name.replace("accuracy.", "seconds.")]))
            for name in archive.files
            if name.startswith("accuracy.")
        }


def _said(method: str, penalties: Sequence[float]) -> str:
    return f"{method} {', '.join(f'{each:g}' for each in penalties)}"


def _report(
    name: str,
    outcomes: OutcomeSet,
    tasks: Sequence[Task],
    rows: dict[str, list[tuple[Learnt, float]]],
    peers: dict[str, list[tuple[NDArray[np.float64], float]]],
    chosen: dict[str, list[float]],
    seconds: float,
    out: Path,
    seeds: int,
    command: str,
) -> None:
    from ruvllm.evaluation.forgetting import transfer

    joint = np.array([learnt.average for learnt, _ in rows["joint"]])
    lines = []
    report = Report(f"continual-{name}", out, conditions(command=command, seeds=seeds, tasks=len(tasks)))
    for method, found in rows.items():
        average = np.array([learnt.average for learnt, _ in found])
        moved = [learnt.transfer for learnt, _ in found if learnt.transfer]
        back = float(np.mean([each.backward_transfer for each in moved])) if moved else None
        drop = float(np.mean([each.maximum_drop for each in moved])) if moved else None
        utility = float(np.mean([learnt.utility for learnt, _ in found]))
        lines.append((method, average.mean(), average.std(), back, drop, utility, float((joint - average).mean()),
                      float(np.mean([took for _, took in found]))))  # fmt: skip
    for peer, answers in peers.items():
        moved = [transfer(accuracy) for accuracy, _ in answers]
        average = np.array([each.average_accuracy for each in moved])
        lines.append((f"avalanche-lib: {peer}", average.mean(), average.std(),
                      float(np.mean([each.backward_transfer for each in moved])),
                      float(np.mean([each.maximum_drop for each in moved])), None,
                      float((joint - average).mean()), float(np.mean([took for _, took in answers]))))  # fmt: skip
    shown = [tuple(round(cell, 4) if isinstance(cell, float) else cell for cell in line) for line in lines]
    report.table(
        f"{name}: {len(tasks)} tasks, {Plan().updates:,} updates, {seeds} seeds", _COLUMNS, shown,
        f"Accuracy: share of outcomes foreseen, success or not, of every tier on held-out queries "
        f"(N = {sum(len(task.test_x) for task in tasks):,}), mean over tasks; utility: what the decisions at the end "
        f"bring, quality less cost at the exchange rate. lambda, searched on the first {EARLIER} tasks alone: "
        f"{'; '.join(_said(method, found) for method, found in chosen.items())}. "
        f"All of it took {seconds:.0f} s, the searches in it.",
    )  # fmt: skip
    both = next(line for line in lines if line[0] == "EWC + replay")
    report.target(f"{name}: EWC + replay, backward transfer", f">= {TRANSFER}", f"{both[3]:.4f}", both[3] >= TRANSFER)
    report.target(
        f"{name}: EWC + replay, average below joint", f"<= {BELOW_JOINT}", f"{both[6]:.4f}", both[6] <= BELOW_JOINT
    )
    last = [(learnt, took) for learnt, took in rows["EWC + replay"]][-1][0]
    names = [task.name for task in tasks]
    table = [(names[i], *(round(float(v), 3) for v in line)) for i, line in enumerate(last.accuracy)]
    report.table(f"{name}: EWC + replay, last seed: accuracy after each task", ("after", *names), table, "")
