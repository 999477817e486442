"""What a policy would have brought, from the log of another one. Knows nothing of routers or of databases.

    IPS   = mean(w r),  w = pi(a|x) / mu(a|x)                                 Horvitz and Thompson 1952
    SNIPS = sum(w r) / sum(w)                                                 Swaminathan and Joachims 2015
    DR    = mean(sum_a pi(a|x) q(x, a) + w (r - q(x, a)))                     Dudik et al. 2011
Effective sample size: (sum w)^2 / sum(w^2) (Kish 1965). Intervals: percentiles of a bootstrap over the rows and two
more, above and below by the largest standard deviation that a reward can have, half its range (Popoviciu 1935), at the
weight that the average unit of weight has (after Agresti and Coull 1998). A rare failure that the log does not hold
would else leave the interval too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.regret import Interval

Values = NDArray[np.float64]
Choices = NDArray[np.int64]

ESTIMATORS = ("ips", "snips", "dr")
RESAMPLES = 1000
_TAILS = (0.025, 0.975)
_GATE_TAIL = 0.05  # the gate's bound is one-sided: only a candidate that is worse must be kept out
LEAST_EFFECTIVE = 30.0  # rows; below, an interval says nothing and the gate refuses


@dataclass(frozen=True, eq=False)
class Log:
    """What the logging policy did: n rows, m actions."""

    action: Choices  # (n,) in 0 .. m - 1
    propensity: Values  # (n,) chance that the logging policy had given that action, in (0, 1]
    reward: Values  # (n,)
    model: Values  # (n, m) predicted rewards from rows other than these; zeros: none, DR is then IPS

    def __post_init__(self) -> None:
        n, m = self.model.shape
        if not n or not (self.action.shape == self.propensity.shape == self.reward.shape == (n,)):
            raise LearningError(
                f"log: actions {self.action.shape}, propensities {self.propensity.shape}, rewards {self.reward.shape},"
                f" predictions {self.model.shape}; want (n,) three times and (n, m), not empty"
            )
        if not all(np.isfinite(values).all() for values in (self.propensity, self.reward, self.model)):
            raise LearningError("log: a value is not finite; rows without a reward must be left out beforehand")
        if self.propensity.min() <= 0 or self.propensity.max() > 1:
            raise LearningError(
                f"log: propensities {self.propensity.min():g} to {self.propensity.max():g}, want (0, 1]"
            )
        if self.action.min() < 0 or self.action.max() >= m:
            raise LearningError(f"log: actions {self.action.min()} to {self.action.max()}, want 0 to {m - 1}")


@dataclass(frozen=True)
class Estimate:
    """The value of a policy with its 95 % interval, and how many rows it really rests on."""

    value: Interval
    effective: float  # rows
    clipped: float  # share of rows whose weight was cut


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may replace the policy in service, and why. `bound`: the gain is above it, one-sided 95 %."""

    accepted: bool
    reason: str
    difference: Interval  # candidate minus current
    bound: float
    effective: float  # rows


def importance(log: Log, target: Values, most: float = np.inf) -> Values:
    """(n,): pi(a|x) / mu(a|x), cut at `most`; `target` (n, m) holds the chances of the policy that is asked about.

    Raises:
        LearningError: the chances are not (n, m), or a row of them is no distribution.
    """
    if target.shape != log.model.shape:
        raise LearningError(f"target policy: shape {target.shape}, want {log.model.shape}")
    if not np.isfinite(target).all() or target.min() < 0 or np.abs(target.sum(axis=1) - 1).max() > 1e-6:
        raise LearningError("target policy: a row is no distribution, want chances from 0 that sum to 1")
    weights = target[np.arange(len(log.action)), log.action] / log.propensity
    return np.asarray(np.minimum(weights, most), dtype=np.float64)


