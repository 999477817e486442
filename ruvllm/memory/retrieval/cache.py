"""Answers of searches that were asked before. Knows nothing of how they are found.

The key holds the stamp of what the replica shows: an answer from before a change that was seen since is never handed
out again, whoever wrote. The time to live bounds what stays in memory, not what is true.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

ENTRIES = 1_024
TTL_S = 300.0


@dataclass(frozen=True)
class CacheState:
    entries: int
    hits: int
    misses: int


class SearchCache(Generic[T]):
    """Least recently used goes first. Safe among threads."""

    def __init__(
        self, entries: int = ENTRIES, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._ttl, self._clock = entries, ttl_s, clock
        self._kept: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def get(self, key: Hashable) -> T | None:
        """What was put under `key`, unless it is too old."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] < self._clock():
                self._kept.pop(key, None)
                self._misses += 1
                return None
            self._kept.move_to_end(key)
            self._hits += 1
            return kept[1]

    def put(self, key: Hashable, answer: T) -> None:
        with self._lock:
            self._kept[key] = (self._clock() + self._ttl, answer)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    @property
    def state(self) -> CacheState:
        with self._lock:
            return CacheState(len(self._kept), self._hits, self._misses)
