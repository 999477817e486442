"""One outcome file, and what our router brings on it beside simple rivals. Knows nothing of the database.

Whoever has a ladder of their own measures it with this before they train: `ruvllm router bench`. The contest over the
public sets (`make bench-router`) has more rivals, views and seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.evaluation.frontier import SHARES, Path, cost_apgr, cost_at, decide, fixed_mixture, mixture_at, path
from ruvllm.evaluation.regret import Bootstrap, Interval, make_bootstrap
from ruvllm.learning.outcomes.baselines import LEARNERS, PROMPT_LENGTH, Means
from ruvllm.learning.outcomes.ours import FastGrnnQuality
from ruvllm.learning.outcomes.predictors import Learner
from ruvllm.learning.outcomes.prices import fit_prices
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import groups_of, splits_of
from ruvllm.progress import Progress, silent

Wide = NDArray[np.float64]
Array = NDArray[np.float32]

RESAMPLES = 1000
RIVALS = ("logistic regression", "k nearest neighbours")


@dataclass(frozen=True)
class Reached:
    """One contender on rows that it never saw. `utility` is at the exchange rate, `above` of the nine cost deciles."""

    name: str
    quality: float
    cost: float
    utility: float
    regret: Interval  # of utility, against the best tier of each query
    apgr: Interval | None  # over cost; None for a fixed tier
    above: int | None  # deciles at which the gain over the hull of fixed mixtures has its interval above 0


@dataclass(frozen=True)
class Benched:
    """`exchange` is lambda: quality a unit of cost, so that the whole cost range is worth the whole gap of quality."""

    tested: int
    exchange: float
    rows: tuple[Reached, ...]


def bench(outcomes: OutcomeSet, embedding: Array, seed: int = 0, show: Progress = silent) -> Benched:
    """By the official split, or grouped 5-fold where there is none; every tier has to be known of every row.

    Raises:
        LearningError: the rows cannot be learnt from, or the cheapest tier is the best.
    """
    chosen = (FastGrnnQuality(), *(each for each in LEARNERS if each.name in RIVALS), PROMPT_LENGTH, Means())
    found = [_predicted(outcomes, embedding, learner, seed) for learner in _shown(chosen, show)]
    rows = found[0].rows
    score, cost = outcomes.score[rows], outcomes.cost[rows]
    groups = groups_of([outcomes.queries[row] for row in rows.tolist()]).astype(str)
    bootstrap, rate = make_bootstrap(groups, RESAMPLES, seed), exchange(score, cost)
    learnt = [_reached(learner.name, each, score, cost, rate, bootstrap)
              for learner, each in zip(chosen, found, strict=True)]  # fmt: skip
    fixed = [_fixed(f"always {name}", score[:, place], cost[:, place], score, cost, rate, bootstrap)
             for place, name in enumerate(outcomes.tiers)]  # fmt: skip
    return Benched(len(rows), rate, (*learnt, *fixed))


def exchange(score: Wide, cost: Wide) -> float:
    """Lambda at which the cost range (n, m) is worth the gap between the cheapest and the best tier."""
    quality, spent = score.mean(axis=0), cost.mean(axis=0)
    return float((quality.max() - quality[spent.argmin()]) / (spent.max() - spent.min()))


@dataclass(frozen=True, eq=False)
class _Predictions:
    rows: NDArray[np.int64]  # (k,)
    quality: Wide  # (k, m)
    price: Wide  # (k, m)


def _shown(learners: Sequence[Learner], show: Progress) -> Iterator[Learner]:
    for done, learner in enumerate(learners):
        show(done, len(learners), learner.name)
        yield learner
    show(len(learners), len(learners), "")


def _predicted(outcomes: OutcomeSet, embedding: Array, learner: Learner, seed: int) -> _Predictions:
    lengths = np.log1p([[len(query)] for query in outcomes.queries]).astype(np.float32)
    x = lengths if learner in (PROMPT_LENGTH, Means()) else embedding
    both = np.concatenate([lengths, embedding], axis=1)
    parts = []
    for split in splits_of(outcomes, seed):
        fitted = learner.fit(x[split.train], outcomes.score[split.train], seed)
        prices = fit_prices(both[split.train], outcomes.cost[split.train])
        parts.append(_Predictions(split.test, fitted.predict(x[split.test]), prices.predict(both[split.test])))
    rows, quality, price = (np.concatenate([getattr(p, n) for p in parts]) for n in ("rows", "quality", "price"))
    order = np.argsort(rows)
    return _Predictions(rows[order], quality[order], price[order])


def _reached(name: str, made: _Predictions, score: Wide, cost: Wide, rate: float, bootstrap: Bootstrap) -> Reached:
    found, at = path(made.quality, made.price, score, cost), np.arange(len(score))
    picked = decide(made.quality, made.price, rate)
    gains = [
        bootstrap.interval(
            mixture_at(found, score, cost, cost_at(cost, share)).quality
            - fixed_mixture(score, cost, cost_at(cost, share)).quality
        )
        for share in SHARES
    ]
    one = _fixed(name, score[at, picked], cost[at, picked], score, cost, rate, bootstrap)
    apgr = cost_apgr(found, score, cost)
    drawn = _spread(found, score, cost, bootstrap)
    return Reached(
        name, one.quality, one.cost, one.utility, one.regret, Interval(apgr, *drawn), sum(g.low > 0 for g in gains)
    )


def _spread(found: Path, score: Wide, cost: Wide, bootstrap: Bootstrap) -> tuple[float, float]:
    """95 % of APGR over draws of the rows, thresholds as they are."""
    shares = np.linspace(0, 1, 11)
    curve = np.stack([mixture_at(found, score, cost, cost_at(cost, float(s))).quality for s in shares])
    area = np.trapezoid(curve, shares, axis=0)  # (n,)
    weak, strong = score[:, int(cost.mean(axis=0).argmin())], score[:, int(score.mean(axis=0).argmax())]
    drawn = (bootstrap.shares @ (area - weak)) / (bootstrap.shares @ (strong - weak))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _fixed(
    name: str, quality: Wide, spent: Wide, score: Wide, cost: Wide, rate: float, bootstrap: Bootstrap
) -> Reached:
    best = (score - rate * cost).max(axis=1)
    utility = quality - rate * spent
    return Reached(
        name, float(quality.mean()), float(spent.mean()), float(utility.mean()), bootstrap.interval(best - utility),
        None, None,
    )  # fmt: skip
