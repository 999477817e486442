"""Propose: the candidate goes to MLflow with its gate table, pending a reviewer. The unattended night ends here."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="propose")
def propose(cycle_id: str) -> Result:
    """Register the candidate and publish its gates."""
    settings = load_settings()
    result = step("propose", cycle_id, lambda: night.propose(settings, cycle_id))
    create_markdown_artifact(key=f"gates-{cycle_id}", markdown=result["table"])
    return result
