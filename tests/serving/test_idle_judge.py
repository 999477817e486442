"""The judge of a gateway: asked while nobody else asks, outranked by what people say, and not believed uncalibrated."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest

from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.judge.labels import LabelSource
from ruvllm.inference.judge.records import Item, Judged
from ruvllm.memory.store import Memory
from ruvllm.router.store import BundleStore
from ruvllm.serving.background import Judges
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.test_background import JUDGE, FakeJudge, answered


class Settling(FakeAnswerer):
    """Settles what a database holds, as a real answerer does."""

    def __init__(self, interactions: Interactions, memory: Memory) -> None:
        super().__init__()
        self._interactions, self._memory = interactions, memory

    def settle_outbox(self, limit: int = 100) -> int:
        return self._interactions.settle(self._memory, limit)


@pytest.fixture
def interactions(database: Database) -> Interactions:
    return Interactions(database)


def gateway(database: Database, settings: Settings, interactions: Interactions, judge: Judges | None) -> GatewayService:
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    opened = None if judge is None else lambda of: judge
    return GatewayService(
        Settling(interactions, memory), database, BundleStore(settings.router_dir), settings, judge=opened
    )


def quality(database: Database, request_id: str) -> tuple[float | None, str | None]:
    with database.transaction() as connection:
        found = connection.execute(
            "SELECT quality, quality_source FROM serving.interactions WHERE request_id = %s", (request_id,)
        ).fetchone()
    assert found is not None
    return found[0], found[1]


def test_an_answer_of_which_nobody_said_anything_gets_a_quality_and_feedback_outranks_it(
    database: Database, settings: Settings, interactions: Interactions
) -> None:
    answered(interactions, "r1", answer="Lima")
    answered(interactions, "r2", answer="Bogota")
    service = gateway(database, settings, interactions, FakeJudge())
    service.judge()
    service.settle()
    assert (quality(database, "r1"), quality(database, "r2")) == ((1.0, "judge"), (0.0, "judge"))
    assert b'ruvllm_judged_total{outcome="scored"} 2.0' in service.metrics.render()
    interactions.feedback("r1", 1, None, None, "ana")
    service.settle()
    service.judge()
    service.settle()
    assert quality(database, "r1") == (0.0, "feedback")


def test_the_gateways_own_thread_judges(database: Database, settings: Settings, interactions: Interactions) -> None:
    """Begun with the gateway, and only where it is asked for."""
    answered(interactions, "r1", answer="Lima")
    asked = threading.Event()

    class Telling(FakeJudge):
        def score(self, items: Sequence[Item]) -> list[Judged]:
            asked.set()
            return super().score(items)

    service = gateway(database, settings, interactions, Telling())
    service.start()
    try:
        assert asked.wait(30)
    finally:
        service.stop()
    without = gateway(database, settings, interactions, None)
    without.start()
    try:
        assert "judge" not in [thread.name for thread in without._threads]
    finally:
        without.stop()


@pytest.fixture
def busy(
    database: Database, settings: Settings, interactions: Interactions
) -> Iterator[tuple[GatewayService, FakeJudge]]:
    judge = FakeJudge()
    service = gateway(database, settings, interactions, judge)
    ticket = service.asking.enter(service.door.caller(None), 1, 60.0)
    yield service, judge
    ticket.leave()


def test_while_somebody_asks_no_answer_is_judged(
    busy: tuple[GatewayService, FakeJudge], interactions: Interactions
) -> None:
    service, judge = busy
    answered(interactions, "r1", answer="Lima")
    service.judge()
    assert judge.seen == []


def test_who_begins_to_ask_waits_for_one_judgement_at_most(
    database: Database, settings: Settings, interactions: Interactions
) -> None:
    for n in range(5):
        answered(interactions, f"r{n}", answer="Lima")

    class Interrupted(FakeJudge):
        def score(self, items: Sequence[Item]) -> list[Judged]:
            service.asking.enter(service.door.caller(None), 1, 60.0)
            return super().score(items)

    judge = Interrupted()
    service = gateway(database, settings, interactions, judge)
    service.judge()
    assert len(judge.seen) == 1


def test_a_judge_that_its_calibration_refuses_is_not_asked_and_that_is_said(
    database: Database, settings: Settings, interactions: Interactions, caplog: pytest.LogCaptureFixture
) -> None:
    answered(interactions, "r1", answer="Lima")
    judge = FakeJudge(LabelSource(JUDGE, "kappa 0.1, want 0.6", None))
    service = gateway(database, settings, interactions, judge)
    for _ in range(3):
        service.judge()
    assert judge.seen == []
    assert quality(database, "r1") == (None, None)
    assert [text for text in service.state().degraded if text.startswith("judge: ")] == [
        "judge: not asked: tenant default: kappa 0.1, want 0.6"
    ]
    assert len([record for record in caplog.records if "kappa" in record.getMessage()]) == 1  # not every time


def test_an_answer_that_came_from_memory_is_not_judged(
    database: Database, settings: Settings, interactions: Interactions
) -> None:
    answered(interactions, "r1", answer="Lima", decided_by="cache", tier="cache")
    judge = FakeJudge()
    gateway(database, settings, interactions, judge).judge()
    assert judge.seen == []
