"""Judging after the answer: leased, restart-safe, once; what is known of an answer outranks what a judge says."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.inference.judge.labels import LabelSource
from ruvllm.inference.judge.records import Item, Judged, Verdict
from ruvllm.learning.experience import keep_experience
from ruvllm.serving.background import ATTEMPTS, JudgeReport, judge_some
from tests.serving.test_spool import row

JUDGE = "0" * 16


class Accepted(LabelSource):
    """Believed: the score from 1 to 5 is the quality from 0 to 1."""

    def __init__(self) -> None:
        super().__init__(JUDGE, "of a test", None)

    @property
    def accepted(self) -> bool:
        return True

    def quality(self, verdict: Verdict) -> float | None:
        return None if verdict.score is None else (verdict.score - 1) / 4


class FakeJudge:
    """Gives every answer that holds "Lima" a five, and no score to one that holds "?"."""

    def __init__(self, source: LabelSource | None = None) -> None:
        self.seen: list[Item] = []
        self._source = source or Accepted()

    def score(self, items: Sequence[Item]) -> list[Judged]:
        self.seen += items
        return [Judged(item, self._one(item)) for item in items]

    def source(self) -> LabelSource:
        return self._source

    def _one(self, item: Item) -> Verdict:
        if "?" in item.answer:
            return Verdict(None, "too long")
        return Verdict((0, 0, 0, 0, 1.0) if "Lima" in item.answer else (1.0, 0, 0, 0, 0))


@pytest.fixture
def interactions(database: Database) -> Interactions:
    return Interactions(database)


def answered(interactions: Interactions, request_id: str, **columns: object) -> None:
    """An answer that the outbox settled without a score."""
    interactions.record(row(request_id, **columns))
    with interactions.database.transaction() as connection:
        connection.execute("UPDATE serving.outbox SET done_at = now(), outcome = 'unscored' WHERE done_at IS NULL")


def open_keys(database: Database) -> list[str]:
    with database.transaction() as connection:
        rows = connection.execute("SELECT idempotency_key FROM serving.outbox WHERE done_at IS NULL ORDER BY id")
        return [each[0] for each in rows]


def test_a_verdict_and_its_outbox_row_come_together_and_once(database: Database, interactions: Interactions) -> None:
    answered(interactions, "good", question="And Chile's?", history='[["Capital of Peru?", "Lima"]]', answer="Lima")
    answered(interactions, "bad", answer="Bogota")
    answered(interactions, "odd", answer="who knows?")
    judge = FakeJudge()
    assert judge_some(database, judge, 10) == JudgeReport(scored=2, unscored=1)
    assert judge.seen[0].question == "Capital of Peru? And Chile's?"
    assert open_keys(database) == ["default:judge:good", "default:judge:bad"]
    assert judge_some(database, judge, 10) == JudgeReport()
    with database.transaction() as connection:
        found = connection.execute("SELECT quality, reason FROM serving.judgements ORDER BY interaction").fetchall()
    assert found == [(1.0, ""), (0.0, ""), (None, "too long")]


def test_what_is_known_is_not_judged(database: Database, interactions: Interactions) -> None:
    answered(interactions, "gold", gold=["Lima"])
    answered(interactions, "told")
    interactions.feedback("told", 5, None, None, "")
    interactions.record(row("unsettled"))
    answered_before = FakeJudge()
    assert judge_some(database, answered_before, 10).taken == 0
    assert answered_before.seen == []


def test_a_judge_that_is_not_believed_is_not_asked(database: Database, interactions: Interactions) -> None:
    answered(interactions, "r")
    judge = FakeJudge(LabelSource(JUDGE, "no calibration", None))
    assert judge_some(database, judge, 10) == JudgeReport(refused="no calibration")
    assert judge.seen == []


def test_who_dies_with_a_lease_delays_the_answer_and_does_not_lose_it(
    database: Database, interactions: Interactions
) -> None:
    answered(interactions, "r")

    class Dying(FakeJudge):
        def score(self, items: Sequence[Item]) -> list[Judged]:
            raise KeyboardInterrupt  # as a kill: nothing after it runs

    with pytest.raises(KeyboardInterrupt):
        judge_some(database, Dying(), 10)
    assert judge_some(database, FakeJudge(), 10).taken == 0  # it may still be at work
    _run_out(database)
    assert judge_some(database, FakeJudge(), 10).scored == 1


def test_who_comes_back_after_the_lease_ran_out_changes_nothing(database: Database, interactions: Interactions) -> None:
    answered(interactions, "r")

    class Slow(FakeJudge):
        def score(self, items: Sequence[Item]) -> list[Judged]:
            _run_out(database)
            assert judge_some(database, FakeJudge(), 10).scored == 1
            return [Judged(item, Verdict((1.0, 0, 0, 0, 0))) for item in items]

    assert judge_some(database, Slow(), 10) == JudgeReport(lost=1)
    with database.transaction() as connection:
        assert connection.execute("SELECT quality FROM serving.judgements").fetchall() == [(1.0,)]
    assert open_keys(database) == ["default:judge:r"]


def test_an_answer_that_kills_its_judge_is_left_alone_in_the_end(
    database: Database, interactions: Interactions
) -> None:
    answered(interactions, "deadly")

    class Dying(FakeJudge):
        def score(self, items: Sequence[Item]) -> list[Judged]:
            self.seen += items
            raise KeyboardInterrupt

    judge = Dying()
    for _ in range(ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            judge_some(database, judge, 10)
        _run_out(database)
    assert judge_some(database, judge, 10).taken == 0
    assert len(judge.seen) == ATTEMPTS


def test_two_at_once_share_the_work(database: Database, interactions: Interactions) -> None:
    for n in range(20):
        answered(interactions, f"r{n}")
    judges = [FakeJudge(), FakeJudge()]

    def work(judge: FakeJudge) -> int:
        done = 0
        while (report := judge_some(database, judge, 3)).taken:
            done += report.scored
        return done

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(work, judges)) == 20
    assert len(open_keys(database)) == 20


def _run_out(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE serving.judgements SET leased_until = now() - interval '1 s' WHERE done_at IS NULL")


# --- the reservoir ----------------------------------------------------------------------------------------------------


def test_the_reservoir_is_bounded_uniform_and_counts_nobody_twice(
    database: Database, interactions: Interactions
) -> None:
    """Of 600 offered, 60 are kept; of each tenth as many as chance says (9 degrees of freedom, chi-squared < 33.7)."""
    for n in range(600):
        interactions.record(row(f"r{n}"))
    with database.transaction() as connection:
        ids = [each[0] for each in connection.execute("SELECT id FROM serving.interactions ORDER BY id")]
        for interaction in (*ids, *ids[:50]):
            keep_experience(connection, interaction, 60)
        kept = [each[0] for each in connection.execute("SELECT interaction FROM learning.experience")]
        alone = connection.execute("SELECT count(*) FROM learning.experience WHERE tenant <> 'default'").fetchone()
    assert len(kept) == len(set(kept)) == 60
    assert alone == (0,)
    tenths = np.bincount([ids.index(each) // 60 for each in kept], minlength=10)
    assert float(((tenths - 6) ** 2 / 6).sum()) < 33.7  # p = 0.0001
