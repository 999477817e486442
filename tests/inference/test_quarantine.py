from __future__ import annotations

import pytest
from inference_prompts import short_prompt

from ruvllm.errors import QuarantinedError
from ruvllm.inference.quarantine import LIFTED_AFTER_S, Quarantine

POISON, OTHER = [short_prompt("poison")], [short_prompt("other")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_two_deaths_refuse_a_prompt_for_a_while_and_one_more_refuses_it_again() -> None:
    clock = Clock()
    quarantine = Quarantine("m", clock)
    quarantine.died(POISON)
    quarantine.check(POISON)
    quarantine.died(POISON)
    with pytest.raises(QuarantinedError, match="restart the service to lift it"):
        quarantine.check(POISON)
    quarantine.check(OTHER)
    clock.now = LIFTED_AFTER_S
    quarantine.check(POISON)
    quarantine.died(POISON)
    with pytest.raises(QuarantinedError, match="3 times"):
        quarantine.check(POISON)


def test_an_answer_clears_a_prompt_that_was_there_when_a_process_was_killed() -> None:
    quarantine = Quarantine("m", Clock())
    quarantine.died(POISON)
    quarantine.answered(POISON)
    quarantine.died(POISON)
    quarantine.check(POISON)


def test_what_is_trusted_is_part_of_a_prompt_and_memory_is_bounded() -> None:
    quarantine = Quarantine("m", Clock(), most=3)
    for number in range(10):
        quarantine.died([short_prompt(str(number))])
    assert len(quarantine) == 3
    quarantine.died([short_prompt("\ud800")])
    assert len(quarantine) == 3
