"""Signs of life from a model's process while it works, by a thread beside llama.cpp, which runs without the GIL.

Knows nothing of models. A beat says how much memory the process holds, and how many steps the work has taken: steps
that stand still tell a process that hangs from one that is slow.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ruvllm.inference.framing import Message
from ruvllm.inference.halt import Halt
from ruvllm.inference.limits import resident


class Pulse(Halt):
    """A request's halt that counts how often the work asked it: at every node of a prefill, at every token."""

    def __init__(self, deadline: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(deadline, clock)
        self.steps = 0

    @property
    def passed(self) -> bool:
        self.steps += 1
        return super().passed

    def check(self, what: str = "the request was being answered") -> None:
        self.steps += 1
        super().check(what)


class Beats:
    """Sends a beat every `every_s` while something is worked on."""

    def __init__(self, send: Callable[[Message], None], every_s: float) -> None:
        self._send, self._every_s = send, every_s
        self._work: tuple[int, Pulse] | None = None
        self._working = threading.Event()
        threading.Thread(target=self._run, name="beats", daemon=True).start()

    @contextmanager
    def during(self, request: int, pulse: Pulse) -> Iterator[None]:
        self._work = (request, pulse)
        self._working.set()
        try:
            yield
        finally:
            self._working.clear()
            self._work = None

    def _run(self) -> None:
        while self._working.wait():
            time.sleep(self._every_s)
            work = self._work
            if work is not None:
                self._send({"beat": work[0], "steps": work[1].steps, "rss": resident()})
