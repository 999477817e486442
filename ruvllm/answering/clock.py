"""How long the stages of a request took. Knows nothing of what they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Milliseconds of each stage, from the monotonic clock of this process."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.took(name, before)

    def took(self, name: str, since: float, until: float | None = None) -> None:
        self.stages[name] = ((time.perf_counter() if until is None else until) - since) * 1000

    def total(self) -> float:
        return (time.perf_counter() - self.started) * 1000
