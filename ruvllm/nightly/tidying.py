"""The night's tidying of memory, step by step; knows nothing of Prefect.

Every step does its work once a night (`learning/cycle.py` keeps what is done) and returns plain figures. The steps that
change memory are dry in the first night, which shows what they would do, and do it from the second night on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ruvllm import progress
from ruvllm.database.pool import Database
from ruvllm.inference.tiers import Ladder
from ruvllm.nightly.steps import bare_step, step
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace

if TYPE_CHECKING:
    from ruvllm.memory.tidy.summarise import Summarise

Result = dict[str, Any]

_SHOWN = 5  # clusters whose texts a report shows
_KEYS_KEPT_DAYS = 30  # a write's key: longer than any client sends a write again


def watch(settings: Settings, cycle_id: str) -> Result:
    """Store questions that were answered well today: what comes after must not make memory forget them."""
    from ruvllm.memory.tidy import canary

    def work(place: Workplace) -> Result:
        new = canary.fill(place.database, place.embedder)
        found = canary.score(place.database)
        return {"new": new, "questions": found.questions, "recall": found.recall}

    return step(settings, cycle_id, "watch", work)


def catch_up(settings: Settings, cycle_id: str) -> Result:
    """Make nodes of the bursts that still wait, before duplicates are looked for."""
    from ruvllm.memory.writing import burst

    def work(place: Workplace) -> Result:
        return asdict(burst.merge(place.database, place.embedder, progress=progress.stage("Merging bursts")))

    return step(settings, cycle_id, "catch-up", work)


def merge(settings: Settings, cycle_id: str) -> Result:
    """Merge exact and near duplicates by the conflict rule."""
    from ruvllm.memory.tidy.dedup import dedup

    def work(database: Database) -> Result:
        return dedup(database, settings, progress.stage("Merging duplicates")).as_dict()

    return bare_step(settings, cycle_id, "merge", work)


def compact(settings: Settings, cycle_id: str) -> Result:
    """Sum up clusters of small nodes in Concepts; the largest tier writes, and is loaded where there is a cluster."""
    from ruvllm.memory.tidy.compaction import compact

    def work(place: Workplace) -> Result:
        show = progress.stage("Summing up clusters")
        with largest_tier(settings, place.ladder) as (summarise, name):
            report = compact(place.database, place.embedder, summarise, name, progress=show)
        shown = [{"members": len(e.members), "text": e.text, "why": e.why} for e in report.clusters[:_SHOWN]]
        return {**report.as_dict(), "shown": shown}

    return step(settings, cycle_id, "compact", work)


@contextmanager
def largest_tier(settings: Settings, ladder: Ladder) -> Iterator[tuple[Summarise, str]]:
    """What summarises here, and its name; its process starts with the first summary and ends with the block."""
    from ruvllm.inference.pool import ModelPool
    from ruvllm.memory.tidy.summarise import ModelSummariser

    tier = ladder.tiers[-1]
    with ModelPool(settings, ladder) as pool:
        model = pool.model(len(ladder.tiers) - 1)
        room = min(tier.n_ctx, settings.n_ctx)
        yield ModelSummariser(model, tier.style, room, settings.deadline_s), tier.name


def archive(settings: Settings, cycle_id: str) -> Result:
    """Take out of the search what nobody used for 90 days."""
    from ruvllm.memory.tidy.archive import archive

    def work(database: Database) -> Result:
        return archive(database, progress=progress.stage("Archiving what is not used")).as_dict()

    return bare_step(settings, cycle_id, "archive", work)


def decay(settings: Settings, cycle_id: str) -> Result:
    """Let unused edges fade, and prune the lightest."""
    from ruvllm.memory.tidy.decay import decay

    def work(database: Database) -> Result:
        return decay(database, progress=progress.stage("Fading edges")).as_dict()

    return bare_step(settings, cycle_id, "decay", work)


def keep_up(settings: Settings, cycle_id: str) -> Result:
    """Reindex where due, vacuum, prewarm, check, audit the index against exact search; forget old keys of writes."""
    from ruvllm.memory.tidy.upkeep import keep_up
    from ruvllm.memory.writing import writes

    def work(database: Database) -> Result:
        forgotten = writes.forget_all(database, _KEYS_KEPT_DAYS)
        return {**keep_up(database, progress.stage("Keeping indexes fit")).as_dict(), "writes_forgotten": forgotten}

    return bare_step(settings, cycle_id, "upkeep", work)
