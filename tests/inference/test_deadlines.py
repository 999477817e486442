"""The pace of a model and what it cannot do in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ruvllm.inference.deadlines import AROUND, Pace, Paces, too_slow
from ruvllm.inference.types import BINS, Generation

ANSWER = Generation("x", 500, 20, 100, prefill_s=4.0, decode_s=2.0, finish_reason="stop")  # 100 and 10 tokens a second


def test_the_pace_is_the_median_of_what_was_evaluated() -> None:
    paces = Paces()
    for prefill_s in (4.0, 2.0, 400.0):
        paces.saw(replace(ANSWER, prefill_s=prefill_s))
    assert paces.pace == Pace(100.0, 10.0)


@pytest.mark.parametrize("short", [replace(ANSWER, cached_tokens=480), replace(ANSWER, completion_tokens=2)])
def test_a_few_tokens_say_nothing(short: Generation) -> None:
    paces = Paces()
    paces.saw(short)
    assert paces.pace is None


def test_a_slow_moment_is_forgotten() -> None:
    now = [0.0]
    paces = Paces(clock=lambda: now[0])
    paces.saw(ANSWER)
    now[0] = 601.0
    assert paces.pace is None


def test_pairs_that_would_miss_the_deadline() -> None:
    seconds = (BINS[2] + AROUND) / 100 + 20 / 10
    slow = too_slow([Pace(100, 10), None, Pace(1e6, 1e6)], answer_tokens=20, deadline_s=seconds)
    assert slow == {(0, 3), (0, 4)}
    assert too_slow([Pace(100, 10)], answer_tokens=20, deadline_s=seconds - 0.01) == {(0, 2), (0, 3), (0, 4)}
