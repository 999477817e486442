"""Tasks one after another, an update at a time: what each way of keeping old knowledge keeps. Knows nothing of files.

The network, its Fisher information, the EWC state and the reservoir are the product's own (fastgrnn.py, fisher.py,
ewc.py, replay.py); only the order of the rows is made here. An update is one step on a batch, of as many rows for every
method: rows of the task at hand, and with replay, as in the night, what the reservoir kept of earlier tasks too, each
row as often. A network starts knowing nothing, its inputs are scaled and reduced as the first task's rows say, and no
method is told where a later task will lead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ruvllm.errors import LearningError
from ruvllm.evaluation.forgetting import Transfer, transfer
from ruvllm.learning.config import LossConfig
from ruvllm.learning.ewc import Ewc, Origin
from ruvllm.learning.fisher import fisher
from ruvllm.learning.fit import Batch
from ruvllm.learning.loss import quality_loss
from ruvllm.learning.replay import offer, offer_by_stratum
from ruvllm.progress import Progress, silent
from ruvllm.router.decision import N_TIERS
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.router.layout import LAYOUT

Array = NDArray[np.float32]
Wide = NDArray[np.float64]

NONE, TASKS, ONLINE = "", "tasks", "online"  # which EWC: none, an anchor a task, one state with decay
_ONLY_QUALITY = LossConfig(
    model=0, context=0, quality=1, order=0, distil=0, tempered=1, top_k=1, utility=0, temperature=0, top_p=0,
    confidence=0, epsilon=0, weight_floor=1,
)  # fmt: skip
_HALF = 0.5  # a score from here on is a success


@dataclass(frozen=True, eq=False)
class Task:
    """Rows of one domain: inputs (n, 128), scores and costs (n, m) of every tier; the same of rows never trained on."""

    name: str
    x: Array
    score: Wide
    cost: Wide
    test_x: Array
    test_score: Wide
    test_cost: Wide


@dataclass(frozen=True)
class Method:
    """How old knowledge is kept. `joint` sees all tasks, each as often, from the first update on: what is aimed at."""

    name: str
    ewc: str = NONE
    replay: bool = False
    joint: bool = False


METHODS = (
    Method("naive"),
    Method("EWC, an anchor a task", ewc=TASKS),
    Method("online EWC", ewc=ONLINE),
    Method("replay", replay=True),
    Method("EWC + replay", ewc=ONLINE, replay=True),
    Method("joint", joint=True),
)


@dataclass(frozen=True)
class Plan:
    """The same for every method. `stratified`: each task has the same share of the reservoir."""

    updates: int = 10_000
    batch: int = 64  # rows
    learning_rate: float = 0.002
    weight_decay: float = 0.01
    exchange: float = 0.0  # lambda: quality that a unit of cost is worth
    penalty: float = 100.0
    decay: float = 0.95  # of the earlier tasks' Fisher information, once a task
    capacity: int = 2000  # rows of the reservoir, as Settings.replay_capacity
    stratified: bool = False
    fisher_rows: int = 200
    cell: Cell = field(default_factory=Cell)

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "capacity", "fisher_rows"):
            if getattr(self, name) < 1:
                raise LearningError(f"continual plan: {name} is {getattr(self, name)}, want 1 or more")


@dataclass(frozen=True, eq=False)
class Learnt:
    """`accuracy` (T, T): row i after task i, column j of task j's held-out rows; joint has its last row only."""

    method: Method
    accuracy: Wide
    utility: float  # mean over all tasks' held-out rows of what the decisions at the end bring
    updates: int

    @property
    def transfer(self) -> Transfer | None:
        return None if self.method.joint else transfer(self.accuracy)

    @property
    def average(self) -> float:
        return float(self.accuracy[-1].mean())


