"""Evaluate: the candidate beside the champion and the baselines on held-out groups, as a report to read."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="evaluate")
def evaluate(cycle_id: str) -> Result:
    """Read the evaluation that `dvc repro` made and publish it."""
    settings = load_settings()
    result = step("evaluate", cycle_id, lambda: night.evaluate(settings, cycle_id))
    create_markdown_artifact(key=f"evaluation-{cycle_id}", markdown=result["table"])
    return result
