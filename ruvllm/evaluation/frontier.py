"""Quality against cost: what a router reaches, and what mixing fixed tiers reaches. Knows nothing of how it decides.

A policy that takes argmax(quality - lambda cost) is a path of points as lambda falls; between two of them it may toss a
coin. Choosing among fixed tiers by a coin reaches every point of their upper convex hull: a router that learnt nothing
lies on it or below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]
Choices = NDArray[np.int64]

SHARES = tuple(k / 10 for k in range(1, 10))  # the nine interior deciles of cost
_LAMBDAS = 256


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a policy that tosses a coin brings, query by query, in expectation (n,)."""

    quality: Values
    cost: Values


@dataclass(frozen=True, eq=False)
class Path:
    """Decisions (k, n) for each lambda (k,), from the cheapest to the dearest, and their mean cost and quality (k,)."""

    weights: Values
    decisions: Choices
    cost: Values
    quality: Values


def decide(predicted: Values, price: Values, weight: float) -> Choices:
    """(n,) argmax of predicted quality (n, m) - weight * price, (m,) or (n, m); of equals the first, the cheapest."""
    utility = predicted - weight * price if np.isfinite(weight) else -np.broadcast_to(price, predicted.shape)
    return np.asarray(utility.argmax(axis=1), dtype=np.int64)


def critical_weights(predicted: Values, price: Values, count: int = _LAMBDAS) -> Values:
    """At most `count` + 2 lambdas, falling from infinity to 0, at quantiles of those where a decision changes."""
    prices = np.broadcast_to(price, predicted.shape)
    changes = []
    for one in range(predicted.shape[1]):
        for other in range(one + 1, predicted.shape[1]):
            dearer = prices[:, other] - prices[:, one]
            with np.errstate(divide="ignore", invalid="ignore"):
                changes.append((predicted[:, other] - predicted[:, one]) / dearer)
    every = np.concatenate(changes)
    every = np.unique(every[np.isfinite(every) & (every > 0)])
    if len(every) > count:
        every = np.quantile(every, np.linspace(0, 1, count))
    # just below each: the decision has changed there
    return np.concatenate([[np.inf], every[::-1] * (1 - 1e-9), [0.0]])


def path(predicted: Values, price: Values, score: Values, cost: Values, weights: Values | None = None) -> Path:
    """What deciding by `predicted` and `price` brings where `score` and `cost` (n, m) are the truth."""
    check_outcomes(score, cost)
    if predicted.shape != score.shape or not np.isfinite(predicted).all():
        raise LearningError(f"frontier: predictions of shape {predicted.shape}, want finite ones of {score.shape}")
    weights = critical_weights(predicted, price) if weights is None else weights
    decisions = np.stack([decide(predicted, price, float(weight)) for weight in weights])
    rows = np.arange(len(score))
    return Path(weights, decisions, cost[rows, decisions].mean(axis=1), score[rows, decisions].mean(axis=1))


def mixture_at(found: Path, score: Values, cost: Values, at: float) -> Mixture:
    """The policy at mean cost `at`: a coin between two neighbouring lambdas of the path.

    Costs off the path are those of its nearest end: the mixture is then cheaper than asked, never dearer by the coin.
    """
    rows = np.arange(len(score))
    place, share = _bracket(found.cost, at)
    low, high = found.decisions[place], found.decisions[min(place + 1, len(found.cost) - 1)]
    return Mixture(*((1 - share) * table[rows, low] + share * table[rows, high] for table in (score, cost)))


def hull_weights(cost: Values, quality: Values, at: float) -> Values:
    """(m,): the chances of each fixed tier with the best mean quality at mean cost `at`; means are (m,).

    Below the cheapest tier it is that tier; beyond the dearest on the hull it is the best one.
    """
    corners = hull(cost, quality)
    shares = np.zeros(len(cost))
    place, share = _bracket(cost[corners], at)
    shares[corners[place]] += 1 - share
    shares[corners[min(place + 1, len(corners) - 1)]] += share
    return shares


def hull(cost: Values, quality: Values) -> Choices:
    """Places on the upper convex hull, from the cheapest to the best; a dearer point that is no better is not on it."""
    corners: list[int] = []
    for place in np.lexsort((-quality, cost)).tolist():
        if corners and quality[place] <= quality[corners[-1]]:
            continue
        while len(corners) > 1 and _under(cost, quality, corners[-2], corners[-1], place):
            corners.pop()
        corners.append(place)
    return np.array(corners, dtype=np.int64)


def pareto(cost: Values, quality: Values) -> NDArray[np.bool_]:
    """(k,): which points no other point beats, being cheaper or as cheap and better or as good, once strictly."""
    no_dearer, no_worse = cost[None, :] <= cost[:, None], quality[None, :] >= quality[:, None]
    strictly = (cost[None, :] < cost[:, None]) | (quality[None, :] > quality[:, None])
    return np.asarray(~(no_dearer & no_worse & strictly).any(axis=1), dtype=np.bool_)


def fixed_mixture(score: Values, cost: Values, at: float) -> Mixture:
    """The hull's policy at mean cost `at`, its chances set on these very rows: the hardest form of this baseline."""
    check_outcomes(score, cost)
    shares = hull_weights(cost.mean(axis=0), score.mean(axis=0), at)
    return Mixture(score @ shares, cost @ shares)


def cost_at(cost: Values, share: float) -> float:
    """The mean cost at `share` of the way from the cheapest to the dearest tier of (n, m)."""
    means = cost.mean(axis=0)
    return float(means.min() + share * (means.max() - means.min()))


def cost_apgr(found: Path, score: Values, cost: Values) -> float:
    """APGR over cost: area under the recovered gap between the cheapest and the best tier, at tenths of the cost range.

    With two tiers of constant cost it is RouteLLM's APGR. Above the cost of the best tier the path's best is counted.
    """
    means = score.mean(axis=0)
    weak, strong = means[int(cost.mean(axis=0).argmin())], means.max()
    if strong <= weak:
        raise LearningError(f"frontier: the cheapest tier has the best quality {weak:.4f}; there is no gap to recover")
    shares = np.linspace(0, 1, 11)
    reached = [mixture_at(found, score, cost, cost_at(cost, float(share))).quality.mean() for share in shares]
    return float(np.trapezoid((np.array(reached) - weak) / (strong - weak), shares))


def check_outcomes(score: Values, cost: Values) -> None:
    """Refuse what cannot be compared.

    Raises:
        LearningError: the shapes are not both (n, m) with n > 0, or a value is not finite.
    """
    if score.ndim != 2 or score.shape != cost.shape or not score.size:
        raise LearningError(f"outcomes: shapes {score.shape} and {cost.shape}, want (n, m) twice and not empty")
    if not (np.isfinite(score).all() and np.isfinite(cost).all()):
        raise LearningError("outcomes: a value is not finite; leave out rows with a tier missing")


def _bracket(costs: Values, at: float) -> tuple[int, float]:
    """The first place whose next neighbour costs more than `at`, and how far `at` lies between the two."""
    over = np.flatnonzero(costs > at)
    if not len(over):
        return len(costs) - 1, 0.0
    place = int(over[0]) - 1
    if place < 0:
        return 0, 0.0
    return place, float((at - costs[place]) / (costs[place + 1] - costs[place]))


def _under(cost: Values, quality: Values, first: int, middle: int, last: int) -> bool:
    """Whether the middle point lies on or under the line from the first to the last."""
    rise = (quality[last] - quality[first]) * (cost[middle] - cost[first])
    return bool((quality[middle] - quality[first]) * (cost[last] - cost[first]) <= rise)
