"""The night: collect, train, attend, evaluate, propose; with an approval also promote and consolidate; then maintain,
serve, report.

A night that was killed is taken up where it stopped: the steps that are done are not done again.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.logging.handlers import APILogHandler
from pydantic import Field

from flows.attend import attend
from flows.collect import collect
from flows.consolidate import consolidate
from flows.evaluate import evaluate
from flows.maintain import maintain
from flows.promote import promote
from flows.propose import propose
from flows.report import report
from flows.serve import serve
from flows.steps import Result
from flows.train import train
from ruvllm.nightly import night
from ruvllm.settings import load_settings

Questions = Annotated[int, Field(ge=1, le=100_000, description="Questions of the corpus, asked as the day's traffic.")]
Seconds = Annotated[float, Field(gt=0, le=86_400, description="Of oracle collection; empty: the settings' budget.")]
Sample = Annotated[
    int, Field(ge=1, description="Questions that the oracle runs at most; empty: what the budget holds.")
]
Name = Annotated[str, Field(max_length=200, description="Approves the candidate; empty: a reviewer does, in MLflow.")]
Cycle = Annotated[
    str, Field(max_length=100, description="Takes up this unfinished night; empty: the unfinished or next.")
]


@flow(name="nightly")
def nightly(
    questions: Questions = night.DAY_QUESTIONS,
    budget_s: Seconds | None = None,
    approve_as: Name = "",
    sample: Sample | None = None,
    cycle_id: Cycle = "",
) -> Result:
    """One whole learning cycle; never two at once.

    Args:
        questions: how many questions of the corpus are asked as the day's traffic.
        budget_s: seconds of oracle collection; by default the settings' budget for this night.
        approve_as: approve the candidate under this name; empty leaves it to a reviewer in MLflow.
        sample: questions that the oracle runs at most; by default as many as the budget could hold.
        cycle_id: the unfinished night to take up; by default the one there is, or a new one.
    """
    settings = load_settings()
    parts = (
        (collect, (questions, budget_s, sample)), (train, ()), (attend, ()), (evaluate, ()), (propose, ()),
        (promote, (approve_as,)), (consolidate, ()), (maintain, ()), (serve, ()), (report, ()),
    )  # fmt: skip
    with night.alone(settings) as still_alone:
        cycle_id = night.begin(settings, cycle_id)
        for part, given in parts:
            still_alone()
            part(cycle_id, *given)
        return night.finish(settings, cycle_id)


def run_here(questions: int, budget_s: float | None, approve_as: str, sample: int | None = None) -> Result:
    """One nightly run in this process; its log reaches the server before the caller may stop that."""
    try:
        return nightly(questions=questions, budget_s=budget_s, approve_as=approve_as, sample=sample)
    finally:
        APILogHandler().flush()
