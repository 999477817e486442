"""Questions without gold: labelled by an accepted judge, else left out, counted and explained. Gold stays gold's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ruvllm.answering.answer import Perception
from ruvllm.corpus.records import Question
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.judge.calibration import Curve
from ruvllm.inference.judge.judge import judge_version
from ruvllm.inference.judge.prompt import template_hash
from ruvllm.inference.judge.store import Calibration, JudgeStore, Named
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue
from ruvllm.inference.types import ROUTED_BINS, Choice, Prompt
from ruvllm.learning import cycle as cycles
from ruvllm.learning.oracle import NO_LABEL, NO_SCORE, Oracle
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings

SHA = "0" * 64
LADDER = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
BIG = LADDER.tiers[-1]


class Judging(FakeModel):
    """Says Accra; as judge it gives 4 to that and 2 to anything else, or nothing where `mass` is 0."""

    mass = 1.0

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        said = ["".join(segment.text for segment in prompt.question if not segment.trusted) for prompt in prompts]
        scores = [4 if "Accra" in text.partition("?")[2] else 2 for text in said]
        return [Choice(tuple(self.mass * (level == score) for level in range(1, 6)), 1, 0, 0.0) for score in scores]


def question(key: str, gold: tuple[str, ...]) -> Question:
    return Question(
        key=key, text=f"What is the capital of Ghana, {key}?", gold=gold, kind="capital", domain="geography",
        split="train", group="gh", gold_passage="gh/1", fact="gh/capital",
    )  # fmt: skip


KNOWN, UNKNOWN = question("with gold", ("Lome",)), question("without gold", ())


@pytest.fixture
def oracle(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    monkeypatch.setattr("ruvllm.learning.oracle.model_hashes", lambda *_: dict.fromkeys(LADDER.names, SHA))
    embedder = EmbeddingAdapter(HashingEncoder())
    memory = Memory(database, embedder, settings)
    memory.add([NewNode("Ghana - Capital: Accra.", source="test")])

    def start(tier: Tier) -> Any:
        return Judging(answer=lambda prompt: "Accra" if tier == BIG else "Kumasi")

    return Oracle(
        settings, database, Perception(settings, embedder, memory), LADDER,
        open_pool=lambda: ModelPool(settings, LADDER, start=start),
    )  # fmt: skip


def accept(database: Database, *refusals: str) -> int:
    judge = Named(judge_version(SHA, BIG.style), BIG.name, SHA, template_hash(BIG.style))
    curve = Curve((1.0, 5.0), (0.1, 0.9))
    return JudgeStore(database).add(Calibration(judge, "a" * 64, 100, curve, (), refusals))


def rows(database: Database) -> list[tuple[Any, ...]]:
    with database.transaction() as connection:
        return connection.execute(
            "SELECT DISTINCT q.question, r.tier, r.quality, r.judge_calibration FROM learning.oracle_queries q"
            " LEFT JOIN learning.oracle_runs r ON r.query = q.key ORDER BY q.question, r.quality"
        ).fetchall()


def test_without_an_accepted_judge_a_question_without_gold_is_skipped_and_counted(
    oracle: Oracle, database: Database
) -> None:
    cycle = cycles.open_cycle(database)
    assert oracle.enrol([KNOWN, UNKNOWN], cycle.id, None) == 1
    report = oracle.collect(cycle.id, 60)
    assert (report.queries, report.remaining, report.skipped) == (1, 0, {NO_LABEL: 1})
    assert report.labels.startswith("labels come from gold answers only: ")
    assert {row[0] for row in rows(database)} == {KNOWN.text}
    assert oracle.collect(cycle.id, 60).skipped == {}  # each is told once


def test_an_accepted_judge_labels_what_has_no_gold_and_nothing_else(oracle: Oracle, database: Database) -> None:
    calibration = accept(database)
    cycle = cycles.open_cycle(database)
    assert oracle.enrol([KNOWN, UNKNOWN], cycle.id, None) == 2
    report = oracle.collect(cycle.id, 60)
    assert (report.queries, report.runs, report.skipped) == (2, 2 * 2 * len(ROUTED_BINS), {})
    assert report.labels.startswith("without gold, judge gemma3-270m ")
    small, big = LADDER.names
    found = {(text, tier): (quality, judged) for text, tier, quality, judged in rows(database)}
    assert found[(UNKNOWN.text, small)] == (pytest.approx(0.3), calibration)  # a 2 on the curve
    assert found[(UNKNOWN.text, big)] == (pytest.approx(0.7), calibration)
    # gold says Lome: both are wrong, whatever the judge would say
    assert found[(KNOWN.text, small)] == found[(KNOWN.text, big)] == (0.0, None)


def test_a_judge_that_was_refused_since_labels_no_more_and_its_labels_are_gone(
    oracle: Oracle, database: Database
) -> None:
    accept(database)
    cycle = cycles.open_cycle(database)
    oracle.enrol([KNOWN, UNKNOWN], cycle.id, None)
    oracle.collect(cycle.id, 60)
    accept(database, "truthful: Cohen's kappa 0.01 [-0.10, 0.12] is not above chance")
    later = Oracle(oracle.settings, database, oracle.perception, LADDER, open_pool=oracle._open_pool)
    report = later.collect(cycle.id, 60)
    assert (report.runs, report.skipped) == (0, {NO_LABEL: 1})
    assert "is not above chance" in report.labels
    assert {(row[0], row[1] is None) for row in rows(database)} == {(KNOWN.text, False), (UNKNOWN.text, True)}


def test_a_question_that_the_judge_cannot_score_is_taken_out_and_counted(
    oracle: Oracle, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(database)
    monkeypatch.setattr(Judging, "mass", 0.0)
    cycle = cycles.open_cycle(database)
    oracle.enrol([KNOWN, replace(UNKNOWN, key="none")], cycle.id, None)
    report = oracle.collect(cycle.id, 60)
    assert report.skipped == {NO_SCORE: 1}
    assert {row[0] for row in rows(database)} == {KNOWN.text}
    assert oracle.collect(cycle.id, 60).remaining == 0
