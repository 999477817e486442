"""Score to quality: against a formula of its own, never on the rows it was fitted on, and honest about chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_models import SHA, RuleModel, guesses, inverts, items, knows, loves_length, never_moves

from ruvllm.errors import LearningError
from ruvllm.inference.judge.assessment import Agreement, agreement, change, to_levels
from ruvllm.inference.judge.calibration import cross_validated, data_digest, fit
from ruvllm.inference.judge.judge import Judge
from ruvllm.inference.judge.records import Item, Judged

ROWS = st.lists(st.tuples(st.integers(4, 20), st.integers(0, 4)), min_size=20, max_size=40)


def judged(model: RuleModel, of: list[Item]) -> list[Judged]:
    return [Judged(item, verdict) for item, verdict in zip(of, Judge(model, "chat", SHA, 1.0).score(of), strict=True)]


def minmax(scores: np.ndarray, gold: np.ndarray) -> list[float]:
    """Isotonic least squares in closed form (Barlow et al. 1972): max over a <= i of min over b >= i of mean(a..b)."""
    levels = np.unique(scores)
    means = [[gold[(scores >= a) & (scores <= b)].mean() if a <= b else np.nan for b in levels] for a in levels]
    return [max(min(means[a][b] for b in range(i, len(levels))) for a in range(i + 1)) for i in range(len(levels))]


@settings(max_examples=25, deadline=None)  # the first example imports scikit-learn
@given(ROWS)
def test_the_curve_is_the_closed_forms(rows: list[tuple[int, int]]) -> None:
    scores, gold = np.array([s / 4 for s, _ in rows]), np.array([g / 4 for _, g in rows])
    curve = fit(scores, gold)
    assert curve.qualities_of(np.unique(scores)) == pytest.approx(minmax(scores, gold), abs=1e-9)
    assert all(0 <= curve.quality(score) <= 1 for score in (1.0, 2.7, 5.0))


def test_a_groups_gold_says_nothing_about_its_own_prediction() -> None:
    rng = np.random.default_rng(1)
    scores, groups = rng.uniform(1, 5, 90), np.repeat([f"q{i}" for i in range(30)], 3)
    gold = (rng.uniform(size=90) < (scores - 1) / 4).astype(float)
    before = cross_validated(scores, gold, groups)
    turned = np.where(groups == "q7", 1 - gold, gold)
    after = cross_validated(scores, turned, groups)
    assert np.array_equal(before.curve[groups == "q7"], after.curve[groups == "q7"])
    assert np.array_equal(before.mean[groups == "q7"], after.mean[groups == "q7"])
    assert not np.array_equal(before.curve, after.curve)  # it does say something about the others'


@pytest.mark.parametrize(
    ("scores", "gold", "match"),
    [
        ([3.0] * 19, [1.0] * 19, "got 19 rows"),
        ([3.0] * 20, [1.0] * 19, "want at least 20"),
        ([6.0] * 20, [1.0] * 20, "out of range"),
        ([float("nan")] * 20, [1.0] * 20, "out of range"),
        ([3.0] * 20, [1.5] * 20, "out of range"),
    ],
)
def test_what_no_curve_can_be_fitted_to(scores: list[float], gold: list[float], match: str) -> None:
    with pytest.raises(LearningError, match=match):
        fit(np.array(scores), np.array(gold))


def test_too_few_questions_are_not_calibrated_on() -> None:
    with pytest.raises(LearningError, match="got 9 questions with gold, want at least 10"):
        agreement("few", judged(RuleModel(knows), items(9)))


def test_the_digest_is_of_the_data_whatever_its_order() -> None:
    every = judged(RuleModel(knows), items(5))
    other = [Judged(replace(every[0].item, gold=0.25), every[0].verdict), *every[1:]]
    assert data_digest(every) == data_digest(every[::-1])
    assert len({data_digest(every), data_digest(other), data_digest(every[1:])}) == 3


def test_levels_are_the_nearest() -> None:
    assert to_levels(np.array([0.0, 0.12, 0.13, 0.5, 1.0]), 5).tolist() == [0, 0, 1, 2, 4]
    assert to_levels(np.array([0.49, 0.5]), 2).tolist() == [0, 1]


@pytest.fixture(scope="module")
def good() -> Agreement:
    return agreement("three answers each", judged(RuleModel(knows), items(80)), resamples=200)


def test_a_judge_that_knows_is_not_refused(good: Agreement) -> None:
    assert good.refusals == []
    assert (good.n, good.groups, good.levels, good.unscored) == (240, 80, 5, 0)
    assert good.spearman.low > 0.6
    assert good.kappa.low > 0.4
    assert good.kappa.value > good.kappa_raw.value  # its scale is shifted: calibration takes that off
    assert good.skill.low > 0.4
    assert good.ordered is not None
    assert good.ordered > 0.85
    assert good.length.low < 0 < good.length.high
    assert good.mass == pytest.approx(0.9)


@pytest.mark.parametrize("belief", [guesses, inverts, never_moves, loves_length])
def test_a_judge_that_does_not_know_is_refused(belief: object) -> None:
    found = agreement("gold", judged(RuleModel(belief), items(80)), resamples=200)  # type: ignore[arg-type]
    assert len(found.refusals) >= 2
    assert all(why.startswith("gold: ") for why in found.refusals)


def test_a_judge_that_knows_is_refused_where_there_is_too_little_to_tell() -> None:
    found = agreement("little", judged(RuleModel(knows), items(20)), resamples=200)
    assert found.refusals == ["little: 20 questions, want at least 50"]


def test_chance_is_seldom_accepted() -> None:
    """Of 20 judges that guess, at most 2: each of the rule's intervals alone would let 1 in 40 pass."""
    accepted = 0
    for number in range(20):
        model = RuleModel(lambda question, answer, n=number: guesses(f"{n}{question}", answer))
        accepted += not agreement("chance", judged(model, items(50, f"q{number}")), resamples=100).refusals
    assert accepted <= 2


