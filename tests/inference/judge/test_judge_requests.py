"""Answered requests without gold: an accepted judge gives them a quality, a refused one touches none."""

from __future__ import annotations

from typing import Any

import pytest
from judge_models import SHA, RuleModel, guesses, items, knows

from ruvllm.database.pool import Database
from ruvllm.inference.judge.judge import TOO_LONG
from ruvllm.inference.judge.judging import Judging
from ruvllm.inference.judge.requests import NO_JUDGE, NOTHING_SAID, label_requests
from ruvllm.inference.tiers import load_catalogue

DATA = {"gold": items(60)}


def judging(database: Database, model: RuleModel) -> Judging:
    return Judging(database, model, load_catalogue()["packaged"][0], SHA, 1.0)


def request(database: Database, name: str, answer: str, **columns: Any) -> None:
    row = {"gold": None, "quality": None, "source": None, "history": "[]", **columns}
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO serving.interactions (request_id, tenant, question, history, answer, gold, quality,"
            " quality_source, tier, context_bin, temperature, top_p, decided_by, propensity, router_version, ladder,"
            " layout_hash, features, prompt_tokens, completion_tokens, cost, stage_ms, total_ms) VALUES (%(name)s,"
            " 'default', %(name)s, %(history)s, %(answer)s, %(gold)s, %(quality)s, %(source)s, 't', 256, 0, 1,"
            " 'forced', 1, '', '', '', '{}', 1, 1, 1, '{}', 1)",
            {"name": name, "answer": answer, **row},
        )


def qualities(database: Database) -> dict[str, tuple[float | None, str | None]]:
    with database.transaction() as connection:
        rows = connection.execute("SELECT request_id, quality, quality_source FROM serving.interactions").fetchall()
    return {name: (quality, source) for name, quality, source in rows}


@pytest.fixture
def asked(database: Database) -> Database:
    request(database, "good", "right")
    request(database, "bad", "wrong")
    request(database, "empty", "")
    request(database, "gold waits for the outbox", "right", gold=["wrong"])
    request(database, "scored", "right", quality=0.25, source="feedback")
    request(database, "queued", "right")
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key)"
            " SELECT tenant, 'score', id, 'k' FROM serving.interactions WHERE request_id = 'queued'"
        )
    return database


def test_an_accepted_judge_labels_what_waits_and_nothing_else(asked: Database) -> None:
    judge = judging(asked, RuleModel(knows))
    judge.calibrate(DATA, resamples=200)
    report = label_requests(judge)
    assert (report.labelled, report.skipped) == (2, {NOTHING_SAID: 1})
    found = qualities(asked)
    good, bad = found.pop("good"), found.pop("bad")
    assert (good[1], bad[1]) == ("judge", "judge")
    assert (good[0] or 0) > (bad[0] or 0) + 0.2
    assert found.pop("scored") == (0.25, "feedback")
    assert set(found.values()) == {(None, None)}
    assert label_requests(judge).labelled == 0


def test_a_refused_judge_labels_nothing_and_is_not_asked(asked: Database) -> None:
    model = RuleModel(guesses)
    judge = judging(asked, model)
    judge.calibrate(DATA, resamples=200)
    before, asked_before = qualities(asked), len(model.asked)
    report = label_requests(judge)
    assert (report.labelled, report.skipped) == (0, {NO_JUDGE: 3})
    assert report.reason.startswith("labels come from gold answers only")
    assert qualities(asked) == before
    assert len(model.asked) == asked_before


def test_a_follow_up_is_judged_behind_its_sessions_question(database: Database) -> None:
    request(database, "and how many?", "right", history='[["Which harbour?", "Velm"]]')
    request(database, "long", "right " * 400)
    model = RuleModel(knows, words=350)
    judge = judging(database, model)
    judge.calibrate(DATA, resamples=200)
    report = label_requests(judge)
    assert (report.labelled, report.skipped) == (1, {TOO_LONG: 1})
    assert "Which harbour? and how many?" in [segment.text for segment in model.asked[-1].question]
