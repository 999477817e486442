"""How the CLI looks: progress bars with times, tables. Knows nothing of where the figures come from."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ruvllm.progress import Progress

_LOG_WIDTH = 120  # of a file or a pipe, which has no width of its own

console = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
errors = Console(stderr=True, highlight=False)

_LINE_EVERY_S = 10.0


class Bars:
    """A reporter on stderr (stdout is for results): a bar a stage on a terminal; in a log a line every ten seconds."""

    def __init__(self) -> None:
        self._live = errors.is_terminal
        self._bars = RichProgress(
            TextColumn("{task.description:<46}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]:.40}"),
            console=errors,
            disable=not self._live,
        )

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str) -> Progress:
        return self._bar(name) if self._live else _Lines(name)

    def _bar(self, name: str) -> Progress:
        task: TaskID = self._bars.add_task(name, total=None, note="")

        def show(done: int, total: int, note: str = "") -> None:
            self._bars.update(task, completed=done, total=total or None, note=note)

        return show


class _Lines:
    """Progress as plain lines: the first, one every ten seconds, the last."""

    def __init__(self, name: str) -> None:
        self._name, self._started, self._last = name, time.monotonic(), -_LINE_EVERY_S

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic() - self._started
        if done >= total or now - self._last >= _LINE_EVERY_S:
            self._last = now
            print(f"  {self._name}: {done}/{total or '?'}  {now:5.0f} s  {note[:60]}", file=sys.stderr, flush=True)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """A table with the first column to the left and the figures to the right."""
    made = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*[_cell(value) for value in row])
    return made


def _cell(value: Any) -> Text:
    """Plain text: what a model or a user wrote is never read as markup."""
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-")
    return Text(f"{value:.3f}" if isinstance(value, float) else str(value))
