"""Maintain: exact and near duplicates in memory are merged by the conflict rule."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm import night
from ruvllm.settings import load_settings


@flow(name="maintain")
def maintain(cycle_id: str) -> Result:
    """Tidy memory."""
    settings = load_settings()
    return step("maintain", cycle_id, lambda: night.maintain(settings, cycle_id))
