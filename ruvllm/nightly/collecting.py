"""A night's oracle collection: who enrols what, for how long, and when it is enough. Knows nothing of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ruvllm.errors import LearningError
from ruvllm.learning import cycle as cycles
from ruvllm.workplace import Workplace

if TYPE_CHECKING:
    from ruvllm.learning.oracle import Oracle, OracleReport

Result = dict[str, Any]

ORACLE_SECONDS_A_QUESTION = 2.0  # enrol enough questions for the budget even on a faster machine
MIN_TRAIN_ROWS, MIN_TEST_ROWS = 8, 3  # what the learner and the gates ask for


def oracle_of(place: Workplace) -> Oracle:
    from ruvllm.learning.oracle import Oracle

    return Oracle(place.settings, place.database, place.perception, place.ladder)


def enrol(oracle: Oracle, place: Workplace, cycle_id: str, budget_s: float | None, sample: int | None) -> float:
    """Enrol this night's questions, `sample` at most; the seconds to collect in."""
    from ruvllm.corpus.questions import oracle_sample

    night, settings = cycles.find_cycle(place.database, cycle_id).night, place.settings
    budget = budget_s or (settings.collect_budget_s if night == 1 else settings.collect_budget_later_s)
    n = sample or int(budget / ORACLE_SECONDS_A_QUESTION)
    oracle.enrol(oracle_sample(night, n), cycle_id, place.champion())
    return budget


def collected(oracle: Oracle, report: OracleReport, budget: float) -> Result:
    """What the step says of a collection.

    Raises:
        LearningError: it is too small to learn from.
    """
    _require_enough(oracle.complete(), budget)
    return {
        "queries": report.queries,
        "runs": report.runs,
        "waiting": report.remaining,
        "seconds": round(report.seconds, 1),
        "prefix_saving": round(1 - report.model_seconds / report.cold_seconds, 3) if report.cold_seconds else None,
        "labels": report.labels,
        "skipped": dict(report.skipped),
    }


def _require_enough(complete: dict[str, int], budget: float) -> None:
    """A collection too small to learn from is not done: the next run of the night goes on with it."""
    if complete.get("train", 0) < MIN_TRAIN_ROWS or complete.get("test", 0) < MIN_TEST_ROWS:
        raise LearningError(
            f"oracle: {complete.get('train', 0)} training and {complete.get('test', 0)} held-out questions after "
            f"{budget:.0f} s, want at least {MIN_TRAIN_ROWS} and {MIN_TEST_ROWS}; run the cycle again, it goes on "
            "from here, or give it more time (ruvllm cycle --budget SECONDS)"
        )
