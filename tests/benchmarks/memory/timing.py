"""Times contenders in turn, block by block: a busy machine slows all of them alike. Knows nothing of what runs."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[int], object]  # the number of the query


@dataclass(frozen=True)
class Timing:
    """Seconds of each query, (q,), and how the queries were cut into blocks.

    `cpu` is of the thread that asks: where other work keeps the cores, it still says what a call takes by itself.
    """

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]
    block: int
    server_cpu_s: float = 0.0  # of the server's process over all queries
    load: float = 0.0  # load average while it was measured

    @property
    def busy(self) -> bool:
        """Whether other work wanted the cores: then a wall-clock quantile is mostly that work's."""
        return self.load > 0.75 * (os.cpu_count() or 1) + 1

    def p(self, quantile: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.wall, quantile)) * 1e3

    def own(self, quantile: float) -> float:
        """Milliseconds of the asking thread's CPU."""
        return float(np.quantile(self.cpu, quantile)) * 1e3

    @property
    def cpu_ms(self) -> float:
        """Mean CPU milliseconds a query, the server's too."""
        return float(self.cpu.mean() + self.server_cpu_s / len(self.cpu)) * 1e3

    def ratio(self, other: Timing) -> tuple[float, float, float]:
        """Median over the blocks of median(self) / median(other), and its quartiles."""
        ratios = self._medians() / other._medians()
        return tuple(float(q) for q in np.quantile(ratios, (0.5, 0.25, 0.75)))  # type: ignore[return-value]

    def _medians(self) -> NDArray[np.float64]:
        whole = len(self.wall) // self.block * self.block
        medians: NDArray[np.float64] = np.median(self.wall[:whole].reshape(-1, self.block), axis=1)
        return medians


def interleaved(
    contenders: Mapping[str, Call],
    queries: int,
    block: int = 50,
    server_cpu: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, Timing]:
    """Every contender answers every query, `block` of them at a time, in an order that turns with each block.

    A block begins with five calls that are not counted: a contender's data has left the caches in the meantime.
    `server_cpu` says how many CPU seconds a contender's server has used so far.
    """
    names, meters, block = list(contenders), server_cpu or {}, min(block, queries)
    wall = {name: np.zeros(queries) for name in names}
    cpu = {name: np.zeros(queries) for name in names}
    spent = dict.fromkeys(names, 0.0)
    gc.collect()
    gc.disable()
    try:
        for turn, start in enumerate(range(0, queries, block)):
            numbers = range(start, min(start + block, queries))
            for name in _turned(names, turn):
                _warm(contenders[name], numbers)
                before = meters[name]() if name in meters else 0.0
                _measure(contenders[name], numbers, wall[name], cpu[name])
                spent[name] += meters[name]() - before if name in meters else 0.0
    finally:
        gc.enable()
    load = os.getloadavg()[0]
    return {name: Timing(wall[name], cpu[name], block, spent[name], load) for name in names}


def _turned(names: Sequence[str], turn: int) -> list[str]:
    place = turn % len(names)
    return [*names[place:], *names[:place]]


def _warm(call: Call, numbers: range) -> None:
    for number in numbers[-5:]:
        call(number)


def _measure(call: Call, numbers: range, wall: NDArray[np.float64], cpu: NDArray[np.float64]) -> None:
    for number in numbers:
        used, started = time.thread_time(), time.perf_counter()
        call(number)
        wall[number] = time.perf_counter() - started
        cpu[number] = time.thread_time() - used
