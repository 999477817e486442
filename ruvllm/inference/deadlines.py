"""How fast a model answers here, by its own latest answers, and what it therefore cannot do in time.

Knows nothing of how a model runs. A figure is forgotten after a while: a model that was slow beside a busy neighbour,
and was passed over for it, is tried again.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ruvllm.inference.types import BINS, Generation

_KEPT = 32  # answers
_KEPT_S = 600.0
_PROMPT, _ANSWER = 32, 4  # tokens below which a rate says more of the start than of the pace
AROUND = 96  # tokens of a prompt beside its context: the question and what frames it


@dataclass(frozen=True)
class Pace:
    """Tokens a second."""

    prefill: float
    decode: float

    def seconds(self, prompt_tokens: int, answer_tokens: int) -> float:
        return prompt_tokens / self.prefill + answer_tokens / self.decode


class Paces:
    """The pace of one model, fed with its answers; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._prefill: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # (when, tokens a second)
        self._decode: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def saw(self, generation: Generation) -> None:
        evaluated, now = generation.prompt_tokens - generation.cached_tokens, self._clock()
        with self._lock:
            if evaluated >= _PROMPT and generation.prefill_s > 0:
                self._prefill.append((now, evaluated / generation.prefill_s))
            if generation.completion_tokens >= _ANSWER and generation.decode_s > 0:
                self._decode.append((now, generation.completion_tokens / generation.decode_s))

    @property
    def pace(self) -> Pace | None:
        """The medians; None until there is a recent answer of some length."""
        with self._lock:
            prefill, decode = self._recent(self._prefill), self._recent(self._decode)
        return Pace(statistics.median(prefill), statistics.median(decode)) if prefill and decode else None

    def _recent(self, rates: deque[tuple[float, float]]) -> list[float]:
        since = self._clock() - _KEPT_S
        return [rate for when, rate in rates if when >= since]


def too_slow(paces: Sequence[Pace | None], answer_tokens: int, deadline_s: float) -> frozenset[tuple[int, int]]:
    """(tier, index of the bin) pairs that would not be done in `deadline_s`, with the whole context still to be read.

    `paces` are in the ladder's order; a tier whose pace is not known is not too slow.
    """
    return frozenset(
        (tier, place)
        for tier, pace in enumerate(paces)
        for place, context_bin in enumerate(BINS)
        if pace is not None and pace.seconds(context_bin + AROUND, answer_tokens) > deadline_s
    )
