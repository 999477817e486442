"""Every contender on one outcome set: predictions for rows it never saw, then what they bring. Knows no report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ruvllm.evaluation.frontier import (
    SHARES,
    cost_apgr,
    cost_at,
    decide,
    fixed_mixture,
    mixture_at,
    path,
)
from ruvllm.evaluation.regret import Bootstrap, Interval, make_bootstrap
from ruvllm.evaluation.routing import CallCurve, call_curve
from ruvllm.learning.outcomes.baselines import LEARNERS, PROMPT_LENGTH, Means, Random
from ruvllm.learning.outcomes.features import features_of, tokens_of
from ruvllm.learning.outcomes.neighbours import neighbour_scores, with_neighbours
from ruvllm.learning.outcomes.ours import FastGrnnQuality
from ruvllm.learning.outcomes.predictors import Learner
from ruvllm.learning.outcomes.prices import fit_prices
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import Split, groups_of, splits_of
from ruvllm.router.transforms import fit_transforms
from tests.benchmarks.router.kept import Kept, Pace

Wide = NDArray[np.float64]
Array = NDArray[np.float32]

OURS = FastGrnnQuality()
VIEWS = ("features", "embedding")
RESAMPLES = 1000
_NO_SEED = ("logistic regression", "k nearest neighbours", "prompt length", "fixed mixture (train)")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of one seed, for the rows that are tested, in the order of `rows`."""

    rows: NDArray[np.int64]  # (k,) of the set
    quality: Wide  # (k, m)
    price: Wide  # (k, m) expected cost


@dataclass(frozen=True, eq=False)
class Measured:
    """One contender, averaged over seeds; intervals are of the grouped bootstrap over test rows."""

    view: str
    learner: str
    seeds: int
    apgr: Interval  # over cost
    apgr_spread: float  # standard deviation over seeds
    quality: Wide  # (11,) mean score at each tenth of the cost range
    calls: list[CallCurve]  # of two tiers: by share of strong calls, one a seed
    gains: list[Interval]  # over the hull, at the nine interior deciles of cost
    gain_rows: Wide  # (k,) mean over the deciles
    utility: float
    utility_regret: Interval
    quality_regret: Interval  # 1 to 5, against always-big
    saved: float  # share of always-big's cost


def contenders(view: str) -> Sequence[Learner]:
    return (Random(), Means(), PROMPT_LENGTH) if view == "none" else (*LEARNERS, OURS)


@dataclass(frozen=True, eq=False)
class Ground:
    """One split, what contenders may look at in it, and the prices that all of them share."""

    split: Split
    views: dict[str, Array]  # each (n, d)
    price: Wide  # (n, m)


