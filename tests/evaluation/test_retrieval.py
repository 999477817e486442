"""Measures of rankings against hand-made tables, intervals against what they must cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.evaluation.retrieval import difference, interval, ndcg_at, recall_at, whole_at


def test_measures_by_hand() -> None:
    ranking, gold = [5, 1, 9, 2], {1, 2}
    assert [recall_at(ranking, gold, k) for k in (1, 2, 4)] == [0.0, 0.5, 1.0]
    assert [whole_at(ranking, gold, k) for k in (2, 4)] == [0.0, 1.0]
    best = 1 + 1 / math.log2(3)
    assert ndcg_at(ranking, gold, 4) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ndcg_at([1, 2], gold, 2) == pytest.approx(1.0)


def test_a_repeated_id_counts_once_and_an_empty_ranking_finds_nothing() -> None:
    assert recall_at([1, 1, 1], {1, 2}, 3) == 0.5
    assert recall_at([], {1}, 5) == 0.0


def test_a_question_without_gold_is_refused() -> None:
    with pytest.raises(LearningError, match="without gold"):
        recall_at([1], [], 1)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [interval(rng.binomial(1, 0.3, 80).astype(float).tolist(), resamples=400) for _ in range(150)]
    assert 0.88 <= np.mean([each.low <= 0.3 <= each.high for each in found]) <= 1.0
    assert all(each.low <= each.mean <= each.high for each in found)


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    """Questions differ much, the two rankings little but always the same way."""
    theirs = np.random.default_rng(1).random(60)
    gain = difference((theirs + 0.02).tolist(), theirs.tolist())
    assert gain.low == pytest.approx(0.02)
    assert interval((theirs + 0.02).tolist()).low < theirs.mean()


@pytest.mark.parametrize("wrong", [[], [math.nan], [math.inf, 1.0]])
def test_figures_that_cannot_be_are_refused(wrong: list[float]) -> None:
    with pytest.raises(LearningError, match="figures"):
        interval(wrong)
    with pytest.raises(LearningError, match="one of each"):
        difference([1.0], [1.0, 2.0])
