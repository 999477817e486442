"""Learning while answering: regret against the oracle on a stream, beside the peer's bandit, 20 orders of it.

python -m pytest -m benchmark tests/benchmarks/router/test_online.py --data FOLDER --keep FOLDER

Every contender sees the same 26 numbers of a query (25 whitened principal components of its vector and a 1, as the peer
documents its own), the same prices and one score a query: that of the tier it chose. `from zero` starts knowing
nothing; `after training` has seen every tier's score on the set's training rows. The peer is PyPI's paretobandit; it is
measured where it can be imported, and is no dependency.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.evaluation.regret import Interval
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import splits_of
from ruvllm.router.exploration import epsilon_greedy, fit_posterior, thompson
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import OURS, exchange
from tests.benchmarks.router.page import STREAM
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

Wide = NDArray[np.float64]
SET = "paretobandit_k3"
DIMENSION = 26
PASSES = 20  # orders of the stream
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
EPSILON = 0.05
REFITTED = 25  # outcomes
LEVEL, RESIDUAL = 10.0, 1.0  # the constant beside the components: of whole scores, and of what a router misses
FIRST = 100  # seed of the first order; refitting and constants were looked at on two other orders of the stream
POINTS = 20  # of the figure
SERVED = "Thompson (ours) on the trained router, after training: as it is served"
CURVE = "Mean regret a query, by share of the stream"


class Contender(Protocol):
    def choose(self, x: Wide, expected: Wide, rng: np.random.Generator) -> int: ...

    def learn(self, tier: int, x: Wide, off: float) -> None:
        """`off`: the score, minus what was expected of that tier where the contender starts from a router."""
        ...


class Drawn:
    """Ours: Thompson sampling over Bayesian linear regressions, as in service: prior and noise fitted now and then."""

    def __init__(self, tiers: int, constant: float) -> None:
        self.tiers, self.constant = tiers, constant
        self.seen: list[Wide] = []
        self.rewards: list[Wide] = []
        self.posterior = fit_posterior(np.zeros((0, DIMENSION)), np.zeros((0, tiers)))

    def choose(self, x: Wide, expected: Wide, rng: np.random.Generator) -> int:
        return thompson(self.posterior, self._own(x), [True] * len(expected), rng, expected=expected).place

    def learn(self, tier: int, x: Wide, off: float) -> None:
        self.seen.append(self._own(x))
        self.rewards.append(np.where(np.arange(self.tiers) == tier, off, np.nan))
        if len(self.seen) % REFITTED:
            self.posterior.learn(tier, self.seen[-1], off)
        else:
            self.posterior = fit_posterior(np.stack(self.seen), np.stack(self.rewards))

    def _own(self, x: Wide) -> Wide:
        """The same numbers with a constant that says how far a tier's level may be off, against its slopes."""
        return np.append(x[:-1], self.constant)


class Greedy(Drawn):
    """Ours: the same regressions, epsilon-greedy."""

    def choose(self, x: Wide, expected: Wide, rng: np.random.Generator) -> int:
        means = self.posterior.mean(self._own(x)) + expected
        return epsilon_greedy(means, [True] * len(expected), EPSILON, rng).place


class Still:
    """A router that learns nothing on the stream."""

    def choose(self, x: Wide, expected: Wide, rng: np.random.Generator) -> int:
        return int(expected.argmax())

    def learn(self, tier: int, x: Wide, off: float) -> None:
        return None


class Peer:
    """paretobandit's LinUCB; `expected` holds minus the price, which it takes as a penalty."""

    def __init__(self, tiers: int, alpha: float) -> None:
        policies = importlib.import_module("pareto_bandit.policy")
        self.names = [str(tier) for tier in range(tiers)]
        self.policy = policies.DisjointLinUCBPolicy(self.names, dim=DIMENSION, alpha=alpha, seed=0)

    def choose(self, x: Wide, expected: Wide, rng: np.random.Generator) -> int:
        penalties = dict(zip(self.names, (-expected).tolist(), strict=True))
        return int(self.policy.select_arm(x, candidates=self.names, cost_penalties=penalties)[0])

    def learn(self, tier: int, x: Wide, off: float) -> None:
        self.policy.update(self.names[tier], x, off)


