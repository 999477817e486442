"""When thread counts are measured again, with a clock of the test's own."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ruvllm.inference.pace import BAND, FIRST_WAIT_S, LONGEST_WAIT_S, Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answered(pace: Pace, times: int, each: float, tokens: int = 16) -> None:
    for _ in range(times):
        pace.answered(tokens, tokens * each)


def test_tokens_as_fast_as_measured_ask_for_nothing_however_long() -> None:
    clock = Clock()
    pace = Pace(0.02, clock)
    clock.now = 1e6
    answered(pace, 100, 0.03)
    assert not pace.due


def test_two_slow_answers_in_a_row_ask_for_a_measurement_and_one_does_not() -> None:
    clock = Clock()
    pace = Pace(0.02, clock)
    clock.now = FIRST_WAIT_S
    answered(pace, 1, 0.2)
    answered(pace, 1, 0.02)
    answered(pace, 1, 0.2)
    assert not pace.due
    answered(pace, 1, 0.2)
    assert pace.due
    pace.measured(0.15)
    assert not pace.due


def test_a_count_chosen_on_a_busy_machine_is_looked_at_again_when_some_time_has_passed() -> None:
    clock = Clock()
    pace = Pace(0.02, clock)
    pace.measured(0.04)  # one thread, beside a busy process
    answered(pace, 5, 0.04)
    assert not pace.due
    clock.now = 2 * FIRST_WAIT_S
    assert pace.due
    pace.measured(0.02)
    clock.now = 1e6
    assert not pace.due


def test_much_faster_answers_ask_too_and_short_ones_say_nothing() -> None:
    clock = Clock()
    pace = Pace(0.2, clock)
    clock.now = FIRST_WAIT_S
    answered(pace, 9, 0.01, tokens=3)
    assert not pace.due
    answered(pace, 2, 0.2 / BAND / 1.1)
    assert pace.due


def test_where_nothing_was_measured_in_time_the_first_answer_is_the_measure() -> None:
    clock = Clock()
    pace = Pace(math.inf, clock)
    clock.now = 1e6
    answered(pace, 3, 0.5)
    assert not pace.due


@given(st.lists(st.floats(0.001, 1.0), min_size=20, max_size=200))
def test_however_times_jump_there_are_few_measurements(each: list[float]) -> None:
    """An hour of answers, one every few seconds: 20, 40, 80 … 640 s apart, and no more."""
    clock, made = Clock(), 0
    pace = Pace(each[0], clock)
    for seconds in each:
        clock.now += 3600 / len(each)
        answered(pace, 2, seconds)
        if pace.due:
            made += 1
            pace.measured(seconds)
    assert made <= 6 + 3600 / LONGEST_WAIT_S
