"""How long work reports how far it is; knows nothing of terminals: the CLI shows bars, a served flow logs lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    def __call__(self, done: int, total: int, note: str = "") -> None: ...


class Reporter(Protocol):
    """Where a process shows its progress; `stage` names the long step that the calls belong to."""

    def stage(self, name: str) -> Progress: ...


def silent(done: int, total: int, note: str = "") -> None:
    """The default: says nothing."""


class Silent:
    def stage(self, name: str) -> Progress:
        return silent


_SILENT = Silent()
_reporter: ContextVar[Reporter] = ContextVar("reporter")


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Within the block, steps report to `reporter`. A flow's parameters must be JSON, so it cannot be passed down."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def stage(name: str) -> Progress:
    """The current reporter's progress for the step `name`."""
    return _reporter.get(_SILENT).stage(name)
