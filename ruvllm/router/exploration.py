"""Whom to try next: Thompson sampling and epsilon-greedy over places that may be chosen. Knows nothing of routers.

One Bayesian linear regression for each tier on the router's penultimate activations (Agrawal and Goyal 2013; last layer
only: Riquelme et al. 2018): with ridge `prior` and noise `noise`,

    P = prior I + sum z z^T,   b = sum z r,   w ~ N(P^-1 b, noise^2 P^-1)

`fit_posterior` takes the prior and the noise of the largest marginal likelihood (MacKay 1992): where the activations
tell little, a wide prior would have every tier explored for ever.

epsilon-greedy's propensity is exact. Thompson's, the chance that a tier's draw is the largest, has no closed form: it
is the share of N = `draws` + 1 draws in which the tier won, the draw acted on being one of them. The draws are
exchangeable, so E[1(a is done) / share] = P(a wins at least once in N) = 1 - (1 - p)^N: importance weights with the
counted share are unbiased but for actions that hardly ever win, and are never above N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]

PRIORS = tuple(float(10**half) for half in np.arange(0.0, 5.5, 0.5))  # from 1 to 100,000
PRIOR, NOISE = 10.0, 0.25  # before there are outcomes enough to say
LEAST_NOISE, MOST_NOISE = 0.02, 0.5  # of one outcome in [0, 1]; a coin's is 0.5
_LEAST_OUTCOMES = 20


@dataclass(frozen=True)
class Tried:
    """One choice and the chance with which it was made, in (0, 1]."""

    place: int
    propensity: float


class LinearPosterior:
    """What each of `tiers` places is believed to bring, given z (H,); empty it is the prior, all alike."""

    def __init__(self, tiers: int, width: int, prior: float = 1.0, noise: float = 0.25) -> None:
        if tiers < 1 or width < 1 or not prior > 0 or not noise > 0:
            raise LearningError(
                f"posterior: tiers {tiers}, width {width}, prior {prior:g}, noise {noise:g}; want all above 0"
            )
        self.width, self._noise = width, noise
        self._precision = np.stack([prior * np.eye(width)] * tiers)  # (tiers, H, H)
        self._moment = np.zeros((tiers, width))
        self._solved: tuple[Values, Values] | None = None  # weights (tiers, H), inverse precisions; None: not yet

    def learn(self, place: int, z: Values, reward: float) -> None:
        """One more outcome of one place.

        Raises:
            LearningError: no such place, z is of another width, or a value is not finite.
        """
        self.learn_all(place, z[None], np.array([reward]))

    def learn_all(self, place: int, z: Values, rewards: Values) -> None:
        """Many outcomes (n,) of one place, on activations (n, H); the same as one after the other.

        Raises:
            LearningError: as `learn`.
        """
        if not 0 <= place < len(self._moment):
            raise LearningError(f"posterior: place {place}, want 0 to {len(self._moment) - 1}")
        if z.shape != (len(rewards), self.width) or not np.isfinite(z).all():
            raise LearningError(f"posterior: activations {z.shape}, want ({len(rewards)}, {self.width}), finite")
        if not np.isfinite(rewards).all():
            raise LearningError("posterior: rewards, want finite numbers; leave rows without one out")
        self._precision[place] += z.T @ z
        self._moment[place] += rewards @ z
        self._solved = None

    def mean(self, z: Values) -> Values:
        """(tiers,): expected reward of each place."""
        self._check(z)
        return np.asarray(self._solve()[0] @ z, dtype=np.float64)

    def deviation(self, z: Values) -> Values:
        """(tiers,): standard deviation of z . w, without the noise of a single outcome."""
        self._check(z)
        return np.asarray(self._noise * np.sqrt((self._solve()[1] @ z) @ z), dtype=np.float64)

    def sample(self, z: Values, draws: int, rng: np.random.Generator) -> Values:
        """(draws, tiers). For one z, z . w is a normal number: no weights (H,) need be drawn."""
        mean, deviation = self.mean(z), self.deviation(z)
        return np.asarray(rng.normal(mean, deviation, (draws, len(mean))), dtype=np.float64)

    def _solve(self) -> tuple[Values, Values]:
        """Anew only after an outcome: a service asks a thousand times as often as it learns."""
        if self._solved is None:
            inverse = np.asarray(np.linalg.inv(self._precision), dtype=np.float64)
            weights: Values = np.einsum("tij,tj->ti", inverse, self._moment)
            self._solved = weights, inverse
        return self._solved

    def _check(self, z: Values) -> None:
        if z.shape != (self.width,) or not np.isfinite(z).all():
            raise LearningError(f"posterior: activations {z.shape}, want ({self.width},), finite")


def fit_posterior(z: Values, rewards: Values) -> LinearPosterior:
    """After outcomes `rewards` (n, tiers) on activations z (n, H), NaN where a tier was not tried.

    Raises:
        LearningError: the shapes differ, or an activation is not finite.
    """
    if rewards.ndim != 2 or z.ndim != 2 or len(z) != len(rewards):
        raise LearningError(f"posterior: activations {z.shape} and rewards {rewards.shape}, want (n, H) and (n, tiers)")
    tried = [_Tried.of(z, rewards[:, tier]) for tier in range(rewards.shape[1])]
    enough = sum(each.count for each in tried) >= _LEAST_OUTCOMES
    prior, noise = _likeliest(tried) if enough else (PRIOR, NOISE)
    posterior = LinearPosterior(len(tried), z.shape[1], prior, noise)
    for tier, each in enumerate(tried):
        posterior.learn_all(tier, each.z, each.rewards)
    return posterior


@dataclass(frozen=True, eq=False)
class _Tried:
    """The outcomes of one tier, and what the likelihood needs of them."""

    z: Values  # (k, H)
    rewards: Values  # (k,)
    gram: Values  # (H, H)
    moment: Values  # (H,)

    @classmethod
    def of(cls, z: Values, rewards: Values) -> _Tried:
        known = np.isfinite(rewards)
        rows, seen = z[known], rewards[known]
        return cls(rows, seen, rows.T @ rows, seen @ rows)

    @property
    def count(self) -> int:
        return len(self.rewards)


def _likeliest(tried: Sequence[_Tried]) -> tuple[float, float]:
    """Prior and noise of the largest marginal likelihood, the same for all tiers."""
    found = [_likelihood(prior, tried) for prior in PRIORS]
    best = int(np.argmax([likelihood for likelihood, _ in found]))
    return PRIORS[best], min(max(found[best][1], LEAST_NOISE), MOST_NOISE)


def _likelihood(prior: float, tried: Sequence[_Tried]) -> tuple[float, float]:
    """Log marginal likelihood at its best noise, a constant apart, and that noise (Bishop 2006, equation 3.86)."""
    missed, volume = 0.0, 0.0
    for each in tried:
        precision = prior * np.eye(len(each.moment)) + each.gram
        missed += float(each.rewards @ each.rewards - each.moment @ np.linalg.solve(precision, each.moment))
        volume += len(each.moment) * np.log(prior) - float(np.linalg.slogdet(precision)[1])
    count = sum(each.count for each in tried)
    noise = max(missed / count, 1e-12) ** 0.5
    return 0.5 * volume - count * float(np.log(noise)), noise


def thompson(
    posterior: LinearPosterior,
    z: Values,
    feasible: Sequence[bool],
    rng: np.random.Generator,
    draws: int = 200,
    expected: Values | float = 0.0,
) -> Tried:
    """The place whose draw is the largest among the feasible ones; its propensity is counted (module's docstring).

    The posterior may be of what is to be added to `expected` (tiers,).

    Raises:
        LearningError: nothing is feasible, or the mask has another length than the posterior.
    """
    places = _places(feasible)
    if draws < 1:
        raise LearningError(f"Thompson: {draws} draws, want 1 or more; the propensity is counted from them")
    sampled = posterior.sample(z, draws + 1, rng) + expected  # (draws + 1, tiers)
    if sampled.shape[1] != len(feasible):
        raise LearningError(f"Thompson: mask of {len(feasible)} places, want {sampled.shape[1]}")
    winners = places[sampled[:, places].argmax(axis=1)]
    return Tried(int(winners[0]), float(np.mean(winners == winners[0])))


def epsilon_greedy(expected: Values, feasible: Sequence[bool], epsilon: float, rng: np.random.Generator) -> Tried:
    """The best feasible place of `expected` (tiers,), or with chance epsilon any feasible one.

    Raises:
        LearningError: nothing is feasible, the lengths differ, or epsilon is no chance.
    """
    places = _places(feasible)
    if not 0 <= epsilon <= 1:
        raise LearningError(f"epsilon-greedy: epsilon {epsilon}, want 0 to 1")
    if expected.shape != (len(feasible),):
        raise LearningError(f"epsilon-greedy: values {expected.shape}, want ({len(feasible)},) as the mask")
    best = int(places[expected[places].argmax()])
    place = int(rng.choice(places)) if rng.random() < epsilon else best
    return Tried(place, epsilon / len(places) + (1 - epsilon) * (place == best))


def _places(feasible: Sequence[bool]) -> NDArray[np.int64]:
    places = np.flatnonzero(np.asarray(feasible, dtype=bool))
    if not len(places):
        raise LearningError("exploration: no tier is within the budget, want one or more; raise the budget")
    return places