def effective_size(weights: Values) -> float:
    """Rows that the weights (n,) are worth; 0 where all are 0."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def estimate(
    log: Log, target: Values, how: str = "dr", most: float = np.inf, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The value of `target` (n, m) by one of ESTIMATORS.

    Raises:
        LearningError: no such estimator, or SNIPS where the target never does what the log did.
    """
    weights = importance(log, target, most)
    top, bottom = _sums(log, target, weights, how)
    drawn = _resampled(top, bottom, _reach(weights, log), resamples, seed)
    value = _interval(float(top.sum() / bottom.sum()), drawn)
    return Estimate(value, effective_size(weights), float(np.mean(importance(log, target) > most)))


def gate(
    log: Log,
    candidate: Values,
    current: Values,
    margin: float = 0.0,
    most: float = np.inf,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Verdict:
    """Accept the candidate only if the lower bound of its gain over the current policy (both (n, m)) is above `margin`.

    The bound is the one-sided 95 % one of the paired difference, so that a policy that is truly no better by `margin`
    passes in 5 % of logs at most. Too few effective rows: refused, whatever the bound says. What is truly better by
    less than the log can show is refused too: the benchmark has the power curve.
    """
    ours, theirs = importance(log, candidate, most), importance(log, current, most)
    gains = _sums(log, candidate, ours, "dr")[0] - _sums(log, current, theirs, "dr")[0]
    drawn = _resampled(gains, np.ones(len(gains)), _reach(ours - theirs, log), resamples, seed)
    difference, bound = _interval(float(gains.mean()), drawn), float(np.quantile(drawn, _GATE_TAIL))
    effective = effective_size(ours)
    if effective < LEAST_EFFECTIVE:
        return Verdict(False, f"{effective:.0f} effective rows, want {LEAST_EFFECTIVE:g}", difference, bound, effective)
    if bound <= margin:
        return Verdict(False, f"gain at least {bound:.4f}, want over {margin:g}", difference, bound, effective)
    return Verdict(True, f"gain at least {bound:.4f}", difference, bound, effective)


def _sums(log: Log, target: Values, weights: Values, how: str) -> tuple[Values, Values]:
    """Rows (n,) of numerator and denominator: the estimate is the ratio of their sums."""
    ones = np.ones(len(weights))
    if how == "ips":
        return weights * log.reward, ones
    if how == "snips":
        if not weights.any():
            raise LearningError("SNIPS: the target policy never does what the log did; explore more, or use DR")
        return weights * log.reward, weights
    if how == "dr":
        predicted = log.model[np.arange(len(log.action)), log.action]
        return (target * log.model).sum(axis=1) + weights * (log.reward - predicted), ones
    raise LearningError(f"estimator {how!r}: want one of {', '.join(ESTIMATORS)}")


def _draws(n: int, resamples: int, seed: int) -> Values:
    """(resamples, n): how often each row is in each draw."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _interval(value: float, drawn: Values) -> Interval:
    low, high = np.quantile(drawn, _TAILS)
    return Interval(value, float(low), float(high))


def _resampled(top: Values, bottom: Values, reach: float, resamples: int, seed: int) -> Values:
    """Draws of sum(top) / sum(bottom), with two rows more that are `reach` above and below what it predicts."""
    value = float(top.sum() / bottom.sum())
    usual = float(bottom[bottom > 0].mean())
    tops = np.concatenate([top, [value * usual + reach, value * usual - reach]])
    bottoms = np.concatenate([bottom, [usual, usual]])
    draws = _draws(len(tops), resamples, seed)
    sums = draws @ bottoms
    kept = sums > 0  # a draw without any weight says nothing
    return np.asarray((draws @ tops)[kept] / sums[kept], dtype=np.float64)


def _reach(weights: Values, log: Log) -> float:
    """What one row may move the sum by: the weight of the average unit of weight, times half the range of rewards."""
    sizes = np.abs(weights)
    return float((sizes**2).sum() / sizes.sum() * np.ptp(log.reward) / 2) if sizes.any() else 0.0