def learn(tasks: Sequence[Task], method: Method, plan: Plan, seed: int, show: Progress = silent) -> Learnt:
    """All `plan.updates`, shared evenly among the tasks, in their order. Deterministic on one torch thread.

    Raises:
        LearningError: fewer than two tasks, or tasks of different tiers.
    """
    _check(tasks)
    learner = _Learner(tasks[0].score.shape[1], method, plan, seed)
    accuracy = np.full((len(tasks), len(tasks)), np.nan)
    steps = plan.updates // len(tasks)
    for place, task in enumerate(tasks):
        show(place, len(tasks), f"{method.name}: {task.name}")
        learner.take(tasks if method.joint else [task], steps)
        learner.keep(place, task)
        accuracy[place] = [learner.accuracy(each) for each in tasks]
    show(len(tasks), len(tasks), method.name)
    utility = float(np.mean([learner.utility(task).mean() for task in tasks]))
    return Learnt(method, accuracy, utility, steps * len(tasks))


def search_penalty(
    tasks: Sequence[Task], method: Method, plan: Plan, seed: int, penalties: Sequence[float], show: Progress = silent
) -> float:
    """The EWC penalty with the best average accuracy on rows held out of the first tasks' own training rows.

    No test row and no later task is looked at: what is chosen is chosen before the sequence begins.
    """
    earlier = [_inner(task, seed) for task in tasks]
    found = {
        penalty: learn(earlier, method, replace(plan, penalty=penalty), seed, show).average for penalty in penalties
    }
    return max(found, key=lambda penalty: found[penalty])


def _inner(task: Task, seed: int, held: float = 0.25) -> Task:
    order = np.random.default_rng(seed).permutation(len(task.x))
    test, train = np.split(order, [max(1, int(held * len(order)))])
    return Task(
        task.name, task.x[train], task.score[train], task.cost[train], task.x[test], task.score[test], task.cost[test]
    )


def _check(tasks: Sequence[Task]) -> None:
    tiers = {task.score.shape[1] for task in tasks}
    if len(tasks) < 2 or len(tiers) != 1:
        raise LearningError(f"continual tasks: got {len(tasks)} with {sorted(tiers)} tiers, want two or more alike")
    empty = [task.name for task in tasks if not len(task.x) or not len(task.test_x)]
    if empty:
        raise LearningError(f"continual tasks: {', '.join(empty)} has no rows to train or to test on; leave it out")


