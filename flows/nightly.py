"""The night: collect, train, evaluate, propose; with an approval also promote and consolidate; maintain; serve.

A night that was killed is taken up where it stopped: the steps that are done are not done again.
"""

from __future__ import annotations

from prefect import flow
from prefect.logging.handlers import APILogHandler

from flows.collect import collect
from flows.consolidate import consolidate
from flows.evaluate import evaluate
from flows.maintain import maintain
from flows.promote import promote
from flows.propose import propose
from flows.serve import serve
from flows.steps import Result
from flows.train import train
from ruvllm import night
from ruvllm.settings import load_settings


@flow(name="nightly")
def nightly(
    questions: int = night.DAY_QUESTIONS, budget_s: float | None = None, approve_as: str = "", sample: int | None = None
) -> Result:
    """One whole learning cycle.

    Args:
        questions: how many questions of the corpus are asked as the day's traffic.
        budget_s: seconds of oracle collection; by default the settings' budget for this night.
        approve_as: approve the candidate under this name; empty leaves it to a reviewer in MLflow.
        sample: questions that the oracle runs at most; by default as many as the budget could hold.
    """
    settings = load_settings()
    cycle_id = night.begin(settings)
    collect(cycle_id, questions, budget_s, sample)
    train(cycle_id)
    evaluate(cycle_id)
    propose(cycle_id)
    promote(cycle_id, approve_as)
    consolidate(cycle_id)
    maintain(cycle_id)
    serve(cycle_id)
    return night.finish(settings, cycle_id)


def run_here(questions: int, budget_s: float | None, approve_as: str) -> Result:
    """One nightly run in this process; its log reaches the server before the caller may stop that."""
    try:
        return nightly(questions=questions, budget_s=budget_s, approve_as=approve_as)
    finally:
        APILogHandler().flush()
