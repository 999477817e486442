"""Whether a judge may label, from stored scores to the decision: resumable, per tenant, refused at chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest
from judge_models import SHA, Belief, RuleModel, guesses, items, knows

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError, WorkerDiedError
from ruvllm.inference.judge.judge import Judge
from ruvllm.inference.judge.judging import Judging
from ruvllm.inference.judge.labels import GOLD_ONLY, label_answers, label_source, labels_said
from ruvllm.inference.judge.records import Item, Verdict
from ruvllm.inference.judge.scoring import BATCH
from ruvllm.inference.judge.store import JudgeStore
from ruvllm.inference.tiers import Tier, load_catalogue

SETS = {"first": items(60, "a"), "second": items(60, "b")}
Make = Callable[..., Judging]


@pytest.fixture
def tier() -> Tier:
    return load_catalogue()["packaged"][0]


@pytest.fixture
def judging(database: Database, tier: Tier) -> Make:
    def make(
        belief: Belief = knows, of: Database = database, sha256: str = SHA, model: RuleModel | None = None
    ) -> Judging:
        return Judging(of, model or RuleModel(belief), tier, sha256, deadline_s=1.0)

    return make


@pytest.fixture
def accepted(judging: Make) -> Judging:
    judge = judging()
    judge.calibrate(SETS, resamples=200)
    return judge


def test_a_stopped_scoring_goes_on_where_it_was(judging: Make) -> None:
    every, dying = items(10), RuleModel(knows, lives=3 * BATCH + 1)
    with pytest.raises(WorkerDiedError):
        judging(model=dying).score(every)
    steps: list[tuple[int, int]] = []
    again = RuleModel(knows)
    judged = judging(model=again).score(every, lambda done, total, note="": steps.append((done, total)))
    assert len(again.asked) == len(every) - 3 * BATCH  # what was not stored
    assert (steps[0], steps[-1]) == ((3 * BATCH, 30), (30, 30))
    assert [each.item for each in judged] == every
    assert judged == judging(model=RuleModel(knows, lives=0)).score(every)  # all stored: the model is not asked at all


def test_the_same_answer_is_asked_once_and_another_file_asks_anew(judging: Make) -> None:
    model = RuleModel(knows)
    item = items(1)[0]
    judging(model=model).score([item, replace(item, gold=0.5, group="other"), item])
    assert len(model.asked) == 1
    judging(model=model, sha256="cd" * 32).score([item])
    assert len(model.asked) == 2


def test_a_judge_that_knows_is_accepted_and_its_labels_are_near_gold(accepted: Judging) -> None:
    source = accepted.source()
    assert source.accepted
    assert accepted.named.version in source.reason
    unseen = items(60, "unseen")
    errors = [abs((source.quality(j.verdict) or 0) - (j.item.gold or 0)) for j in accepted.score(unseen)]
    assert sum(errors) / len(errors) < 0.2  # the mean of gold alone would be 0.36 off


def test_a_judge_that_guesses_is_refused_and_the_report_says_gold_only(judging: Make) -> None:
    judge = judging(guesses)
    judge.calibrate(SETS, resamples=200)
    source = judge.source()
    assert not source.accepted
    assert source.reason.startswith(f"{GOLD_ONLY}: judge smollm2-135m ")
    assert "is not above chance" in source.reason
    assert source.quality(Verdict((0.0, 0.0, 0.0, 0.0, 1.0))) is None
    said = labels_said(source, judge.score([*items(1), Item("no gold?", "right")]))
    assert said.startswith("3 labels from gold, 0 from a judge, 1 skipped; labels come from gold answers only")


def test_one_data_set_that_it_fails_on_is_enough(judging: Make) -> None:
    judge = judging(lambda question, answer: (knows if question.startswith("a") else guesses)(question, answer))
    made = judge.calibrate(SETS, resamples=200)
    assert {why.split(":")[0] for why in made.refusals} == {"second"}
    assert not judge.source().accepted


def test_nothing_is_known_of_a_judge_that_was_not_calibrated(accepted: Judging, judging: Make) -> None:
    other = judging(sha256="cd" * 32).source()
    assert not other.accepted
    assert "ruvllm judge calibrate" in other.reason


def test_the_newest_calibration_counts(accepted: Judging, judging: Make) -> None:
    unclear = {"relabelled": [replace(item, gold=float(hash_bit(item))) for item in items(60, "c")]}
    accepted.calibrate(unclear, resamples=200)
    assert not accepted.source().accepted
    accepted.calibrate(SETS, resamples=200)
    assert accepted.source().accepted
    assert len(JudgeStore(accepted.database).calibrations()) == 3


def hash_bit(item: Item) -> int:
    return int(item.key, 16) % 2


def test_a_calibration_says_what_it_was_made_of(accepted: Judging, tier: Tier) -> None:
    stored = JudgeStore(accepted.database).newest(accepted.named.version)
    assert stored is not None
    assert (stored.judge.tier, stored.judge.model_sha256, stored.n) == (tier.name, SHA, 360)
    assert (len(stored.data_digest), stored.calibrated_at is not None) == (64, True)
    assert [figures["name"] for figures in stored.agreement] == ["first", "second"]
    assert set(stored.agreement[0]["spearman"]) == {"value", "low", "high"}


def test_another_tenants_calibration_and_scores_are_not_mine(
    accepted: Judging, judging: Make, database_url: str
) -> None:
    theirs = Database(database_url, "other")
    try:
        assert not judging(of=theirs).source().accepted
        model = RuleModel(knows)
        judging(of=theirs, model=model).score(SETS["first"][:1])
        assert len(model.asked) == 1
    finally:
        theirs.close()


def test_no_data_and_no_gold_are_errors(judging: Make) -> None:
    with pytest.raises(LearningError, match="no data set"):
        judging().calibrate({})
    with pytest.raises(LearningError, match="no item of 0 with gold"):
        judging().calibrate({"x": [replace(item, gold=None) for item in items(20)]})


def test_answers_without_gold_get_the_judges_quality_and_its_number(accepted: Judging) -> None:
    judge, source = Judge(RuleModel(knows), "chat", SHA, 1.0), accepted.source()
    labels = label_answers(source, judge, "new?", ["right", "wrong", "  ", "right"], ["passage"])
    assert labels is not None
    assert labels[0].quality > labels[1].quality
    assert (labels[2].quality, labels[3]) == (0.0, labels[0])
    assert source.calibration is not None
    assert {label.calibration for label in labels} == {source.calibration.id}


def test_one_answer_that_cannot_be_scored_leaves_the_question_without_labels(accepted: Judging) -> None:
    judge = Judge(RuleModel(knows, mass=0.001), "chat", SHA, 1.0)
    assert label_answers(accepted.source(), judge, "new?", ["right"], []) is None


def test_a_refused_judge_is_not_even_asked(judging: Make, database: Database) -> None:
    model = RuleModel(knows)
    source = label_source(database, judging().named.version)
    assert label_answers(source, Judge(model, "chat", SHA, 1.0), "q", ["right"], []) is None
    assert model.asked == []


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("judge", "no hash"), ("item", "no hash"), ("probabilities", [0.5] * 4), ("probabilities", [2.0] + [0.0] * 4),
        ("probabilities", None),
    ],
)  # fmt: skip
def test_scores_that_would_rot_are_refused(database: Database, change: str, value: object) -> None:
    row = {"t": "default", "judge": "ab" * 8, "item": SHA, "probabilities": [0.2] * 5} | {change: value}
    with pytest.raises(psycopg.errors.CheckViolation), database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.judge_scores (tenant, judge, item, probabilities)"
            " VALUES (%(t)s, %(judge)s, %(item)s, %(probabilities)s)",
            row,
        )
