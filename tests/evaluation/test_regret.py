"""Specification 8.3 against a table worked out by hand."""

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.evaluation.calibration import calibration_error, expected_calibration_error
from ruvllm.evaluation.forgetting import forgetting
from ruvllm.evaluation.regret import Outcomes, make_bootstrap, paired, regret

ORACLE = Outcomes(*(np.array(v, float) for v in ([4.0, 3.0], [5.0, 4.0], [1.0, 1.0], [0.2, 0.4])))
ROUTED = Outcomes(*(np.array(v, float) for v in ([4.0, 1.0], [5.0, 2.0], [1.0, 3.0], [0.2, 0.8])))
BIG = Outcomes(*(np.array(v, float) for v in ([3.0, 2.5], [5.0, 4.5], [4.0, 4.0], [1.0, 1.0])))
GROUPS = np.array(["a", "b"])


def test_the_four_regrets():
    got = regret(ROUTED, ORACLE, BIG, make_bootstrap(GROUPS, 500, seed=0))
    assert {name: interval.mean for name, interval in got.items()} == pytest.approx(
        {"utility": 1.0, "quality": 1.25, "latency_s": 1.0, "cost": 0.2}
    )
    assert (got["utility"].low, got["utility"].high) == (0.0, 2.0)  # two groups: all of one, or all of the other


def test_paired_regret_is_the_difference_of_the_two():
    bootstrap = make_bootstrap(GROUPS, 200, seed=0)
    ours, theirs = (regret(outcomes, ORACLE, BIG, bootstrap) for outcomes in (ROUTED, BIG))
    for name, interval in paired(ROUTED, BIG, bootstrap).items():
        assert interval.mean == pytest.approx(ours[name].mean - theirs[name].mean)


def test_questions_of_one_group_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).normal(size=10), 30)
    together = make_bootstrap(np.repeat([f"g{i}" for i in range(10)], 30), 2000, seed=0).interval(values)
    apart = make_bootstrap(np.array([f"g{i}" for i in range(300)]), 2000, seed=0).interval(values)
    assert together.high - together.low > 4 * (apart.high - apart.low)
    assert together.high - together.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(10), rel=0.15)


def test_nothing_held_out_is_an_error():
    with pytest.raises(LearningError, match="no held-out question"):
        make_bootstrap(np.array([], dtype=str), 10, seed=0)


def test_calibration_error_of_scores_that_are_no_labels():
    assert calibration_error(np.array([0.05, 0.05, 0.9]), np.array([0.1, 0.2, 0.5])) == pytest.approx((0.2 + 0.4) / 3)
    with pytest.raises(LearningError, match="outside"):
        calibration_error(np.array([np.nan]), np.array([0.5]))


def test_expected_calibration_error_by_hand():
    confidence = np.array([0.05, 0.05, 0.95, 0.95])
    assert expected_calibration_error(confidence, np.array([False, False, True, True])) == pytest.approx(0.05)
    assert expected_calibration_error(confidence, np.array([True, True, False, False])) == pytest.approx(0.95)
    assert expected_calibration_error(np.full(4, 0.5), np.array([True, True, False, False])) == 0.0


def test_forgetting_is_accuracy_then_minus_accuracy_now():
    then, now = np.array([True, True, True, False]), np.array([True, False, False, True])
    found = forgetting(then, now, np.array([1, 1, 2, 2]), make_bootstrap(np.array(list("abcd")), 500, seed=0))
    assert found.rate.mean == pytest.approx(0.25)
    assert found.rate.low < 0.25 < found.rate.high
    assert (found.accuracy_then, found.accuracy_now, found.n, found.n_nights) == (0.75, 0.5, 4, 2)
