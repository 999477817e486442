"""What a learnt router has to beat, each a Learner with the same door. Knows nothing of files, costs or our router.

One regression a tier, on the rows where the tier was run. Settings are few and stand in the records, so that a report
can name them. They are plain first choices and were not searched, not even on training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ruvllm.learning.outcomes.predictors import Array, Learner, QualityPredictor, Scaling, Wide, check_lesson
from ruvllm.learning.outcomes.predictors import make_scaling as scaling_of

if TYPE_CHECKING:  # it imports torch
    from ruvllm.learning.outcomes.networks import Training

_Fit = Callable[[Array, Wide], Callable[[Array], Wide]]  # one tier: rows (n, d), scores (n,) -> rows to scores


@dataclass(frozen=True, eq=False)
class _ByTier:
    scaling: Scaling
    tiers: Sequence[Callable[[Array], Wide]]

    def predict(self, x: Array) -> Wide:
        scaled = self.scaling.apply(x)
        return np.stack([tier(scaled) for tier in self.tiers], axis=1)


def _fit_each(x: Array, score: Wide, fit: _Fit) -> QualityPredictor:
    check_lesson(x, score)
    scaling = scaling_of(x)
    scaled, known = scaling.apply(x), np.isfinite(score)
    return _ByTier(
        scaling, [fit(scaled[known[:, tier]], score[known[:, tier], tier]) for tier in range(score.shape[1])]
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    tiers: int
    seed: int

    def predict(self, x: Array) -> Wide:
        return np.random.default_rng(self.seed).random((len(x), self.tiers))


@dataclass(frozen=True)
class Random:
    """Knows nothing: qualities drawn anew for every query."""

    name: str = "random"

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _Drawn(score.shape[1], seed)


@dataclass(frozen=True)
class Means:
    """Each tier's mean score: with a coin between lambdas, the mixtures of fixed tiers as known from training."""

    name: str = "fixed mixture (train)"

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _fit_each(x, score, lambda _, y: _constant(float(y.mean())))


@dataclass(frozen=True)
class Ridge:
    """Least squares; on the length of the prompt alone it is the `prompt length` baseline."""

    name: str = "ridge"
    strength: float = 1.0

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _fit_each(x, score, self._one)

    def _one(self, x: Array, y: Wide) -> Callable[[Array], Wide]:
        from sklearn.linear_model import Ridge as Regression

        return _predicting(Regression(alpha=self.strength).fit(x, y))


@dataclass(frozen=True)
class Logistic:
    """Logistic regression; a score between 0 and 1 is that share of a success and the rest of a failure."""

    name: str = "logistic regression"
    strength: float = 0.01  # sklearn's C: inputs have unit variance, and there are hundreds of them

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _fit_each(x, score, self._one)

    def _one(self, x: Array, y: Wide) -> Callable[[Array], Wide]:
        from sklearn.linear_model import LogisticRegression

        if y.min() == y.max() and y.min() in (0.0, 1.0):  # one class: sklearn refuses
            return _constant(float(y[0]))
        model = LogisticRegression(C=self.strength, max_iter=500)
        label = np.repeat([1, 0], len(x))
        model.fit(np.tile(x, (2, 1)), label, sample_weight=np.concatenate([y, 1 - y]))
        return lambda rows: np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64)


@dataclass(frozen=True)
class Neighbours:
    """Mean score of the nearest training queries."""

    name: str = "k nearest neighbours"
    k: int = 40

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _fit_each(x, score, self._one)

    def _one(self, x: Array, y: Wide) -> Callable[[Array], Wide]:
        from sklearn.neighbors import KNeighborsRegressor

        return _predicting(KNeighborsRegressor(min(self.k, len(x)), algorithm="brute").fit(x, y))


@dataclass(frozen=True)
class Boosting:
    """Gradient-boosted trees over histograms."""

    name: str = "gradient boosting"
    rounds: int = 60
    rate: float = 0.08
    leaves: int = 8

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return _fit_each(x, score, lambda rows, y: self._one(rows, y, seed))

    def _one(self, x: Array, y: Wide, seed: int) -> Callable[[Array], Wide]:
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            max_iter=self.rounds, learning_rate=self.rate, max_leaf_nodes=self.leaves, l2_regularization=10.0,
            max_features=0.3, early_stopping=False, random_state=seed,
        )  # fmt: skip
        return _predicting(model.fit(x, y))


@dataclass(frozen=True)
class Mlp:
    """A plain network of one hidden layer, with as many input weights as our cell has: two matrices of 32 rows."""

    name: str = "plain MLP"
    hidden: int = 64
    inputs: int = 128
    training: Training | None = None  # none: that of every network

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        from torch import nn

        from ruvllm.learning.outcomes.networks import fit_network

        tiers = score.shape[1]
        return fit_network(
            lambda: nn.Sequential(nn.Linear(self.inputs, self.hidden), nn.ReLU(), nn.Linear(self.hidden, tiers)),
            self.inputs, x, score, seed, self.training,
        )  # fmt: skip


# What competes on every view of a query; random and prompt length need none.
LEARNERS: tuple[Learner, ...] = (Logistic(), Neighbours(), Boosting(), Mlp())
PROMPT_LENGTH = Ridge("prompt length")


def _constant(value: float) -> Callable[[Array], Wide]:
    return lambda rows: np.full(len(rows), value)


def _predicting(model: Any) -> Callable[[Array], Wide]:
    return lambda rows: np.asarray(model.predict(rows), dtype=np.float64)
