from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from ruvllm.inference.halt import Halt
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.threads import BUDGET_S, LiveThreads, Threads, candidates, choose, cores
from ruvllm.inference.tiers import Tier
from ruvllm.settings import Settings

NEVER = math.inf


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.55}, 2),
        ({1: 1.0, 2: 0.95}, 1),  # not worth a second core
        ({1: 0.5, 2: 5.0}, 1),  # two threads spin for one another beside a busy process
        ({1: NEVER, 2: 1.0}, 2),
        ({1: NEVER, 2: NEVER}, 2),
        ({1: 1.0, 4: 0.3, 8: 0.29}, 4),
    ],
)
def test_the_fewest_threads_that_no_more_beat_clearly(seconds: dict[int, float], best: int) -> None:
    assert choose(seconds) == best


def test_candidates_are_within_the_machine() -> None:
    assert [candidates(n) for n in (1, 2, 3, 16)] == [[1], [1, 2], [1, 3], [1, 8, 16]]


def test_a_worker_measures_its_threads_in_a_budget_below_two_seconds(
    tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings
) -> None:
    with LlamaWorker(tiers["few-shot"], paths["few-shot"], model_settings) as worker:
        assert {worker.threads.decode, worker.threads.prefill} <= set(candidates(cores()))
    assert BUDGET_S < 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Stands for an engine: `seconds` of a token at a count of threads; ten tokens of a prompt take as long as one."""

    def __init__(self, clock: Clock, seconds: dict[int, float]) -> None:
        self.clock, self.seconds, self.threads = clock, seconds, (0, 0)
        self.cancel: Halt | None = None

    def set_threads(self, decode: int, prefill: int) -> None:
        self.threads = (decode, prefill)

    def clear(self) -> None:
        """Holds nothing."""

    def evaluate(self, tokens: Sequence[int], halt: Halt) -> None:
        if self.cancel is not None:
            self.cancel.cancel()
        self.clock.now += max(1, len(tokens) / 10) * self.seconds[self.threads[0]]
        halt.check()


IDLE, BUSY = {1: 0.034, 2: 0.02}, {1: 0.042, 2: 0.4}  # seconds a token, as facts have them


def answer(live: LiveThreads, machine: Machine) -> None:
    live.answered(16, 16 * machine.seconds[live.counts.decode])
    machine.clock.now += 10


def test_counts_follow_a_neighbour_that_comes_and_goes_and_do_not_flap() -> None:
    clock = Clock()
    machine = Machine(clock, IDLE)
    live = LiveThreads(machine, 0, 2, clock)
    assert live.counts == Threads(2, 2)
    measured = 0
    for hour, seconds in enumerate((IDLE, BUSY, IDLE)):
        machine.seconds = seconds
        for _ in range(360):
            answer(live, machine)
            if live.due:
                measured += 1
                live.measure_again(Halt())
        assert live.counts == (Threads(1, 1) if hour == 1 else Threads(2, 2))
        assert machine.threads == (live.counts.decode, live.counts.prefill)
    assert measured <= 15  # in three hours, of which one was spent beside the neighbour


def test_a_measurement_that_a_request_interrupts_leaves_the_counts_as_they_were() -> None:
    clock = Clock()
    machine = Machine(clock, IDLE)
    live = LiveThreads(machine, 0, 2, clock)
    machine.cancel = Halt()
    assert not live.measure_again(machine.cancel)
    assert machine.threads == (2, 2)
    assert live.counts == Threads(2, 2)


def test_a_count_that_was_asked_for_is_never_due() -> None:
    clock = Clock()
    live = LiveThreads(Machine(clock, BUSY), 2, 2, clock)
    clock.now = 1e9
    live.answered(100, 1e6)
    assert not live.due
