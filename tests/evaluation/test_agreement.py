"""Agreement of two raters: against scipy, against scikit-learn, against a table counted by hand, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from ruvllm.errors import LearningError
from ruvllm.evaluation.agreement import Resampler, cohen_kappa, ordered_share, ranks, spearman, spearman_within

FEW = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60)  # many ties


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


@given(FEW)
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    one, other = columns(pairs)
    assert ranks(one.astype(float)).tolist() == stats.rankdata(one).tolist()
    constant = len(set(one)) == 1 or len(set(other)) == 1
    expected = 0.0 if constant else stats.spearmanr(one, other).statistic
    assert spearman(one.astype(float), other.astype(float)) == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, "linear"])
@given(pairs=FEW)
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]], weights: str | None) -> None:
    one, other = columns(pairs)
    assume(len(set(one) | set(other)) > 1)  # theirs is undefined there
    expected = cohen_kappa_score(one, other, labels=list(range(5)), weights=weights)
    assert cohen_kappa(one, other, 5, linear=weights == "linear") == pytest.approx(expected)


def test_kappa_of_a_table_counted_by_hand() -> None:
    """Cohen's own shape: 45 both yes, 25 both no, 15 and 15 apart; by chance .6 .6 + .4 .4 = .52 would agree."""
    one = np.repeat([1, 1, 0, 0], [45, 15, 15, 25])
    other = np.repeat([1, 0, 1, 0], [45, 15, 15, 25])
    assert cohen_kappa(one, other, 2) == pytest.approx((0.70 - 0.52) / (1 - 0.52))
    # one of four is a step apart; by chance .5 .5 + 2 .5 .25 + .25 .25 + .25 .25 + 2 .25 .25 + .25 .5 steps
    assert cohen_kappa(np.array([0, 1, 2, 0]), np.array([0, 1, 2, 1]), 3, linear=True) == pytest.approx(
        1 - 0.25 / 0.875
    )


def test_a_constant_rater_agrees_by_chance_alone() -> None:
    level = np.array([0, 1, 2, 2])
    assert spearman(np.ones(4), level.astype(float)) == 0.0
    assert cohen_kappa(np.full(4, 2), level, 3) == pytest.approx(0.0)
    assert cohen_kappa(np.full(4, 2), np.full(4, 2), 3) == 0.0


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=40))
def test_agreement_is_symmetric_bounded_and_blind_to_scale(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    value = spearman(one, other)
    assert -1.0 <= value <= 1.0
    assert spearman(other, one) == pytest.approx(value)
    assert spearman(-one, other) == pytest.approx(-value)
    assert spearman(ranks(one) * 7 + 1, other) == pytest.approx(value)


def test_within_strata_leaves_out_what_the_strata_explain() -> None:
    """Right answers are longer and score higher, yet among equals length says nothing, or the opposite."""
    stratum = np.array([0, 0, 0, 1, 1, 1])
    score = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    length = np.array([3.0, 2.0, 1.0, 13.0, 12.0, 11.0])
    assert spearman(score, length) > 0.4
    assert spearman_within(score, length, stratum) == pytest.approx(-1.0)


def test_ordered_share_counts_pairs_of_one_group() -> None:
    groups = np.array(["a", "a", "a", "b", "b", "c"])
    gold = np.array([1.0, 0.0, 0.5, 1.0, 0.0, 1.0])
    score = np.array([5.0, 1.0, 1.0, 2.0, 3.0, 1.0])
    # a: 5>1 right, 5>1 right, 1=1 half; b: wrong; c: alone
    assert ordered_share(score, gold, groups) == pytest.approx(2.5 / 4)
    assert ordered_share(score, np.ones(6), groups) is None


def test_the_bootstrap_draws_whole_groups() -> None:
    """Ten copies of every row say no more than the rows: the interval must not shrink, as it would row by row."""
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 30))
    groups = np.array([f"q{i}" for i in range(30)])
    once = Resampler(groups, 500).estimate(lambda rows: spearman(one[rows], other[rows]))
    a, b, copied = np.repeat(one, 10), np.repeat(other, 10), np.repeat(groups, 10)
    often = Resampler(copied, 500).estimate(lambda rows: spearman(a[rows], b[rows]))
    row_by_row = Resampler(np.arange(300).astype(str), 500).estimate(lambda rows: spearman(a[rows], b[rows]))
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)
    assert row_by_row.high - row_by_row.low < 0.5 * (once.high - once.low)
    assert once.low < once.value < once.high


def test_the_interval_covers_the_truth() -> None:
    """Of 100 samples with a true correlation, about 95 % of the intervals hold it; under 88 % is a fault."""
    rng = np.random.default_rng(5)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's of a normal pair with Pearson's 0.5
    held = 0
    for _ in range(100):
        pair = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=60)
        draw = Resampler(np.arange(60).astype(str), 200)
        estimate = draw.estimate(lambda rows, pair=pair: spearman(pair[rows, 0], pair[rows, 1]))
        held += estimate.low <= truth <= estimate.high
    assert held >= 88


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(LearningError, match="want the same"):
        spearman(np.ones(3), np.ones(2))
    with pytest.raises(LearningError, match="want the same"):
        cohen_kappa(np.array([], dtype=int), np.array([], dtype=int), 2)
    with pytest.raises(LearningError, match="out of range"):
        cohen_kappa(np.array([2]), np.array([0]), 2)
    with pytest.raises(LearningError, match="no row"):
        Resampler(np.array([], dtype=str))