class _Learner:
    """One network on its way through the tasks, and what it keeps of them."""

    def __init__(self, tiers: int, method: Method, plan: Plan, seed: int) -> None:
        self.method, self.plan, self.tiers = method, plan, tiers
        self.network = RouterNetwork(plan.cell, seed)
        self.network.tier_mask.copy_((torch.arange(N_TIERS) < tiers).float())
        self._optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self._draw = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._ewc: Ewc | None = None
        self._slots: dict[str, list[str]] = {}
        self._seen: dict[str, int] = {}
        self._x, self._score = torch.zeros(0, 0), torch.zeros(0, 0)  # of the reservoir
        self._past: list[Task] = []

    def take(self, tasks: Sequence[Task], steps: int) -> None:
        """`steps` updates on the rows of `tasks`, each task as often; with replay on a task's and the reservoir's."""
        x = torch.as_tensor(np.concatenate([task.x for task in tasks]))
        score = torch.as_tensor(np.concatenate([task.score for task in tasks]), dtype=torch.float32)
        often = torch.cat([torch.full((len(task.x),), 1 / len(task.x)) for task in tasks])
        if self.method.replay and len(self._x):
            x, score = torch.cat([x, self._x]), torch.cat([score, self._score])
            often = torch.ones(len(x))
        for _ in range(steps):
            rows = torch.multinomial(often, self.plan.batch, replacement=True, generator=self._draw)
            self._step(x[rows], score[rows])

    def _step(self, x: Tensor, score: Tensor) -> None:
        loss = quality_loss(_logits(self.network, x, self.tiers), score).mean()
        if self._ewc is not None:
            loss = loss + self._ewc.loss(dict(self.network.named_parameters()))
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def keep(self, place: int, task: Task) -> None:
        """What the method keeps of a task that is over."""
        if self.method.ewc:
            self._ewc = self._consolidated(task)
        if self.method.replay:
            self._past.append(task)
            self._offer(place, task)

    def _consolidated(self, task: Task) -> Ewc:
        rows = self._rng.permutation(len(task.x))[: self.plan.fisher_rows]
        x = torch.as_tensor(task.x[rows])[:, None]
        batch = Batch(x, torch.ones(x.shape[:2], dtype=torch.bool), np.arange(len(rows)))
        fresh = fisher(self.network, batch, _ONLY_QUALITY)
        anchor = {name: np.array(value.detach().numpy()) for name, value in self.network.named_parameters()}
        origin = Origin(task.name, "outcomes", (), "", LAYOUT.hash, self.plan.cell.variant)
        if self._ewc is None:
            return Ewc(fresh, anchor, self.plan.penalty, self.plan.decay, origin, len(rows))
        if self.method.ewc == ONLINE:
            return self._ewc.consolidated(fresh, anchor, len(rows), origin)
        return _with_anchor(self._ewc, fresh, anchor)

    def _offer(self, place: int, task: Task) -> None:
        keys = [f"{place}:{row}" for row in self._rng.permutation(len(task.x)).tolist()]
        if self.plan.stratified:
            offer_by_stratum(self._slots, self._seen, task.name, keys, self.plan.capacity, self._rng)
        else:
            slots = self._slots.setdefault("", [])
            self._seen[""] = offer(slots, self._seen.get("", 0), keys, self.plan.capacity, self._rng)
        held = [key.split(":") for slots in self._slots.values() for key in slots]
        places, rows = (np.array(part, dtype=int) for part in zip(*held, strict=True))
        self._x = torch.as_tensor(np.stack([self._past[p].x[r] for p, r in zip(places, rows, strict=True)]))
        scores = np.stack([self._past[p].score[r] for p, r in zip(places, rows, strict=True)])
        self._score = torch.as_tensor(scores, dtype=torch.float32)

    def utility(self, task: Task) -> Wide:
        """(n,): what each held-out row's decision brings, cost as it was."""
        return _utility(task, self.plan)[np.arange(len(task.test_x)), self._decided(task)]

    def accuracy(self, task: Task) -> float:
        """Share of held-out outcomes, of every tier that was run, that are foreseen: success or not."""
        known = np.isfinite(task.test_score)
        return float(((self._quality(task) >= _HALF) == (task.test_score >= _HALF))[known].mean())

    def _decided(self, task: Task) -> NDArray[np.int64]:
        """By expected utility: quality as predicted, cost as each tier's mean on the task's training rows."""
        expected = self._quality(task) - self.plan.exchange * np.nanmean(task.cost, axis=0)
        decided: NDArray[np.int64] = expected.argmax(axis=1)
        return decided

    def _quality(self, task: Task) -> Wide:
        with torch.no_grad():
            logits = _logits(self.network, torch.as_tensor(task.test_x), self.tiers)
        return torch.sigmoid(logits).double().numpy()


def _logits(network: RouterNetwork, x: Tensor, tiers: int) -> Tensor:
    return network.read(network.step(x, network.first_hidden(len(x))), x).quality[:, :tiers]


def _utility(task: Task, plan: Plan) -> Wide:
    utility: Wide = task.test_score - plan.exchange * task.test_cost
    return utility


def _with_anchor(ewc: Ewc, fresh: dict[str, Array], anchor: dict[str, Array]) -> Ewc:
    """One state that pulls as an anchor a task does: sum_k F_k (theta - theta_k)^2 is, up to a constant,
    F (theta - c)^2 with F = sum F_k and c the mean of the anchors weighted by F_k."""
    total = {name: old + fresh[name] for name, old in ewc.fisher.items()}
    centre = {
        name: np.where(
            total[name] > 0,
            (ewc.fisher[name] * ewc.anchor[name] + fresh[name] * anchor[name]) / np.maximum(total[name], 1e-30),
            anchor[name],
        ).astype(np.float32)
        for name in total
    }
    return replace(ewc, fisher=total, anchor=centre)
