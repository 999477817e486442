"""Refine: between nights, what users said of the champion's answers becomes a candidate, where it is enough."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.steps import Result, step
from ruvllm.nightly import refining
from ruvllm.settings import load_settings

Answers = Annotated[int, Field(ge=1, description="New scored answers; below that nothing is done.")]
Name = Annotated[str, Field(max_length=200, description="Approves a small change; empty: a reviewer approves each.")]
Share = Annotated[float, Field(ge=0, le=1, description="Of held-out questions decided otherwise, at most, for that.")]


@flow(name="refine")
def refine(every: Answers = refining.EVERY, approve_as: Name = "", most_changed: Share = 0.0) -> Result:
    """Refine the champion on the answers that users rated; waits for a reviewer as any candidate does."""
    settings = load_settings()
    small = refining.Small(approve_as, most_changed) if approve_as else None
    return step("refine", "between-nights", lambda: refining.refine_where_served(settings, every, small))