class Arena:
    """One outcome set and its vectors; what all contenders share is made once a seed.

    `kept` has the predictions of an earlier run, `pace` hears of each.
    """

    def __init__(
        self,
        outcomes: OutcomeSet,
        embedding: Array,
        encoder_id: str,
        kept: Kept | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.outcomes, self._embedding, self._encoder = outcomes, embedding, encoder_id
        self._kept, self._pace = kept or Kept(None), pace
        self._grounds: dict[int, list[Ground]] = {}
        self._groups = groups_of(outcomes.queries)

    def grounds(self, seed: int) -> list[Ground]:
        """By the official split, whatever the seed, or one a fold."""
        key = 0 if self.outcomes.has_split else seed
        if key not in self._grounds:
            self._grounds[key] = [self._ground(split) for split in splits_of(self.outcomes, key)]
        return self._grounds[key]

    def predict(self, learner: Learner, view: str, seed: int) -> Predictions:
        """For every row that is tested, in the order of the set."""
        if self._pace:
            self._pace.begin()
        key = (self._rows_digest, self._encoder, repr(learner), view, seed)
        arrays, found = self._kept.once(key, lambda: vars(self._predicted(learner, view, seed)))
        if self._pace:
            self._pace.done(view, learner.name, found)
        return Predictions(**arrays)  # type: ignore[arg-type]  # as they were kept

    @cached_property
    def _rows_digest(self) -> str:
        """Of everything that a prediction depends on but the contender."""
        outcomes, digest = self.outcomes, hashlib.sha256()
        for array in (outcomes.score, outcomes.cost, outcomes.split, self._embedding):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\n".join(outcomes.queries).encode())
        return digest.hexdigest()

    def _predicted(self, learner: Learner, view: str, seed: int) -> Predictions:
        parts = [self._one(ground, learner, view, seed) for ground in self.grounds(seed)]
        rows, quality, price = (np.concatenate([getattr(p, n) for p in parts]) for n in ("rows", "quality", "price"))
        order = np.argsort(rows)
        return Predictions(rows[order], quality[order], price[order])

    def _one(self, ground: Ground, learner: Learner, view: str, seed: int) -> Predictions:
        x, train, test = ground.views[view], ground.split.train, ground.split.test
        fitted = learner.fit(x[train], self.outcomes.score[train], seed)
        return Predictions(test, fitted.predict(x[test]), ground.price[test])

    def _ground(self, split: Split) -> Ground:
        queries, embedding = self.outcomes.queries, self._embedding
        length = np.array([[np.log1p(tokens_of(query))] for query in queries], dtype=np.float32)
        near = neighbour_scores(embedding, self.outcomes.score, self._groups, split.train)
        transforms = fit_transforms(embedding[split.train], 0)
        features = with_neighbours(features_of(queries, embedding, transforms, self._encoder), near)
        both = np.concatenate([length, embedding], axis=1)
        prices = fit_prices(both[split.train], self.outcomes.cost[split.train])
        return Ground(split, {"none": length, "features": features, "embedding": embedding}, prices.predict(both))


def seeds_of(outcomes: OutcomeSet, learner: Learner, seeds: int) -> range:
    """One is enough where neither the split nor the contender draws anything."""
    return range(1 if outcomes.has_split and learner.name in _NO_SEED else seeds)


def measure(arena: Arena, learner: Learner, view: str, seeds: int) -> Measured:
    outcomes = arena.outcomes
    made = [arena.predict(learner, view, seed) for seed in seeds_of(outcomes, learner, seeds)]
    rows = made[0].rows
    score, cost = outcomes.score[rows], outcomes.cost[rows]
    groups = groups_of([outcomes.queries[row] for row in rows.tolist()]).astype(str)
    bootstrap = make_bootstrap(groups, RESAMPLES, 0)
    found = [_reach(each, score, cost) for each in made]
    apgrs = [each.apgr for each in found]
    hull = np.stack([fixed_mixture(score, cost, cost_at(cost, share)).quality for share in SHARES])  # (9, k)
    curve = np.mean([each.curve for each in found], axis=0)  # (11, k)
    gains = curve[1:10] - hull
    decided = np.mean([each.decided for each in found], axis=0)  # (3, k): utility, quality, cost
    weight = exchange(score, cost)
    big = int(cost.mean(axis=0).argmax())
    return Measured(
        view, learner.name, len(made),
        _apgr_interval(curve, score, cost, bootstrap), float(np.std(apgrs)), curve.mean(axis=1),
        [each.calls for each in found if each.calls],
        [bootstrap.interval(row) for row in gains], gains.mean(axis=0),
        float(decided[0].mean()), bootstrap.interval((score - weight * cost).max(axis=1) - decided[0]),
        bootstrap.interval(4 * (score[:, big] - decided[1])), float(1 - decided[2].mean() / cost[:, big].mean()),
    )  # fmt: skip


def apgr_of(arena: Arena, learner: Learner, view: str, seed: int) -> float:
    """APGR over cost of one seed."""
    made = arena.predict(learner, view, seed)
    return _reach(made, arena.outcomes.score[made.rows], arena.outcomes.cost[made.rows]).apgr


def reached_apgr(arena: Arena, parts: Sequence[Predictions]) -> float:
    """APGR over cost of predictions that were made split by split."""
    rows, quality, price = (np.concatenate([getattr(p, n) for p in parts]) for n in ("rows", "quality", "price"))
    order = np.argsort(rows)
    made = Predictions(rows[order], quality[order], price[order])
    return _reach(made, arena.outcomes.score[made.rows], arena.outcomes.cost[made.rows]).apgr


def exchange(score: Wide, cost: Wide) -> float:
    """Lambda at which the whole cost range is worth the whole gap of quality: the middle of the trade."""
    quality, spent = score.mean(axis=0), cost.mean(axis=0)
    return float((quality.max() - quality[spent.argmin()]) / (spent.max() - spent.min()))


@dataclass(frozen=True, eq=False)
class _Reach:
    apgr: float
    curve: Wide  # (11, k) quality of each row at each tenth of the cost range
    decided: Wide  # (3, k) utility, quality and cost at lambda = exchange
    calls: CallCurve | None


def _reach(made: Predictions, score: Wide, cost: Wide) -> _Reach:
    found = path(made.quality, made.price, score, cost)
    shares = np.linspace(0, 1, 11)
    curve = np.stack([mixture_at(found, score, cost, cost_at(cost, float(share))).quality for share in shares])
    weight, rows = exchange(score, cost), np.arange(len(score))
    chosen = decide(made.quality, made.price, weight)
    quality, spent = score[rows, chosen], cost[rows, chosen]
    decided = np.stack([quality - weight * spent, quality, spent])
    return _Reach(cost_apgr(found, score, cost), curve, decided, _calls(made, score))


def _calls(made: Predictions, score: Wide) -> CallCurve | None:
    if score.shape[1] != 2:
        return None
    strong = int(score.mean(axis=0).argmax())
    preference = made.quality[:, strong] - made.quality[:, 1 - strong]
    return call_curve(preference, score[:, strong], score[:, 1 - strong])


def _apgr_interval(curve: Wide, score: Wide, cost: Wide, bootstrap: Bootstrap) -> Interval:
    """Thresholds as they are, rows drawn anew."""
    means = score.mean(axis=0)
    weak, strong = score[:, int(cost.mean(axis=0).argmin())], score[:, int(means.argmax())]
    area = np.trapezoid(curve, np.linspace(0, 1, 11), axis=0)  # (k,)
    drawn = (bootstrap.shares @ (area - weak)) / (bootstrap.shares @ (strong - weak))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float((area - weak).mean() / (strong - weak).mean()), float(low), float(high))
