"""APGR, CPT and win rate against thresholds written out, as the paper has them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.routing import call_curve, win_rate


def by_thresholds(score: NDArray[np.float64], strong: NDArray[np.float64], weak: NDArray[np.float64]) -> float:
    """APGR by its definition: call the strong model at or over each decile of the score, sum trapezoids."""
    points = [(0.0, weak.mean()), (1.0, strong.mean())]
    for threshold in np.quantile(score, np.linspace(0.1, 0.9, 9)):
        called = score >= threshold
        points.append((called.mean(), np.where(called, strong, weak).mean()))
    points.sort()
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    return (area - weak.mean()) / (strong.mean() - weak.mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_apgr_is_that_of_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 2000
    weak, strong = (rng.random(n) < 0.4).astype(float), (rng.random(n) < 0.8).astype(float)
    score = rng.normal(size=n) + strong - weak
    assert call_curve(score, strong, weak).apgr == pytest.approx(by_thresholds(score, strong, weak), abs=2e-3)


def test_four_rows_by_hand() -> None:
    # gains 1, 1, 0, 0 in the order of calling: half of the calls recover everything
    curve = call_curve(np.array([4.0, 3, 2, 1]), np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 1, 1]))
    assert curve.apgr == pytest.approx(0.75)
    assert [curve.cpt(share) for share in (0.2, 0.5, 0.8)] == pytest.approx([0.1, 0.25, 0.4])


def test_what_says_nothing_is_worth_one_half() -> None:
    rng = np.random.default_rng(1)
    weak, strong = rng.random(501), rng.random(501) + 0.5
    curve = call_curve(np.zeros(501), strong, weak)
    assert curve.apgr == pytest.approx(0.5)
    assert curve.cpt(0.5) == pytest.approx(0.5)


def test_the_order_of_equal_rows_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    score, strong, weak = rng.integers(0, 3, 200).astype(float), rng.random(200) + 0.5, rng.random(200)
    shuffled = rng.permutation(200)
    moved = call_curve(score[shuffled], strong[shuffled], weak[shuffled])
    assert moved.quality == pytest.approx(call_curve(score, strong, weak).quality)


def test_without_a_gap_there_is_nothing_to_recover() -> None:
    with pytest.raises(LearningError, match="the other way round"):
        call_curve(np.arange(4.0), np.zeros(4), np.ones(4))


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([1.0]), np.array([])])
def test_unusable_rows_are_named(bad: NDArray[np.float64]) -> None:
    with pytest.raises(LearningError, match="routing"):
        call_curve(bad, np.ones(2), np.zeros(2))


def test_win_rate_counts_equal_rows_half() -> None:
    assert win_rate(np.array([1.0, 0, 1, 1]), np.array([0.0, 1, 1, 1])) == 0.5
    assert win_rate(np.array([1.0, 1]), np.array([0.0, 1])) == 0.75
