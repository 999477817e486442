"""What verbs of several groups share: the database without models, progress that leaves JSON alone. No verb is here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING

from ruvllm.commands.console import Bars
from ruvllm.commands.verbs import settings_here

if TYPE_CHECKING:
    from ruvllm.database.pool import Database
    from ruvllm.progress import Progress


@contextmanager
def opened() -> Iterator[Database]:
    """The database alone, for verbs that need neither encoder nor models."""
    from ruvllm.database import open_database

    database = open_database(settings_here())
    try:
        yield database
    finally:
        database.close()


@contextmanager
def showing(as_json: bool, name: str) -> Iterator[Progress]:
    """Progress on the screen; with --json on stderr, so that stdout is JSON and nothing else."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext(), Bars() as bars:
        yield bars.stage(name)
