"""Restarts and refusals, with fakes instead of processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inference_prompts import short_prompt

from ruvllm.errors import InputError, OverloadedError, UnknownTierError, WorkerDiedError
from ruvllm.inference.budget import MemoryBudget
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.machine import repacks
from ruvllm.inference.pool import ModelPool, SupervisedModel
from ruvllm.inference.sizing import snapshot_bytes
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue, memory
from ruvllm.inference.types import Generation, Sampling
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


def test_the_state_of_every_tier_is_told_without_asking_a_process(tiers: dict[str, Tier], settings: Settings) -> None:
    starts = Starts(0)
    ladder = Ladder("packaged", (tiers["chat"], tiers["few-shot"]), "")
    with ModelPool(settings, ladder, start=starts) as pool:
        assert [state.state for state in pool.states] == ["cold", "cold"]
        assert not pool.ready
        pool.model(0).start()
        assert pool.ready
        assert [(s.name, s.ready, s.busy) for s in pool.states] == [
            (tiers["chat"].name, True, 0),
            (tiers["few-shot"].name, False, 0),
        ]
        starts.made[0].alive = False
        assert not pool.ready
    assert [state.state for state in pool.states] == ["closed", "closed"]


def test_a_tier_that_waits_after_deaths_says_so(tiers: dict[str, Tier]) -> None:
    model = SupervisedModel(tiers["chat"], Starts(1, 1), Clock())
    with pytest.raises(WorkerDiedError):
        model.generate(*ASK)
    assert (model.state.state, model.state.restarts) == ("failing", 2)
    assert "next start in 1 s" in model.state.detail


def _needs(tier: Tier, settings: Settings) -> int:
    """MiB: the process, what llama.cpp rearranges here, and the prompt states that it may keep."""
    return -(-memory(tier, settings.n_ctx, repacks()) // 2**20) + settings.snapshots_mb


def test_kept_states_count_in_what_a_model_is_expected_to_take(tiers: dict[str, Tier], settings: Settings) -> None:
    """For a shape that is known, the two states that a nested question holds at once too."""
    known = load_catalogue()["lfm2"][0]
    assert known.shape is not None
    for tier, held in ((tiers["chat"], 0), (known, 2 * snapshot_bytes(known.shape, settings.n_ctx))):
        ladder = Ladder("some", (tier,), "")
        keeping, not_keeping = (
            ModelPool(replace(settings, snapshots_mb=mb), ladder, start=Starts()).model(0).memory for mb in (100, 0)
        )
        assert keeping - not_keeping == 100 * 2**20
        assert not_keeping == memory(tier, settings.n_ctx, repacks()) + held


def test_a_tier_over_the_models_memory_leaves_the_other_tiers_answering(
    tiers: dict[str, Tier], settings: Settings
) -> None:
    ladder = Ladder("packaged", (tiers["chat"], tiers["few-shot"]), "")
    small = replace(settings, models_memory_mb=_needs(tiers["chat"], settings) + 1)
    with ModelPool(small, ladder, start=Starts(0, 0)) as pool:
        assert pool.model(0).generate(*ASK).text == "unknown"
        with pytest.raises(OverloadedError, match="raise RUVLLM_MODELS_MEMORY_MB"):
            pool.model(1).generate(*ASK)
        assert pool.model(0).generate(*ASK).text == "unknown"


def test_a_stream_through_the_pool_is_the_answer(tiers: dict[str, Tier], settings: Settings) -> None:
    with ModelPool(settings, Ladder("packaged", (tiers["chat"],), ""), start=Starts(1, 0)) as pool:
        model = pool.model(0)
        with model.stream(*ASK) as stream:
            assert "".join(stream) == "unknown"
        assert stream.generation.text == "unknown"
        assert (pool.waiting, model.state.restarts) == (0, 1)


def test_warming_loads_what_fits_together_and_throws_nobody_out(tiers: dict[str, Tier], settings: Settings) -> None:
    ladder = Ladder("packaged", (tiers["chat"], tiers["few-shot"]), "")
    for room, loaded in ((1, [True, False]), (1 + _needs(tiers["few-shot"], settings), [True, True])):
        within = replace(settings, models_memory_mb=_needs(tiers["chat"], settings) + room)
        with ModelPool(within, ladder, start=Starts(0, 0)) as pool:
            pool.warm()
            assert [state.ready for state in pool.states] == loaded
            assert pool.budget.evictions == 0


def test_a_model_that_is_not_started_again_yet_takes_no_room(tiers: dict[str, Tier]) -> None:
    budget = MemoryBudget(15)
    dead = SupervisedModel(tiers["chat"], Starts(1, 1), Clock(), budget, memory=10)
    other = SupervisedModel(tiers["few-shot"], Starts(0), Clock(), budget, memory=10)
    with pytest.raises(WorkerDiedError):
        dead.generate(*ASK)
    assert budget.taken == 0
    assert other.generate(*ASK).text == "unknown"


class GoneBefore(FakeModel):
    """A process that is gone before a request's turn."""

    def generate(self, *_: object) -> Generation:
        error = WorkerDiedError("gone")
        error.reached = False
        raise error


def test_a_request_that_no_process_worked_on_is_not_used_up_by_deaths(tiers: dict[str, Tier]) -> None:
    clock, starts = Clock(), Starts(0, 0, 0, 1, 0)
    starts.made[:3] = [GoneBefore() for _ in range(3)]
    model = SupervisedModel(tiers["chat"], lambda tier: forgiven(starts(tier)), clock)

    def forgiven(worker: FakeModel) -> FakeModel:
        model._deaths = 0  # other requests were answered meanwhile
        return worker

    assert model.generate(*ASK).text == "unknown"
    assert starts.count == 5
    starts.made += [GoneBefore() for _ in range(20)]
    model._worker = None
    with pytest.raises(WorkerDiedError, match="gone"):
        model.generate(*ASK)
    assert starts.count == 5 + 9
