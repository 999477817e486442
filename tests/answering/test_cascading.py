"""An answer that is not sure of its words is asked of the next tier, where a setting says so, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ruvllm.answering.answer import Answerer, Ask, Perception
from ruvllm.answering.asking import Answer
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings

ASKED = 12  # of a cold start, which draws the tier by lot
Make = Callable[..., Answerer]


@pytest.fixture
def models() -> list[FakeModel]:
    """The small one is not sure, the large one is."""
    return [FakeModel(answer=lambda _: "small answer", sure=0.3), FakeModel(answer=lambda _: "large one", sure=0.9)]


@pytest.fixture
def make(settings: Settings, database: Database, models: list[FakeModel]) -> Make:
    def made(floor: float) -> Answerer:
        chosen = replace(settings, cascade_floor=floor)
        embedder = EmbeddingAdapter(HashingEncoder())
        ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
        by_tier = dict(zip(ladder.names, models, strict=True))
        pool = ModelPool(chosen, ladder, start=lambda tier: by_tier[tier.name])
        perception = Perception(chosen, embedder, Memory(database, embedder, chosen))
        return Answerer(chosen, perception, pool, Interactions(database), seed=1)

    return made


def answers(answerer: Answerer, **more: object) -> list[Answer]:
    return [answerer.answer(Ask(f"Question {n}?", **more)) for n in range(ASKED)]  # type: ignore[arg-type]


def test_what_the_small_tier_is_not_sure_of_the_next_one_answers(make: Make, database: Database) -> None:
    answerer = make(0.5)
    small, large = answerer.ladder.names
    given = answers(answerer)
    assert {each.text for each in given} == {"large one"}
    again = [each for each in given if each.decision.decided_by == "cascade"]
    first = [each for each in given if each.decision.decided_by != "cascade"]
    assert again, "the small tier was never decided on"
    assert first, "the large tier was never decided on"
    assert {each.degraded for each in again} == {(f"cascade:{small}",)}
    assert {each.degraded for each in first} == {()}
    assert all("cascade" in each.stage_ms for each in again)
    assert min(each.cost for each in again) > max(each.cost for each in first)  # both answers are paid for
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT tier, decided_by, degraded FROM serving.interactions WHERE decided_by = 'cascade'"
        ).fetchall()
    assert rows == [(large, "cascade", [f"cascade:{small}"])] * len(again)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_off_or_sure_enough_the_first_answer_stands(make: Make, floor: float) -> None:
    given = answers(make(floor))
    assert {each.text for each in given} == {"small answer", "large one"}
    assert {each.decision.decided_by for each in given} == {"cold-start"}


def test_a_forced_tier_is_never_left(make: Make) -> None:
    answerer = make(1.0)
    given = answers(answerer, forced_tier=answerer.ladder.names[0])
    assert {each.text for each in given} == {"small answer"}


def test_where_the_next_tier_fails_the_first_answer_stands(make: Make, models: list[FakeModel]) -> None:
    answerer = make(0.5)
    models[1].deaths = 1000
    given = answers(answerer)
    assert {each.text for each in given} == {"small answer"}
    assert all(not mark.startswith("cascade") for each in given for mark in each.degraded)
    assert {each.tier for each in given} == {answerer.ladder.names[0]}


def test_a_stream_is_not_asked_again(make: Make) -> None:
    answerer = make(1.0)
    texts = set()
    for n in range(ASKED):
        with answerer.stream(Ask(f"Question {n}?")) as stream:
            texts.add("".join(stream))
    assert texts == {"small answer", "large one"}
