"""Serve: the gateway loads the champion and answers one live request with it."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="serve")
def serve(cycle_id: str) -> Result:
    """Start the gateway where none runs, and check that the champion of the ledger routes its answer."""
    settings = load_settings()
    return step("serve", cycle_id, lambda: night.serve(settings, cycle_id))
