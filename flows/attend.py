"""Attend: graph attention learns which nodes proved useful, and goes with the candidate where it passes its gate."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.steps import Result, step
from ruvllm.nightly import attending
from ruvllm.settings import load_settings


@flow(name="attend")
def attend(cycle_id: str) -> Result:
    """Train the night's attention and judge it beside the order that it starts from."""
    settings = load_settings()
    result = step("attend", cycle_id, lambda: attending.attend(settings, cycle_id))
    create_markdown_artifact(key=f"attention-{cycle_id}", markdown=attending.markdown(result))
    return result
