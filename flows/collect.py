"""Collect: the day's traffic is answered and scored, then the oracle runs a sample of it on every tier and bin."""

from __future__ import annotations

from prefect import flow

from flows.steps import Result, step
from ruvllm.nightly import night, sharing
from ruvllm.settings import Settings, load_settings


@flow(name="collect")
def collect(
    cycle_id: str, questions: int = night.DAY_QUESTIONS, budget_s: float | None = None, sample: int | None = None
) -> Result:
    """Answer `questions` of the corpus as the day's traffic, then collect oracle outcomes for `budget_s` seconds.

    At most `sample` questions are run on every tier and bin; by default as many as the budget could hold.
    """
    settings = load_settings()
    step("ingest", cycle_id, lambda: night.ingest(settings, cycle_id))
    step("day", cycle_id, lambda: night.day(settings, cycle_id, questions))
    if settings.collect_workers and not sharing.is_collected(settings, cycle_id):
        return _collect_shared(settings, cycle_id, budget_s, sample)
    return step("collect", cycle_id, lambda: night.collect(settings, cycle_id, budget_s, sample))


def _collect_shared(settings: Settings, cycle_id: str, budget_s: float | None, sample: int | None) -> Result:
    """The same among Dask workers; a night that is killed meanwhile shares out again what is missing."""
    from flows.sharing import share_out

    seconds: float = step("enrol", cycle_id, lambda: sharing.enrol(settings, cycle_id, budget_s, sample))["budget_s"]
    found = share_out(settings, cycle_id, seconds)
    return step("collect", cycle_id, lambda: sharing.gather(settings, cycle_id, seconds, found))
