"""The answer cache: hits only what is close, good, fresh and of the same names; its threshold holds its promise."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import InputError, LearningError
from ruvllm.memory.records import Hit, Node
from ruvllm.memory.store import Memory
from ruvllm.serving.cache import AnswerCache, Calibration, keep_calibration, newest_calibration, open_cache
from ruvllm.serving.calibration import Known, Lookup, binomial_tail, calibrate, lookups, upper_limit
from ruvllm.settings import Settings

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ASKED = "How many people live in Ghana?"


def fact(question: str = "What is the population of Ghana?", **changes: object) -> Node:
    at = NOW - timedelta(days=1)
    metadata = {"type": "qa_pair", "question": question, "answer": "33 million", "at": at.isoformat()}
    node = Node(
        7, "uuid", "Fact", "", "corroborated", f"Q: {question}\nA: 33 million", "qa_pair", "", (), metadata, 0.95, 1
    )
    return replace(node, **changes)  # type: ignore[arg-type]


def hit(node: Node, similarity: float = 0.9) -> Hit:
    return Hit(node, similarity, np.zeros(4, dtype=np.float32))


@pytest.fixture
def cache() -> AnswerCache:
    return AnswerCache(0.85, clock=lambda: NOW)


def test_a_close_good_fresh_answer_is_given_again(cache: AnswerCache) -> None:
    found = cache.look(ASKED, [hit(fact())])
    assert found is not None
    assert (found.node, found.text, found.question, found.quality) == (
        7, "33 million", "What is the population of Ghana?", 0.95,
    )  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        hit(fact(), 0.84),
        hit(fact("What is the population of Gabon?"), 0.99),
        hit(fact(kind="Document"), 0.99),
        hit(fact(source="notes.md"), 0.99),
        hit(fact(confidence=0.89), 0.99),
        hit(fact(metadata={**fact().metadata, "at": "2026-09-01T00:00:00+00:00"}), 0.99),
        hit(fact(metadata={**fact().metadata, "at": "yesterday"}), 0.99),
        hit(fact(metadata={**fact().metadata, "answer": ""}), 0.99),
        hit(fact(metadata={}), 0.99),
    ],
    ids=["far", "another name", "no fact", "no answer of ours", "not good", "old", "no date", "empty", "bare"],
)
def test_what_is_answered_anew(cache: AnswerCache, other: Hit) -> None:
    assert cache.look(ASKED, [other]) is None
    assert cache.look(ASKED, [other, hit(fact())]) is not None or other.similarity < 0.9


def test_without_a_calibration_there_is_no_hit(database: Database) -> None:
    assert open_cache(database, "test-encoder", on=True).look(ASKED, [hit(fact(), 1.0)]) is None
    kept = Calibration("test-encoder", "0" * 64, 0.02, 0.95, 0.5, 400, 300, 1, 0.015)
    keep_calibration(database, kept)
    assert newest_calibration(database, "another") is None
    assert open_cache(database, "test-encoder", on=False).threshold is None
    assert open_cache(database, "test-encoder", on=True).threshold == 0.5


def test_a_hit_is_the_askers_own_or_corroborated(settings: Settings, empty_database_url: str) -> None:
    """Through a real memory: what one user's feedback wrote answers nobody else, in the tenant or beyond it."""
    from ruvllm.database import open_database
    from ruvllm.database.migrate import upgrade
    from ruvllm.serving.tenants import tenant_database

    embedder = EmbeddingAdapter(HashingEncoder())
    upgrade(empty_database_url, embedder.id, embedder.dimension)
    database = open_database(replace(settings, database_url=empty_database_url))
    try:
        memory = Memory(database, embedder, settings)
        memory.write_back("What is the population of Ghana?", "33 million", 1.0, "feedback", writer="ana")
        cache = AnswerCache(-1.0)  # whatever is found is close enough
        others = Memory(tenant_database(database, "other"), embedder, settings)

        def answer(of: Memory, reader: str) -> str | None:
            found = cache.look(ASKED, of.search_text(ASKED, 8, reader=reader))
            return found and found.text

        assert answer(memory, "ana") == "33 million"
        assert answer(memory, "ben") is None
        assert answer(others, "ana") is None
    finally:
        database.close()


# --- the threshold ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data(), st.floats(0.01, 0.99))
def test_the_tail_is_the_sum_of_the_terms(n: int, data: st.DataObject, p: float) -> None:
    k = data.draw(st.integers(0, n))
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_tail(k, n, p) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_the_upper_limit_is_that_of_the_tables() -> None:
    """The rule of three, exactly: none of n gives 1 - 0.05^(1/n). And 2 of 100: 6.16 %."""
    assert upper_limit(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-9)
    assert upper_limit(2, 100, 0.95) == pytest.approx(0.0616, abs=1e-4)
    assert upper_limit(5, 5, 0.95) == 1.0


def test_the_lowest_threshold_that_holds_is_taken() -> None:
    sound = [Lookup(0.9 + n / 10_000, True) for n in range(500)]
    poor = [Lookup(0.5 + n / 10_000, n % 2 == 0) for n in range(500)]
    made = calibrate([*poor, *sound], 1200, "e", "0" * 64, 0.05, 0.95)
    assert made.threshold is not None
    assert 0.5 < made.threshold <= 0.9
    assert made.bound <= 0.05
    assert calibrate(poor, 500, "e", "0" * 64, 0.05, 0.95).threshold is None


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """300 draws from a world whose false share at each threshold is known: missed in at most 5 % (with a margin)."""
    rng = np.random.default_rng(11)
    missed = 0
    for _ in range(300):
        similarity = rng.random(600)
        right = rng.random(600) < similarity  # a hit at s is false with probability 1 - s
        found = [Lookup(float(s), bool(r)) for s, r in zip(similarity, right, strict=True)]
        made = calibrate(found, 600, "e", "0" * 64, 0.2, 0.95)
        if made.threshold is not None:
            missed += (1 - made.threshold) / 2 > 0.2  # the mean of 1 - s over [threshold, 1]
    assert missed <= 0.05 * 300 + 10


def test_too_little_is_said_and_not_guessed() -> None:
    with pytest.raises(LearningError, match=r"want 149 or more for a target of 0\.02 at 95%"):
        calibrate([Lookup(0.9, True)] * 148, 148, "e", "0" * 64, 0.02, 0.95)
    with pytest.raises(InputError, match="target: got 0"):
        calibrate([Lookup(0.9, True)] * 148, 148, "e", "0" * 64, 0, 0.95)


def test_lookups_follow_the_caches_rule() -> None:
    embedder = EmbeddingAdapter(HashingEncoder())
    stored = [
        Known("What is the population of Ghana?", ("33 million",)),
        Known("What is the area of Ghana?", ("239 km",)),
    ]
    asked = [
        Known("What is the population of Ghana now?", ("33 million",)),
        Known("What is the coastline of Ghana?", ("539 km",)),
        Known("What is the population of Gabon?", ("2 million",)),
    ]
    found = lookups(embedder, stored, asked)
    assert [each.right for each in found] == [True, False]  # nothing is held of Gabon
    with pytest.raises(InputError):
        lookups(embedder, [], asked)
