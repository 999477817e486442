"""Answers from memory, from question to stored interaction: marked, unlearnt from, never where a request forbids it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from ruvllm.answering.answer import Answer, Answerer, Ask, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.answering.recall import CACHE
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import ModelFileError
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue
from ruvllm.memory.store import Memory
from ruvllm.serving.cache import Calibration, FollowedCache, keep_calibration
from ruvllm.serving.replies import answer_headers, decision_of
from ruvllm.settings import Settings

QUESTION = "What is the population of Ghana?"
CLOSE = "What is the population of Ghana now?"


def no_model(tier: Tier) -> Any:
    raise ModelFileError(f"{tier.name}: a model was asked")


@dataclass
class Clock:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Place:
    """An answerer whose memory holds one well-rated answer and whose models cannot speak."""

    answerer: Answerer
    database: Database
    clock: Clock = field(default_factory=Clock)

    def settle(self) -> None:
        self.clock.at += 60
        self.answerer.settle_outbox()

    def one(self, statement: str) -> tuple[Any, ...]:
        with self.database.transaction() as connection:
            row = connection.execute(statement).fetchone()  # type: ignore[arg-type]  # a test's own text
        assert row is not None
        return tuple(row)


def place_of(settings: Settings, database: Database, threshold: float | None) -> Place:
    embedder, clock = EmbeddingAdapter(HashingEncoder()), Clock()
    memory = Memory(database, embedder, settings)
    memory.write_back(QUESTION, "33 million", 1.0, "gold")
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(settings, ladder, start=no_model)
    keep_calibration(database, Calibration(embedder.id, "0" * 64, 0.02, 0.95, threshold, 400, 300, 1, 0.015))
    recall = FollowedCache(database, embedder.id, clock)
    answerer = Answerer(
        settings, Perception(settings, embedder, memory), pool, Interactions(database), seed=1, recall=recall
    )
    return Place(answerer, database, clock)


@pytest.fixture
def place(settings: Settings, database: Database) -> Place:
    place = place_of(settings, database, 0.5)
    place.settle()
    return place


def test_a_close_question_gets_the_answer_that_memory_holds_and_no_model_is_asked(place: Place) -> None:
    answer = place.answerer.answer(Ask(CLOSE))
    assert (answer.text, answer.tier, answer.decision.decided_by) == ("33 million", CACHE, CACHE)
    assert (answer.cost, answer.generation.completion_tokens, len(answer.used)) == (0.0, 0, 1)
    assert place.one("SELECT tier, decided_by, answer, used FROM serving.interactions") == (
        CACHE, CACHE, "33 million", list(answer.used),
    )  # fmt: skip


def test_the_reply_says_that_it_came_from_memory(place: Place) -> None:
    answer = place.answerer.answer(Ask(CLOSE))
    headers = answer_headers(answer, 0.0, 0.0)
    assert (headers["x-ruvllm-cache"], headers["x-ruvllm-decision"], headers["x-ruvllm-model"]) == (
        "answer", CACHE, CACHE,
    )  # fmt: skip
    told = decision_of(answer, "e")
    assert (told["decided_by"], told["used"]) == (CACHE, list(answer.used))
    assert "memory" in told["reason"]


def test_it_is_streamed_as_any_other(place: Place) -> None:
    with place.answerer.stream(Ask(CLOSE)) as stream:
        assert (stream.tier, stream.decision.decided_by) == (CACHE, CACHE)
        assert list(stream) == ["33 million"]
        assert stream.answer.tier == CACHE
    assert place.one("SELECT count(*) FROM serving.interactions") == (1,)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(CLOSE, forced_tier="smollm2-135m"),
        Ask(CLOSE, forced_bin=256),
        Ask(CLOSE, instructions="Answer in French."),
        Ask(CLOSE, stop=("m",)),
        Ask(CLOSE, temperature=0.9),
        Ask(CLOSE, top_p=0.5),
        Ask(CLOSE, seed=7),
        Ask(CLOSE, max_tokens=1),
        Ask(CLOSE, history=(("Hello?", "Hello."),)),
        Ask("What is the population of Gabon?"),
    ],
    ids=["tier", "bin", "instructions", "stop", "temperature", "top_p", "seed", "length", "follow-up", "another name"],
)
def test_what_a_tier_has_to_answer(place: Place, ask: Ask) -> None:
    with pytest.raises(ModelFileError, match="a model was asked"):
        place.answerer.answer(ask)


@pytest.mark.parametrize("threshold", [None, 1.0])
def test_no_threshold_or_one_that_is_not_reached_is_no_hit(
    settings: Settings, database: Database, threshold: float | None
) -> None:
    place = place_of(settings, database, threshold)
    place.settle()
    with pytest.raises(ModelFileError):
        place.answerer.answer(Ask(CLOSE))


def test_before_the_calibration_was_read_nothing_is_answered_from_memory(
    settings: Settings, database: Database
) -> None:
    place = place_of(settings, database, 0.5)
    with pytest.raises(ModelFileError):
        place.answerer.answer(Ask(CLOSE))


def rated(place: Place, rating: int) -> Answer:
    answer = place.answerer.answer(Ask(CLOSE))
    place.settle()
    place.answerer.feedback(answer.request_id, rating, None, None)
    place.settle()
    return answer


def test_an_answer_that_is_called_wrong_is_not_given_again(place: Place) -> None:
    rated(place, 1)
    place.settle()
    with pytest.raises(ModelFileError):
        place.answerer.answer(Ask(CLOSE))


def test_nothing_is_learnt_of_tiers_and_nothing_is_written_twice(place: Place) -> None:
    nodes = place.answerer.memory.counts()["nodes"]
    rated(place, 5)
    assert place.one("SELECT quality, quality_source FROM serving.interactions") == (1.0, "feedback")
    assert place.one("SELECT count(*) FROM learning.experience") == (0,)
    assert place.answerer.memory.counts()["nodes"] == nodes
    assert place.answerer.answer(Ask(CLOSE)).decision.decided_by == CACHE
