"""The hull of fixed mixtures and the path of a policy, against searches that know no geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from ruvllm.errors import LearningError
from ruvllm.evaluation.frontier import (
    cost_apgr,
    cost_at,
    decide,
    fixed_mixture,
    hull_weights,
    mixture_at,
    pareto,
    path,
)
from ruvllm.evaluation.routing import call_curve

POINTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6)


def best_mixture(cost: NDArray[np.float64], quality: NDArray[np.float64], at: float) -> float:
    """The best quality of any coin among fixed tiers with a mean cost of `at` at most: a linear programme."""
    found = linprog(-quality, A_ub=[cost], b_ub=[at], A_eq=[np.ones(len(cost))], b_eq=[1.0], bounds=(0, 1))
    assert found.status == 0
    return float(-found.fun)


@given(POINTS, st.floats(0, 1))
def test_hull_is_the_best_coin(points: list[tuple[int, int]], share: float) -> None:
    cost, quality = np.array(points, dtype=float).T
    at = cost.min() + share * (cost.max() - cost.min())
    chances = hull_weights(cost, quality, at)
    assert chances.sum() == pytest.approx(1)
    assert chances.min() >= 0
    assert chances @ cost <= at + 1e-6
    assert chances @ quality == pytest.approx(best_mixture(cost, quality, at), abs=1e-6)


@given(POINTS)
def test_pareto_leaves_out_what_is_beaten(points: list[tuple[int, int]]) -> None:
    cost, quality = np.array(points, dtype=float).T

    def beaten(a: int) -> bool:
        return any(
            cost[b] <= cost[a] and quality[b] >= quality[a] and (cost[b], quality[b]) != (cost[a], quality[a])
            for b in range(len(points))
        )

    assert pareto(cost, quality).tolist() == [not beaten(place) for place in range(len(points))]


def two_tiers(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    score = np.stack([rng.random(n), rng.random(n) + 0.4], axis=1).clip(0, 1)
    return score, np.tile([1.0, 11.0], (n, 1))


def test_a_router_that_knows_the_truth_lies_above_the_hull() -> None:
    score, cost = two_tiers(400, 0)
    found = path(score, cost[0], score, cost)
    for share in (0.1, 0.5, 0.9):
        at = cost_at(cost, share)
        ours, fixed = mixture_at(found, score, cost, at), fixed_mixture(score, cost, at)
        assert ours.cost.mean() <= at + 1e-9
        assert ours.quality.mean() > fixed.quality.mean() + 0.02


def test_a_router_that_knows_nothing_lies_on_the_hull() -> None:
    score, cost = two_tiers(400, 1)
    found = path(np.tile(score.mean(axis=0), (400, 1)), cost[0], score, cost)
    at = cost_at(cost, 0.3)
    assert mixture_at(found, score, cost, at).quality == pytest.approx(fixed_mixture(score, cost, at).quality)


def test_with_constant_costs_it_is_the_apgr_of_calls() -> None:
    score, cost = two_tiers(1500, 2)
    predicted = score + np.random.default_rng(3).normal(size=score.shape) * 0.3 + [0.0, 3.0]  # every call seems to pay
    by_calls = call_curve(predicted[:, 1] - predicted[:, 0], score[:, 1], score[:, 0]).apgr
    assert cost_apgr(path(predicted, cost[0], score, cost), score, cost) == pytest.approx(by_calls, abs=5e-3)


def test_free_calls_go_to_the_best_and_dear_ones_to_the_cheapest() -> None:
    predicted = np.array([[0.2, 0.9], [0.8, 0.7]])
    assert decide(predicted, np.array([1.0, 2.0]), 0.0).tolist() == [1, 0]
    assert decide(predicted, np.array([1.0, 2.0]), np.inf).tolist() == [0, 0]
    assert decide(np.ones((2, 2)), np.array([1.0, 2.0]), 0.0).tolist() == [0, 0]


def test_missing_outcomes_are_refused() -> None:
    score, cost = two_tiers(3, 4)
    score[1, 1] = np.nan
    with pytest.raises(LearningError, match="leave out rows with a tier missing"):
        path(np.ones((3, 2)), cost[0], score, cost)
