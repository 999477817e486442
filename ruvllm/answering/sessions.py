"""What is kept between the turns of a session: its history and the router's hidden state. Bounded, and it expires.

Knows nothing of requests or models. A session is named by its id or, without one, by the conversation so far: who sends
the turns back, word for word, goes on where the router was. A session belongs to who began it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST = 1000  # sessions; the one that rested longest goes first
EXPIRES_S = 1800.0
MOST_TURNS, MOST_CHARS = 32, 16_000  # of a history that is kept; the oldest turns go first

History = tuple[tuple[str, str], ...]
Hidden = NDArray[np.float32]


@dataclass(frozen=True)
class Session:
    """`turns` were answered in all; `history` holds the latest of them. `hidden` (H,) is of router `version`."""

    history: History = ()
    turns: int = 0
    hidden: Hidden | None = None
    version: str = ""

    def hidden_of(self, version: str) -> Hidden | None:
        """A new router starts every session afresh."""
        return self.hidden if self.version == version else None


NEW = Session()


class Sessions:
    """Of one tenant; safe among threads. `clock` is monotonic seconds."""

    def __init__(
        self, limit: int = MOST, expires_s: float = EXPIRES_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept: OrderedDict[str, tuple[float, Session]] = OrderedDict()
        self._limit, self._expires_s, self._clock = limit, expires_s, clock
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._kept)

    def get(self, key: str) -> Session:
        """What is kept under `key` (see `key_of`); an empty session where nothing is, or no more."""
        with self._lock:
            self._expire()
            return self._kept[key][1] if key in self._kept else NEW

    def put(self, key: str, session: Session) -> None:
        with self._lock:
            self._kept[key] = (self._clock(), session)
            self._kept.move_to_end(key)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def forget(self, key: str) -> bool:
        """Whether there was one."""
        with self._lock:
            return self._kept.pop(key, None) is not None

    def _expire(self) -> None:
        """Entries stand in the order of their last turn."""
        since = self._clock() - self._expires_s
        while self._kept and next(iter(self._kept.values()))[0] < since:
            self._kept.popitem(last=False)


def key_of(writer: str, session_id: str | None, history: History = ()) -> str:
    """Of a session id, or of the conversation `history` where there is none; the same for one writer only."""
    named = ["id", session_id] if session_id is not None else ["turns", history]
    content = json.dumps([writer, named], ensure_ascii=True)
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def trimmed(history: History) -> History:
    """The latest turns that are within the bounds of what is kept."""
    kept: list[tuple[str, str]] = []
    left = MOST_CHARS
    for question, answer in reversed(history[-MOST_TURNS:]):
        left -= len(question) + len(answer)
        if left < 0:
            break
        kept.append((question, answer))
    return tuple(reversed(kept))
