"""An answer's text while its tokens come: what has been said for good, and where it stops. Knows nothing of models.

The whole answer is, by definition: the bytes before the first stop string, read as UTF-8 without what is not UTF-8,
without white space around it, without one leading colon (with which a model may close the prompt's lead-in) and the
white space behind that. What is said piece by piece is exactly this text; what may yet be cut off is held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Speech:
    """`push` one token's bytes after another; once `stopped`, nothing more is said. `finish` says what was held."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")  # holds a character cut over tokens
        self._begin = _Beginning()
        self._held = b""  # may be the beginning of a stop string
        self._space = ""  # said only if something follows
        self.stopped = False

    def push(self, raw: bytes) -> str:
        """What can be said now, perhaps nothing."""
        if self.stopped:
            return ""
        held = self._held + raw
        cut = _first(held, self._stops)
        self.stopped = cut is not None
        safe = len(held) - _overhang(held, self._stops) if cut is None else cut
        self._held = held[safe:]
        return self._say(self._decoder.decode(held[:safe]))

    def finish(self) -> str:
        """The rest, where no stop string came: a character that never ended and white space are left out."""
        rest = b"" if self.stopped else self._held
        self.stopped, self._held = True, b""
        return self._say(self._decoder.decode(rest))

    def _say(self, text: str) -> str:
        whole = self._begin.cut(self._space + text)
        said = whole.rstrip()
        self._space = whole[len(said) :]
        return said


class _Beginning:
    """Leaves out leading white space, one colon and the white space behind it."""

    def __init__(self) -> None:
        self._colon, self._over = False, False

    def cut(self, text: str) -> str:
        if self._over:
            return text
        text = text.lstrip()
        if text.startswith(":") and not self._colon:
            self._colon = True
            text = text[1:].lstrip()
        self._over = bool(text)
        return text


def _first(raw: bytes, stops: Sequence[bytes]) -> int | None:
    """Where the earliest stop string begins."""
    found = [raw.find(stop) for stop in stops]
    return min((place for place in found if place >= 0), default=None)


def _overhang(raw: bytes, stops: Sequence[bytes]) -> int:
    """How many bytes at the end of `raw` could be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(raw)), 0, -1):
        if any(stop.startswith(raw[-size:]) for stop in stops):
            return size
    return 0
