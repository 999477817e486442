"""Forgetting: what a new router lost on the questions of earlier nights. Knows nothing of routers; numpy only.

Backward transfer (Lopez-Paz and Ranzato 2017) is accuracy now minus accuracy then on earlier tasks; the rate of
forgetting is its negative. "Then" is the router that serves, "now" the candidate, both on the same questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
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


@dataclass(frozen=True)
class Transfer:
    """What a whole sequence of tasks did to the earlier ones (Lopez-Paz and Ranzato 2017, equations 2 and 3)."""

    average_accuracy: float  # over all tasks, after the last
    backward_transfer: float  # mean over tasks but the last: accuracy at the end minus right after the task
    maximum_drop: float  # the largest fall of any task from its best so far (Chaudhry et al. 2018), >= 0


def transfer(accuracy: NDArray[np.float64]) -> Transfer:
    """`accuracy` (T, T): row i after learning task i, column j on task j. Above the diagonal nothing is read.

    Raises:
        InputError: not square, fewer than two tasks, or a value that is read is not in [0, 1].
    """
    tasks = len(accuracy)
    if accuracy.shape != (tasks, tasks) or tasks < 2:
        raise InputError(f"accuracies {accuracy.shape}, want (T, T) with T >= 2: a row after each task")
    learnt = np.tril(accuracy)
    seen = learnt[np.tril_indices(tasks)]
    if not ((seen >= 0) & (seen <= 1)).all():
        raise InputError("accuracies: a value of a task already learnt is outside 0 to 1")
    last = learnt[-1]
    return Transfer(
        average_accuracy=float(last.mean()),
        backward_transfer=float((last - np.diag(learnt))[:-1].mean()),
        maximum_drop=float((learnt.max(axis=0) - last).max()),
    )
