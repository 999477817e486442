"""The posterior against closed forms, propensities against counts, and that learning changes choices."""

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.router.exploration import PRIORS, LinearPosterior, epsilon_greedy, fit_posterior, thompson

ALL = (True, True, True)


def test_the_mean_is_ridge_regression_and_the_deviation_shrinks_with_what_is_seen():
    rng = np.random.default_rng(0)
    z, r = rng.normal(size=(50, 4)), rng.normal(size=50)
    posterior = LinearPosterior(2, 4, prior=2.0, noise=0.5)
    for row, reward in zip(z, r, strict=True):
        posterior.learn(1, row, float(reward))
    stacked = np.vstack([z, np.sqrt(2.0) * np.eye(4)])  # ridge as extra rows of least squares
    weights = np.linalg.lstsq(stacked, np.concatenate([r, np.zeros(4)]), rcond=None)[0]
    assert posterior.mean(z[0]) == pytest.approx([0.0, z[0] @ weights])
    covariance = 0.25 * np.linalg.inv(stacked.T @ stacked)
    prior = 0.5 * np.linalg.norm(z[0]) / np.sqrt(2.0)
    assert posterior.deviation(z[0]) == pytest.approx([prior, np.sqrt(z[0] @ covariance @ z[0])])


def test_thompson_propensities_are_the_frequencies_of_its_choices():
    posterior, z, rng = LinearPosterior(3, 1), np.ones(1), np.random.default_rng(1)
    for _ in range(3):
        posterior.learn(2, z, 0.3)
    tried = [thompson(posterior, z, ALL, rng) for _ in range(2000)]
    for place in range(3):
        said = [one.propensity for one in tried if one.place == place]
        assert np.mean(said) == pytest.approx(len(said) / 2000, abs=0.04)
    assert min(one.propensity for one in tried) > 0


def test_weights_by_the_counted_propensity_are_unbiased_as_the_docstring_says():
    posterior, z, rng = LinearPosterior(2, 1), np.ones(1), np.random.default_rng(4)
    for _ in range(4):
        posterior.learn(0, z, 0.2)  # place 1 still wins almost half of the draws
    weights = np.zeros((4000, 2))
    for row in weights:
        tried = thompson(posterior, z, (True, True), rng, draws=9)
        row[tried.place] = 1 / tried.propensity
    assert weights.mean(axis=0) == pytest.approx([1.0, 1.0], abs=0.08)
    assert weights.max() <= 10


def test_outcomes_change_what_is_chosen_on_the_questions_they_are_about():
    posterior, rng = LinearPosterior(2, 2), np.random.default_rng(2)
    easy, hard = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for _ in range(100):
        for z, rewards in ((easy, (1.0, 0.8)), (hard, (0.1, 0.9))):
            place = thompson(posterior, z, (True, True), rng).place
            posterior.learn(place, z, rewards[place])
    assert posterior.mean(hard).argmax() == 1
    assert posterior.mean(easy).argmax() == 0


@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.1), (0.02, 0.3)])
def test_prior_and_noise_are_those_of_the_largest_marginal_likelihood(spread, noise):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(60, 3))
    rewards = np.full((60, 2), np.nan)
    for tier, rows in enumerate((slice(0, 40), slice(20, 60))):
        rewards[rows, tier] = z[rows] @ rng.normal(0, spread, 3) + rng.normal(0, noise, 40)
    posterior = fit_posterior(z, rewards)
    one = posterior.deviation(np.array([1.0, 0.0, 0.0]))
    found = {}
    for prior in PRIORS:
        for sigma in np.geomspace(0.02, 0.5, 60):  # the density of the rewards themselves, w integrated out
            density = 0.0
            for tier in range(2):
                known = np.isfinite(rewards[:, tier])
                rows, seen = z[known], rewards[known, tier]
                covariance = sigma**2 * (np.eye(len(seen)) + rows @ rows.T / prior)
                density -= 0.5 * (seen @ np.linalg.solve(covariance, seen) + np.linalg.slogdet(covariance)[1])
            found[prior, float(sigma)] = density
    prior, sigma = max(found, key=found.get)
    for tier in range(2):
        rows = z[np.isfinite(rewards[:, tier])]
        variance = sigma**2 * np.linalg.inv(prior * np.eye(3) + rows.T @ rows)[0, 0]
        assert one[tier] == pytest.approx(np.sqrt(variance), rel=0.08)  # the grid of sigma is that coarse


def test_epsilon_greedy_is_exact_and_stays_within_the_budget():
    expected, rng = np.array([0.9, 0.5, 0.7]), np.random.default_rng(3)
    feasible = (False, True, True)
    tried = [epsilon_greedy(expected, feasible, 0.2, rng) for _ in range(2000)]
    assert {one.place: one.propensity for one in tried} == pytest.approx({1: 0.1, 2: 0.9})
    assert np.mean([one.place == 2 for one in tried]) == pytest.approx(0.9, abs=0.03)
    assert {thompson(LinearPosterior(3, 1), np.ones(1), feasible, rng).place for _ in range(200)} == {1, 2}


@pytest.mark.parametrize("bad", [
    lambda p: thompson(p, np.ones(2), (False, False), np.random.default_rng(0)),
    lambda p: thompson(p, np.ones(2), ALL, np.random.default_rng(0)),
    lambda p: p.learn(2, np.ones(2), 1.0),
    lambda p: p.learn(0, np.ones(3), 1.0),
    lambda p: p.learn(0, np.ones(2), float("nan")),
    lambda p: fit_posterior(np.ones((3, 2)), np.ones(3)),
    lambda p: epsilon_greedy(np.ones(2), (True, True), 1.5, np.random.default_rng(0)),
])  # fmt: skip
def test_what_cannot_be_is_a_typed_error(bad):
    with pytest.raises(LearningError, match="want"):
        bad(LinearPosterior(2, 2))
