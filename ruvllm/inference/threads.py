"""How many threads a model gets: measured at its start, not assumed; knows nothing of llama.cpp.

One thread can beat two on shared cores (OpenMP waits by spinning), and the best count for the prompt, which is bound by
arithmetic, is often not the best for single tokens, which are bound by memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ruvllm.errors import CancelledError, InferenceError
from ruvllm.inference.halt import Halt
from ruvllm.inference.pace import Pace

BUDGET_S = 1.6
_PROMPT_TOKENS, _SINGLE_TOKENS = 48, 6
_WORTH = 0.9  # more threads must take less than this share of the time, or the cores are left to others


@dataclass(frozen=True)
class Threads:
    decode: int
    prefill: int


@dataclass(frozen=True)
class Measurement:
    """The counts to use, and the seconds that one token took with them; infinite where none finished in time."""

    threads: Threads
    token_s: float


class Measurable(Protocol):
    def set_threads(self, decode: int, prefill: int) -> None: ...
    def clear(self) -> None: ...
    def evaluate(self, tokens: Sequence[int], halt: Halt) -> None: ...


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def candidates(available: int) -> list[int]:
    """Fewest first."""
    return sorted({1, max(1, available // 2), available})


def measure(
    engine: Measurable, available: int, halt: Halt | None = None, clock: Callable[[], float] = time.monotonic
) -> Measurement:
    """Times a short prompt and a few single tokens at each candidate, within BUDGET_S, and sets the better counts.

    Raises:
        CancelledError: `halt` was cancelled; the counts are then those tried last, and the state is undefined.
    """
    counts = candidates(available)
    share = BUDGET_S / (2 * len(counts))
    prompt = {n: _seconds(engine, n, [list(range(_PROMPT_TOKENS))], share, halt, clock) for n in counts}
    single = {n: _seconds(engine, n, [[1]] * _SINGLE_TOKENS, share, halt, clock) for n in counts}
    chosen = Threads(decode=choose(single), prefill=choose(prompt))
    engine.set_threads(chosen.decode, chosen.prefill)
    engine.clear()
    return Measurement(chosen, single[chosen.decode] / _SINGLE_TOKENS)


def choose(seconds: dict[int, float]) -> int:
    """The fewest threads that no greater count beats clearly; the most when none finished in its share."""
    best = max(seconds) if min(seconds.values()) == float("inf") else min(seconds)
    for count in sorted(seconds):
        if seconds[count] < _WORTH * seconds[best]:
            best = count
    return best


def _seconds(
    engine: Measurable,
    count: int,
    batches: Sequence[Sequence[int]],
    limit: float,
    halt: Halt | None,
    clock: Callable[[], float],
) -> float:
    engine.set_threads(count, count)
    engine.clear()
    began = clock()
    share = _Share(began + limit, halt, clock)
    try:
        for batch in batches:
            engine.evaluate(batch, share)
    except CancelledError:
        raise
    except InferenceError:
        return float("inf")
    return clock() - began


class _Share(Halt):
    """A candidate's time, cut short when the whole measurement is cancelled."""

    def __init__(self, deadline: float, whole: Halt | None, clock: Callable[[], float]) -> None:
        super().__init__(deadline, clock)
        self._whole = whole or Halt()

    @property
    def passed(self) -> bool:
        return self._whole.cancelled or super().passed

    def check(self, what: str = "threads were measured") -> None:
        if self._whole.cancelled:
            self.cancel()
        super().check(what)


class LiveThreads:
    """The counts in use: `wanted`, or measured now and, where answers say so, again between requests (see pace.py)."""

    def __init__(
        self, engine: Measurable, wanted: int, available: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._available, self._clock = engine, available, clock
        self._pace: Pace | None = None
        if wanted:
            self.counts = Threads(wanted, wanted)
            engine.set_threads(wanted, wanted)
            return
        measured = measure(engine, available, clock=clock)
        self.counts = measured.threads
        self._pace = Pace(measured.token_s, clock)

    def answered(self, tokens: int, seconds: float) -> None:
        """Seconds of decoding that an answer of so many tokens took."""
        if self._pace is not None:
            self._pace.answered(tokens, seconds)

    @property
    def due(self) -> bool:
        return self._pace is not None and self._pace.due

    def measure_again(self, halt: Halt) -> bool:
        """Whether other counts are used from now on; a cancelled measurement leaves them as they were."""
        assert self._pace is not None, "fixed counts are never due"
        before = self.counts
        try:
            measured = measure(self._engine, self._available, halt, self._clock)
        except CancelledError:
            self._engine.set_threads(before.decode, before.prefill)
            return False
        self._pace.measured(measured.token_s)
        self.counts = measured.threads
        return self.counts != before
