"""Report: the night's page, in MLflow beside the candidate, and a summary here."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.steps import Result, step
from ruvllm.nightly import publishing
from ruvllm.settings import load_settings


@flow(name="report")
def report(cycle_id: str) -> Result:
    """Make the page of a night and publish it."""
    settings = load_settings()
    links = {"flow run": flow_run.ui_url} if flow_run.ui_url else {}
    result = step("report", cycle_id, lambda: publishing.report(settings, cycle_id, links))
    create_markdown_artifact(
        key=f"report-{cycle_id}",
        markdown=f"The night's report is `{result['page']}` in the state directory ({result['bytes']} bytes), and "
        f"`{publishing.PAGE}` among the artifacts of the candidate's run in MLflow.",
    )
    return result
