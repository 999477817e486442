"""How a step of the night is done once: looked up first; what its work needs is opened only where there is work to do.

A night that is taken up again passes the steps that are done without loading the encoder for each of them. Knows
nothing of what the steps do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ruvllm.database import open_database
from ruvllm.database.pool import Database
from ruvllm.learning import cycle as cycles
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace, open_workplace

Result = dict[str, Any]


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database alone: the encoder takes a while to load, and much of what looks here needs none."""
    database = open_database(settings)
    try:
        yield database
    finally:
        database.close()


def step(settings: Settings, cycle_id: str, name: str, work: Callable[[Workplace], Result]) -> Result:
    """A step that embeds, or asks models."""

    def at_work() -> Result:
        with open_workplace(settings) as place:
            return work(place)

    return bare_step(settings, cycle_id, name, lambda _: at_work())


def bare_step(settings: Settings, cycle_id: str, name: str, work: Callable[[Database], Result]) -> Result:
    """A step that needs neither encoder nor models."""
    with opened(settings) as database:
        return cycles.once(database, cycle_id, name, lambda: work(database))