@dataclass(frozen=True, eq=False)
class Stream:
    """The tested rows: what contenders see, and what nobody but the judge does."""

    x: Wide  # (n, 26)
    price: Wide  # (m,) mean of the training rows, times lambda: known to all
    score: Wide  # (n, m)
    utility: Wide  # (n, m)
    expected: Wide  # (n, m) scores that the trained router expects
    lesson_x: Wide  # (k, 26) of the training rows
    lesson: Wide  # (k, m)
    lesson_expected: Wide  # (k, m) what the trained router says of the rows that it was trained on

    @property
    def lost(self) -> Wide:
        """(n, m): regret of each choice."""
        return np.asarray(self.utility.max(axis=1, keepdims=True) - self.utility)


def make_stream(outcomes: OutcomeSet, embedding: NDArray[np.float32]) -> Stream:
    (split,) = splits_of(outcomes, 0)
    train, test = split.train, split.test
    rate = exchange(outcomes.score[train], outcomes.cost[train])
    mean = embedding[train].mean(axis=0)
    axes = np.linalg.svd(embedding[train] - mean, full_matrices=False)[2][: DIMENSION - 1]
    spread = ((embedding[train] - mean) @ axes.T).std(axis=0)

    def seen(rows: NDArray[np.int64]) -> Wide:
        return np.concatenate([(embedding[rows] - mean) @ axes.T / spread, np.ones((len(rows), 1))], axis=1)

    router = OURS.fit(embedding[train], outcomes.score[train], 0)
    return Stream(
        x=seen(test).astype(np.float64),
        price=rate * outcomes.cost[train].mean(axis=0),
        score=outcomes.score[test],
        utility=outcomes.score[test] - rate * outcomes.cost[test],
        expected=router.predict(embedding[test]),
        lesson_x=seen(train).astype(np.float64),
        lesson=outcomes.score[train],
        lesson_expected=router.predict(embedding[train]),
    )


def play(contender: Contender, stream: Stream, from_router: bool, seed: int) -> Wide:
    """(n,): regret of each query, in the order of this seed."""
    rng = np.random.default_rng(seed)
    lost = stream.lost
    order = rng.permutation(len(lost))
    regret = np.zeros(len(order))
    for step, row in enumerate(order.tolist()):
        known = stream.expected[row] if from_router else np.zeros(len(stream.price))
        tier = contender.choose(stream.x[row], known - stream.price, rng)
        contender.learn(tier, stream.x[row], float(stream.score[row, tier] - known[tier]))
        regret[step] = lost[row, tier]
    return regret


def taught(contender: Contender, stream: Stream, from_router: bool = False) -> Contender:
    """After all tiers' scores of the training rows, or what the router missed of them."""
    lesson = stream.lesson - stream.lesson_expected if from_router else stream.lesson
    for x, scores in zip(stream.lesson_x, lesson, strict=True):
        for tier, score in enumerate(scores.tolist()):
            contender.learn(tier, x, score)
    return contender


def contenders(stream: Stream) -> dict[str, tuple[Callable[[], Contender], bool]]:
    """Name -> how a fresh one is made, and whether it starts from the trained router."""
    tiers = len(stream.price)
    made: dict[str, tuple[Callable[[], Contender], bool]] = {
        "Thompson (ours), from zero": (lambda: Drawn(tiers, LEVEL), False),
        "epsilon-greedy (ours), from zero": (lambda: Greedy(tiers, LEVEL), False),
        "trained router, learns nothing": (Still, True),
        "Thompson (ours) on the trained router": (lambda: Drawn(tiers, RESIDUAL), True),
        "epsilon-greedy (ours) on the trained router": (lambda: Greedy(tiers, RESIDUAL), True),
    }
    drawn = taught(Drawn(tiers, LEVEL), stream)
    made["Thompson (ours), after training"] = (lambda: copy.deepcopy(drawn), False)
    seeded = taught(Drawn(tiers, RESIDUAL), stream, from_router=True)
    made[SERVED] = (lambda: copy.deepcopy(seeded), True)
    if importlib.util.find_spec("pareto_bandit") is not None:
        for alpha in (0.01, 0.1):  # its default, and the one that explores
            name = f"paretobandit, alpha {alpha:g}"
            warm = taught(Peer(tiers, alpha), stream)
            made[f"{name}, from zero"] = (lambda alpha=alpha: Peer(tiers, alpha), False)  # type: ignore[misc]
            made[f"{name}, after training"] = (lambda warm=warm: copy.deepcopy(warm), False)  # type: ignore[misc]
    return made


