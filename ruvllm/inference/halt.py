"""When a request has to stop: its deadline passed, or its caller took it back. Knows nothing of what is stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ruvllm.errors import CancelledError, DeadlineError


class Halt:
    """One request's permission to go on. `deadline` is in `clock`'s seconds.

    Any thread may cancel; the one that works asks `passed`, which is cheap enough for every node of a model's graph.
    """

    def __init__(self, deadline: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadline = deadline
        self._clock = clock
        self._cancelled = False

    def cancel(self) -> None:
        """Safe from any thread and as often as one likes."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def passed(self) -> bool:
        return self._cancelled or self._clock() > self.deadline

    def check(self, what: str = "the request was being answered") -> None:
        """`what` says in a message what went on when it stopped.

        Raises:
            CancelledError: it was cancelled, before or after its deadline.
            DeadlineError: its deadline passed.
        """
        if self._cancelled:
            raise CancelledError(f"cancelled by its caller while {what}")
        if self._clock() > self.deadline:
            raise DeadlineError(f"deadline passed while {what}; ask for less context, fewer tokens or more time")
