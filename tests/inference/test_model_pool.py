"""Restarts and refusals, with fakes instead of processes."""

from __future__ import annotations

import pytest
from inference_prompts import short_prompt

from ruvllm.errors import InputError, UnknownTierError, WorkerDiedError
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool, SupervisedModel
from ruvllm.inference.tiers import Ladder, Tier
from ruvllm.inference.types import Sampling
from ruvllm.settings import Settings

ASK = (short_prompt("Who?"), Sampling(), 5.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Starts:
    """Hands out fakes that die as often as told, and counts them."""

    def __init__(self, *deaths: int) -> None:
        self.made = [FakeModel(deaths=n) for n in deaths]
        self.count = 0

    def __call__(self, tier: Tier) -> FakeModel:
        self.count += 1
        return self.made[self.count - 1]


def test_nothing_starts_before_the_first_request_and_once_only(tiers: dict[str, Tier], settings: Settings) -> None:
    starts = Starts(0)
    with ModelPool(settings, Ladder("packaged", (tiers["chat"],), ""), start=starts) as pool:
        model = pool.model(0)
        assert starts.count == 0
        assert [model.generate(*ASK).text for _ in range(2)] == ["unknown", "unknown"]
        assert (starts.count, pool.waiting) == (1, 0)
        with pytest.raises(UnknownTierError, match="places 0 to 0"):
            pool.model(1)
    assert not starts.made[0].alive
    with pytest.raises(WorkerDiedError, match="closed"):
        model.generate(*ASK)


def test_a_request_that_its_process_died_of_is_tried_once_more(tiers: dict[str, Tier]) -> None:
    starts = Starts(1, 0)
    assert SupervisedModel(tiers["chat"], starts).generate(*ASK).text == "unknown"
    assert starts.count == 2


def test_repeated_deaths_back_off_and_an_answer_forgives_them(tiers: dict[str, Tier]) -> None:
    clock, starts = Clock(), Starts(1, 1, 1, 0, 1, 0)
    model = SupervisedModel(tiers["chat"], starts, clock)
    with pytest.raises(WorkerDiedError, match="told to die"):
        model.generate(*ASK)
    with pytest.raises(WorkerDiedError, match="2 times in a row; next start in 1 s"):
        model.generate(*ASK)
    assert starts.count == 2
    clock.now = 1.0
    with pytest.raises(WorkerDiedError, match="3 times in a row; next start in 2 s"):
        model.generate(*ASK)
    clock.now = 3.5
    assert model.generate(*ASK).text == "unknown"
    starts.made[3].deaths = 1
    starts.made[4].deaths = 0
    assert model.generate(*ASK).text == "unknown"
    assert starts.count == 5


def test_a_bad_request_is_not_a_death(tiers: dict[str, Tier]) -> None:
    starts = Starts(0)
    with pytest.raises(InputError):
        SupervisedModel(tiers["chat"], starts).generate(short_prompt("Who?"), Sampling(temperature=-1), 5.0)
    assert starts.count == 1
    assert starts.made[0].alive