def test_online(data: Path, cache: EmbeddingCache, out: Path, command: str, passes: int) -> None:
    outcomes = load(data, SET)
    stream = make_stream(outcomes, cache.embed(outcomes.queries))
    report = Report("online", out)
    report.conditions = conditions(n=len(stream.x), seeds=passes, command=command)
    found = {
        name: np.stack([play(make(), stream, from_router, FIRST + seed) for seed in range(passes)])
        for name, (make, from_router) in contenders(stream).items()
    }  # (passes, n) each
    _curves(report, stream, found)
    _along(report, found)
    _ahead(report, found)
    assert (out / "online.json").is_file()


@pytest.fixture
def passes(request: pytest.FixtureRequest) -> int:
    """`--rounds` below 5 asks for a quick look."""
    rounds = int(request.config.getoption("--rounds"))
    return PASSES if rounds >= 5 else rounds


def _curves(report: Report, stream: Stream, found: dict[str, Wide]) -> None:
    n = len(stream.x)
    fixed = stream.lost.mean(axis=0)
    rows: list[tuple[Any, ...]] = [
        (name, *(_of_seeds(regret[:, : max(1, int(share * n))].mean(axis=1)) for share in SHARES))
        for name, regret in found.items()
    ]
    rows.append(("best fixed tier, known afterwards", *([f"{fixed.min():.4f}"] * len(SHARES))))
    rows.append(("any tier, by lot", *([f"{fixed.mean():.4f}"] * len(SHARES))))
    report.table(
        CURVE,
        ("contender", *(f"{share:.0%}" for share in SHARES)),
        rows,
        f"{n} queries of {SET}'s test rows; utility is score minus lambda times cost, lambda such that the training"
        " rows' range of cost is worth their gap of quality; the oracle knows every outcome. Means over the orders of"
        " the stream with 95 % intervals.",
    )


def _along(report: Report, found: dict[str, Wide]) -> None:
    """What the figure is drawn from."""
    n = next(iter(found.values())).shape[1]
    steps = [int(step) for step in np.linspace(0, n, POINTS + 1)[1:]]
    rows = [(name, *regret.mean(axis=0).cumsum()[np.array(steps) - 1].tolist()) for name, regret in found.items()]
    report.table(STREAM, ("contender", *(str(step) for step in steps)), rows, "Means over the orders of the stream.")


def _ahead(report: Report, found: dict[str, Wide]) -> None:
    peers = {name: regret for name, regret in found.items() if name.startswith("paretobandit")}
    for kind, ours in (("from zero", "Thompson (ours), from zero"),
                       ("after training", SERVED)):  # fmt: skip
        rivals = [name for name in peers if name.endswith(kind)]
        what = f"online regret {kind}: not above paretobandit's"
        if not rivals:
            report.target(what, "upper bound of the difference <= 0", "paretobandit is not installed", None)
            continue
        best = min(rivals, key=lambda name: float(peers[name].mean()))
        gap = _interval(found[ours].mean(axis=1) - peers[best].mean(axis=1))
        said = f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] against {best}"
        report.target(what, "upper bound of the difference <= 0", said, gap.high <= 0)


def _of_seeds(values: Wide) -> str:
    found = _interval(values)
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _interval(values: Wide) -> Interval:
    """95 % for the mean over seeds, by its standard error."""
    error = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(float(values.mean()), float(values.mean() - error), float(values.mean() + error))
