"""Consolidate: Fisher information and anchor weights of the new champion, for the next night's EWC penalty."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="consolidate")
def consolidate(cycle_id: str) -> Result:
    """Store the EWC state of the champion, if this cycle made one."""
    settings = load_settings()
    return step("consolidate", cycle_id, lambda: night.consolidate(settings, cycle_id))
