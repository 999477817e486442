"""Which model leaves for which, with tenants instead of models."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_prompts import short_prompt

from ruvllm.errors import OverloadedError
from ruvllm.inference.budget import MemoryBudget
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.supervised import SupervisedModel
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Sampling


@dataclass(eq=False)
class Guest:
    name: str
    memory: int = 10
    busy: bool = False
    here: bool = True

    def leave(self) -> bool:
        if self.busy:
            return False
        self.here = False
        return True


def loaded(budget: MemoryBudget, *guests: Guest) -> None:
    for guest in guests:
        budget.make_room(guest, 0)


def test_the_one_used_least_recently_leaves() -> None:
    budget = MemoryBudget(25)
    a, b, c = (Guest(name) for name in "abc")
    loaded(budget, a, b)
    budget.used(a)
    loaded(budget, c)
    assert (a.here, b.here, budget.taken, budget.evictions) == (True, False, 20, 1)


def test_a_busy_one_never_leaves_and_is_waited_for() -> None:
    budget = MemoryBudget(15)
    a, b = Guest("a", busy=True), Guest("b")
    loaded(budget, a)
    with pytest.raises(OverloadedError, match=r"no room within 0\.01 s"):
        budget.make_room(b, 0.01)
    waiting = threading.Thread(target=budget.make_room, args=(b, 60))
    waiting.start()
    a.busy = False
    while waiting.is_alive():  # until the waiting thread has heard that a is done
        budget.used(a) if a.here else None
        waiting.join(0.01)
    assert not a.here


def test_what_does_not_fit_at_all_is_refused_and_throws_nobody_out() -> None:
    budget = MemoryBudget(15)
    a = Guest("a")
    loaded(budget, a)
    with pytest.raises(OverloadedError, match="raise RUVLLM_MODELS_MEMORY_MB"):
        budget.make_room(Guest("b", memory=16), 60)
    assert a.here


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40), st.integers(10, 60))
def test_the_budget_holds_and_nobody_busy_leaves(steps: list[tuple[int, bool]], limit: int) -> None:
    guests = [Guest(str(n), memory=5 + 3 * n, here=False) for n in range(6)]
    budget = MemoryBudget(limit)
    for number, busy in steps:
        guest = guests[number]
        was_busy = [g for g in guests if g.here and g.busy]
        try:
            if not guest.here:
                budget.make_room(guest, 0)
                guest.here = True
        except OverloadedError:
            assert guest.memory > limit or any(g.busy for g in guests)
        guest.busy = busy and guest.here
        budget.used(guest)
        assert budget.taken == sum(g.memory for g in guests if g.here) <= limit
        assert all(g.here for g in was_busy)


def test_a_model_that_left_for_another_comes_back_and_both_answer(tiers: dict[str, Tier]) -> None:
    budget = MemoryBudget(15)
    made: list[FakeModel] = []

    def start(_: Tier) -> FakeModel:
        made.append(FakeModel())
        return made[-1]

    one, two = (SupervisedModel(tiers[style], start, budget=budget, memory=10) for style in ("chat", "few-shot"))
    ask = (short_prompt("Who?"), Sampling(), 5.0)
    for model in (one, two, two, one):
        assert model.generate(*ask).text == "unknown"
    assert [m.alive for m in made] == [False, False, True]
    assert (one.state.state, two.state.state) == ("ready", "cold")
    assert (one.state.evicted, two.state.evicted, budget.evictions) == (1, 1, 2)
    one.close()
    assert budget.taken == 0
