"""Brings a server back that died under its clients: one caller at a time. Knows nothing of servers or connections.

The one that tries waits for the server; whoever comes meanwhile is told at once that nothing was done, so that a dead
server costs one caller seconds and not all of them. After a failure nobody tries for a while, and longer each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ruvllm.errors import DatabaseError

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Revival:
    """`revive` gives True where it brought the server back, False where that is not its business."""

    def __init__(self, revive: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._revive, self._clock = revive, clock
        self._one = threading.Lock()
        self._pause_s = 0.0
        self._not_before = float("-inf")

    def __call__(self) -> bool:
        """Whether the server was brought back by this call. Does not raise: the caller has its own error to tell."""
        if not self._one.acquire(blocking=False):
            return False
        try:
            return self._clock() >= self._not_before and self._attempt()
        finally:
            self._one.release()

    def _attempt(self) -> bool:
        try:
            revived = self._revive()
        except DatabaseError:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._not_before = self._clock() + self._pause_s
            return False
        self._pause_s = 0.0
        return revived
