"""Is the candidate worse than the champion? Two arms, a bound, and an error that holds however often one looks.

Knows nothing of routers or of where figures come from. A canary is looked at every second, so a test for one look would
stop good candidates sooner or later. The intervals here are asymptotic confidence sequences (Waudby-Smith et al. 2021,
arXiv 2103.06476, theorem 2.2): they hold at all looks together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_TUNED_FOR = 200  # observations of an arm at which the intervals are about their tightest


@dataclass(frozen=True)
class Sample:
    """`n` values with their mean and variance (of the values, not of the mean)."""

    n: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def joined(self, other: Sample) -> Sample:
        """Both together (Chan, Golub and LeVeque 1979, equation 2.1)."""
        n = self.n + other.n
        if not n:
            return self
        apart = other.mean - self.mean
        squares = self.n * self.variance + other.n * other.variance + apart**2 * self.n * other.n / n
        return Sample(n, self.mean + apart * other.n / n, squares / n)

    @classmethod
    def of(cls, values: Iterable[float]) -> Sample:
        sample = cls()
        for value in values:
            sample = sample.joined(cls(1, value))
        return sample

    @classmethod
    def of_events(cls, events: int, n: int) -> Sample:
        """Shares; the variance is not 0 where none or all happened (Laplace's rule)."""
        guess = (events + 1) / (n + 2)
        return cls(n, events / n if n else 0.0, guess * (1 - guess))


@dataclass(frozen=True)
class Arm:
    """What one router's answers were like: quality in [0, 1], log of seconds, share that failed."""

    quality: Sample = Sample()
    log_seconds: Sample = Sample()
    failed: Sample = Sample()


@dataclass(frozen=True)
class Tolerance:
    """How much worse a candidate may be; beyond it, and surely worse, it is stopped.

    `alpha` is the chance that a candidate that is no worse is ever stopped, for each of the three.
    """

    quality: float = 0.05
    latency: float = 0.25  # of the champion's: 0.25 is a quarter slower
    errors: float = 0.02
    least: int = 30  # observations of each arm before anything is said
    alpha: float = 0.05


def worse(champion: Arm, candidate: Arm, tolerance: Tolerance) -> str | None:
    """Why the candidate must stop; None where nothing says so (yet)."""
    checks = (
        ("quality", champion.quality, candidate.quality, -1.0, tolerance.quality),
        ("latency", champion.log_seconds, candidate.log_seconds, 1.0, math.log1p(tolerance.latency)),
        ("error rate", champion.failed, candidate.failed, 1.0, tolerance.errors),
    )
    for what, held, tried, sign, bound in checks:
        if min(held.n, tried.n) < tolerance.least:
            continue
        deficit = sign * (tried.mean - held.mean)
        if deficit > bound and deficit > radius(held, tolerance.alpha / 2) + radius(tried, tolerance.alpha / 2):
            return _said(what, held, tried)
    return None


def radius(sample: Sample, alpha: float) -> float:
    """Half the width of the interval around the mean that covers the truth at every n with probability 1 - alpha."""
    if sample.n < 1:
        return math.inf
    rho2 = _rho2(alpha)
    spread = sample.n * rho2 + 1
    return math.sqrt(sample.variance * 2 * spread / (sample.n**2 * rho2) * math.log(math.sqrt(spread) / alpha))


def _rho2(alpha: float) -> float:
    """The square of rho for intervals that are tight at _TUNED_FOR observations (the paper's appendix B.2)."""
    level = -2 * math.log(alpha)
    return (level + math.log(level) + 1) / _TUNED_FOR


def _said(what: str, held: Sample, tried: Sample) -> str:
    if what == "latency":
        return (
            f"latency: {math.exp(tried.mean):.2f} s in the middle after {tried.n} answers,"
            f" the champion's {math.exp(held.mean):.2f} s after {held.n}"
        )
    return f"{what}: {tried.mean:.3f} after {tried.n} answers, the champion's {held.mean:.3f} after {held.n}"
