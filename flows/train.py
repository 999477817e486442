"""Train: snapshot of the oracle's outcomes, then `dvc repro` trains FastGRNN on it and evaluates it."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night
from ruvllm.settings import load_settings


@flow(name="train")
def train(cycle_id: str) -> Result:
    """Train the night's candidate router."""
    settings = load_settings()
    return step("train", cycle_id, lambda: night.train(settings, cycle_id))
