"""Maintain: bursts taken in, duplicates merged, clusters summed up, the unused archived, edges faded, indexes fit."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night, tidying
from ruvllm.settings import load_settings


@flow(name="maintain")
def maintain(cycle_id: str) -> Result:
    """Tidy memory, watched by a canary: a step after which stored questions find less is taken back."""
    settings = load_settings()
    step("watch", cycle_id, lambda: tidying.watch(settings, cycle_id))
    step("catch-up", cycle_id, lambda: tidying.catch_up(settings, cycle_id))
    step("merge", cycle_id, lambda: tidying.merge(settings, cycle_id))
    step("compact", cycle_id, lambda: tidying.compact(settings, cycle_id))
    step("archive", cycle_id, lambda: tidying.archive(settings, cycle_id))
    step("decay", cycle_id, lambda: tidying.decay(settings, cycle_id))
    step("upkeep", cycle_id, lambda: tidying.keep_up(settings, cycle_id))
    return step("maintain", cycle_id, lambda: night.maintain(settings, cycle_id))
