"""Promote: a candidate that a reviewer approved passes its gates again and becomes the champion."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="promote")
def promote(cycle_id: str, approve_as: str = "") -> Result:
    """Promote the candidate of `cycle_id`; `approve_as` approves it first, under that name."""
    settings = load_settings()
    return step("promote", cycle_id, lambda: night.promote(settings, cycle_id, approve_as))


@flow(name="promote-approved")
def promote_approved() -> Result:
    """Promote whatever was approved in MLflow since the last look; runs every few minutes."""
    return night.promote_approved(load_settings())
