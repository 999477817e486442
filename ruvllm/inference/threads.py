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

from ruvllm.errors import InferenceError

BUDGET_S = 1.6
_PROMPT_TOKENS, _SINGLE_TOKENS = 48, 6
_WORTH = 0.9  # more threads must take less than this share of the time, or the cores are left to others


@dataclass(frozen=True)
class Threads:
    decode: int
    prefill: int


class Measurable(Protocol):
    def set_threads(self, decode: int, prefill: int) -> None: ...
    def clear(self) -> None: ...
    def evaluate(self, tokens: Sequence[int], deadline: float) -> None: ...


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def candidates(available: int) -> list[int]:
    """Fewest first."""
    return sorted({1, max(1, available // 2), available})


def measure(engine: Measurable, available: int) -> Threads:
    """Times a short prompt and a few single tokens at each candidate, within BUDGET_S, and sets the better counts."""
    counts = candidates(available)
    share = BUDGET_S / (2 * len(counts))
    prompt = {n: _seconds(engine, n, [list(range(_PROMPT_TOKENS))], share) for n in counts}
    single = {n: _seconds(engine, n, [[1]] * _SINGLE_TOKENS, share) for n in counts}
    chosen = Threads(decode=choose(single), prefill=choose(prompt))
    engine.set_threads(chosen.decode, chosen.prefill)
    engine.clear()
    return chosen


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
    clock: Callable[[], float] = time.monotonic,
) -> float:
    engine.set_threads(count, count)
    engine.clear()
    began = clock()
    try:
        for batch in batches:
            engine.evaluate(batch, began + limit)
    except InferenceError:
        return float("inf")
    return clock() - began
