"""Costs of a query before it is asked."""

from __future__ import annotations

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.prices import fit_prices


def test_long_queries_are_expected_to_cost_more_and_the_mean_is_right() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)).astype(np.float32)
    cost = np.exp(np.stack([x[:, 0] - 8, 0.1 * x[:, 1]], axis=1) + rng.normal(0, 0.3, (2000, 2)))
    prices = fit_prices(x, cost).predict(x)
    assert np.corrcoef(np.log(prices[:, 0]), x[:, 0])[0, 1] > 0.99
    assert prices.mean(axis=0) == pytest.approx(cost.mean(axis=0), rel=0.02)


def test_the_same_cost_for_every_query_is_kept() -> None:
    x = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    prices = fit_prices(x, np.tile([0.2, 7.0], (50, 1))).predict(x * 5)
    assert prices == pytest.approx(np.tile([0.2, 7.0], (50, 1)))


def test_no_guess_is_above_what_was_ever_paid() -> None:
    x = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    cost = np.exp(3 * x.astype(float))
    assert fit_prices(x, cost).predict(x * 1000).max() == cost.max()


def test_missing_costs_are_left_out_and_a_tier_without_any_is_refused() -> None:
    x = np.zeros((4, 1), dtype=np.float32)
    cost = np.array([[1.0, 2.0], [np.nan, 2.0], [3.0, 2.0], [np.nan, 2.0]])
    assert fit_prices(x, cost).predict(x)[0, 0] == pytest.approx(2.0)
    cost[:, 0] = np.nan
    with pytest.raises(LearningError, match="tier 0 has no cost in 4 rows"):
        fit_prices(x, cost)


def test_free_calls_do_not_break_the_logarithm() -> None:
    x = np.zeros((3, 1), dtype=np.float32)
    assert fit_prices(x, np.zeros((3, 1))).predict(x).tolist() == [[0.0]] * 3