def test_yes_or_no_gold_gets_the_plain_kappa_and_a_calibration_error() -> None:
    binary = [item for item in items(80) if item.gold in (0.0, 1.0)]
    found = agreement("binary", judged(RuleModel(knows), binary), resamples=200)
    assert (found.levels, found.refusals) == (2, [])
    assert found.ece is not None
    assert found.ece < 0.1


def test_a_love_of_length_shows_at_equal_gold() -> None:
    found = agreement("gold", judged(RuleModel(loves_length), items(80)), resamples=200)
    assert found.length.low > 0.8


def test_a_love_of_the_first_place_shows_between_two_orders() -> None:
    class FirstPassage(RuleModel):
        """Scores what the first passage is worth to it, whatever the answer."""

        def _one(self, prompt):  # type: ignore[no-untyped-def]
            first = [segment.text for segment in prompt.context if not segment.trusted][:1]
            self.belief = lambda *_: 2.0 if first == ["other"] else 4.0
            return super()._one(prompt)

    first = [replace(item, passages=(*item.passages, "other")) for item in items(20)]
    second = [replace(item, passages=item.passages[::-1]) for item in first]
    moved = change(judged(FirstPassage(knows), first), judged(FirstPassage(knows), second), resamples=100)
    assert (moved.n, moved.flips) == (60, 1.0)
    assert moved.mean.value == pytest.approx(-2.0, abs=0.01)
    still = change(judged(RuleModel(knows), first), judged(RuleModel(knows), second), resamples=100)
    assert (still.size, still.flips) == (0.0, 0.0)


def test_items_without_a_score_are_counted_and_left_out() -> None:
    long = [replace(item, passages=("word " * 200,)) for item in items(10, "long")]
    found = agreement("some", judged(RuleModel(knows, words=250), items(60) + long), resamples=100)
    assert (found.n, found.unscored) == (180, 30)
    with pytest.raises(LearningError, match="no item of 30 with gold got a score"):
        agreement("none", judged(RuleModel(knows, words=250), long))
