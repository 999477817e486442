"""When thread counts are worth measuring again; knows nothing of engines.

The counts were best on the machine as it was. When other programs come or go, a token takes another time than was
measured: two answers in a row outside the band ask for a new measurement. So does a count that was chosen on a busy
machine (its tokens take clearly longer than the best ever measured), for nothing in its own times tells when the others
have gone. Each measurement doubles the wait until the next, and a long time without one starts anew: no flapping.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

BAND = 1.75  # times the measured seconds a token, or a part of it
STRAINED = 1.25  # times the best seconds a token ever measured
FIRST_WAIT_S, LONGEST_WAIT_S = 20.0, 640.0
_FEW = 8  # tokens: of fewer the mean says little
_IN_A_ROW = 2


class Pace:
    """Told of every answer and every measurement, says whether one is `due`. Seconds are `clock`'s."""

    def __init__(self, token_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected = self._best = token_s
        self._wait_s, self._measured_at, self._outside = FIRST_WAIT_S, clock(), 0

    def answered(self, tokens: int, seconds: float) -> None:
        """An answer of `tokens` took `seconds` of decoding."""
        if tokens < _FEW:
            return
        each = seconds / tokens
        if math.isinf(self._expected):  # nothing finished while it was measured
            self._expected = self._best = each
        inside = self._expected / BAND <= each <= self._expected * BAND
        self._outside = 0 if inside else self._outside + 1

    @property
    def due(self) -> bool:
        if self._clock() - self._measured_at < self._wait_s:
            return False
        return self._outside >= _IN_A_ROW or self._expected > STRAINED * self._best

    def measured(self, token_s: float) -> None:
        """A measurement was made, whatever it chose."""
        now = self._clock()
        quiet = now - self._measured_at > 2 * LONGEST_WAIT_S
        self._wait_s = FIRST_WAIT_S if quiet else min(LONGEST_WAIT_S, 2 * self._wait_s)
        self._measured_at, self._outside = now, 0
        self._expected, self._best = token_s, min(token_s, self._best)
