"""A night's collection, shared among workers: enrol, one share, what they came to. Knows nothing of Dask or Prefect.

Every outcome is stored under its question, tier and bin, so a share that is done again, or by two, stores it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ruvllm.errors import LearningError
from ruvllm.learning import cycle as cycles
from ruvllm.learning.oracle import OracleReport
from ruvllm.learning.shares import Share
from ruvllm.nightly import collecting
from ruvllm.nightly.steps import opened, step
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace, open_workplace

Result = dict[str, Any]


def is_collected(settings: Settings, cycle_id: str) -> bool:
    with opened(settings) as database:
        return "collect" in cycles.steps_done(database, cycle_id)


def enrol(settings: Settings, cycle_id: str, budget_s: float | None, sample: int | None) -> Result:
    """Enrol the night's questions, once for all workers; how long they have."""

    def work(place: Workplace) -> Result:
        return {"budget_s": collecting.enrol(collecting.oracle_of(place), place, cycle_id, budget_s, sample)}

    return step(settings, cycle_id, "enrol", work)


def collect_share(settings: Settings, cycle_id: str, budget_s: float, share: Share) -> Result:
    """An OracleReport of one share, as what can be sent; no step, for a part of it stays when it fails."""
    with open_workplace(settings) as place:
        return asdict(collecting.oracle_of(place).collect(cycle_id, budget_s, share=share))


def gather(settings: Settings, cycle_id: str, budget_s: float, shares: Sequence[Result]) -> Result:
    """The step `collect`, from what the workers say.

    Raises:
        LearningError: there is none, or what they collected is too little to learn from.
    """

    def work(place: Workplace) -> Result:
        report = together([OracleReport(**share) for share in shares])
        return {**collecting.collected(collecting.oracle_of(place), report, budget_s), "workers": len(shares)}

    return step(settings, cycle_id, "collect", work)


def together(shares: Sequence[OracleReport]) -> OracleReport:
    """Sums; the seconds are those of the slowest, for they ran side by side."""
    if not shares:
        raise LearningError("collection: no worker reported; want one report a worker")
    skipped: Counter[str] = Counter()
    for share in shares:
        skipped.update(share.skipped)
    return OracleReport(
        queries=sum(share.queries for share in shares),
        runs=sum(share.runs for share in shares),
        remaining=sum(share.remaining for share in shares),
        seconds=max(share.seconds for share in shares),
        model_seconds=sum(share.model_seconds for share in shares),
        cold_seconds=sum(share.cold_seconds for share in shares),
        labels=shares[0].labels,
        skipped=dict(skipped),
    )
