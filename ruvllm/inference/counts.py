"""Token counts that are kept: a passage that was counted for one prompt costs no look into the model for the next.

Knows nothing of models: whoever counts is given. A model answers one request at a time, so a count would wait behind a
whole answer. Of one tier, whose tokeniser never changes while its file does not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

KEPT = 8192  # texts; with those of a passage each, a few megabytes


class TokenCounts:
    """Numbers of tokens by text, the least recently used forgotten first. Safe among threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, texts: list[str], count: Callable[[list[str]], list[int]]) -> list[int]:
        """In the order of `texts`; `count` is asked, outside of any lock, for those that are not known, each once."""
        known = self._known(texts)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if unknown:
            fresh = dict(zip(unknown, count(unknown), strict=True))
            self._keep(fresh)
            known |= fresh
        return [known[text] for text in texts]

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()

    def _known(self, texts: list[str]) -> dict[str, int]:
        with self._lock:
            known = {text: self._counts[text] for text in texts if text in self._counts}
            for text in known:
                self._counts.move_to_end(text)
        return known

    def _keep(self, fresh: dict[str, int]) -> None:
        with self._lock:
            self._counts |= fresh
            while len(self._counts) > self._kept:
                self._counts.popitem(last=False)
