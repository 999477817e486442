"""Forgetting: what a new router lost on the questions of earlier nights. Knows nothing of routers; numpy only.

Backward transfer (Lopez-Paz and Ranzato 2017) is accuracy now minus accuracy then on earlier tasks; the rate of
forgetting is its negative. "Then" is the router that serves, "now" the candidate, both on the same questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.evaluation.regret import Bootstrap, Interval


@dataclass(frozen=True)
class Forgetting:
    """`rate` is None where there is nothing to compare: that is inconclusive, not zero."""

    rate: Interval | None
    accuracy_then: float | None
    accuracy_now: float | None
    n: int
    n_nights: int

    def as_dict(self) -> dict[str, object]:
        return {**vars(self), "rate": self.rate.as_dict() if self.rate else None}


INCONCLUSIVE = Forgetting(None, None, None, 0, 0)


def forgetting(
    then: NDArray[np.bool_], now: NDArray[np.bool_], nights: NDArray[np.int64], bootstrap: Bootstrap
) -> Forgetting:
    """Correct decisions (n,) on earlier nights' questions, by the earlier and the new router."""
    lost = then.astype(np.float64) - now.astype(np.float64)
    return Forgetting(
        rate=bootstrap.interval(lost),
        accuracy_then=float(then.mean()),
        accuracy_now=float(now.mean()),
        n=len(then),
        n_nights=len(np.unique(nights)),
    )
