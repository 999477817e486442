"""The promise of selective routing, kept over many made-up calibrations."""

import math

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.evaluation.selective import binomial_tail, selective_threshold


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are too sure of themselves, and whether they were wrong."""
    confidence = rng.beta(4, 1.5, n)
    return confidence, rng.random(n) > confidence**1.3


def test_violations_are_no_more_than_delta() -> None:
    rng = np.random.default_rng(0)
    pool, wrong = draw(rng, 400_000)
    risk, delta, broken, covered = 0.2, 0.1, 0, []
    for _ in range(400):
        found = selective_threshold(*draw(rng, 300), risk, delta)
        accepted = pool >= found.threshold
        broken += bool(accepted.any() and wrong[accepted].mean() > risk)
        covered.append(found.coverage)
    # 400 runs: 0.1 and three standard errors
    assert broken / 400 <= delta + 3 * math.sqrt(delta * (1 - delta) / 400)
    assert np.mean(covered) > 0.2  # a threshold that accepts nothing would keep any promise


def test_a_naive_threshold_breaks_it_more_often() -> None:
    """What the guarantee is for: the lowest threshold whose own errors are within the risk."""
    rng = np.random.default_rng(1)
    pool, wrong = draw(rng, 400_000)
    broken = 0
    for _ in range(200):
        confidence, bad = draw(rng, 300)
        grid = [t for t in np.linspace(0, 0.99, 100) if (confidence >= t).any() and bad[confidence >= t].mean() <= 0.2]
        broken += wrong[pool >= min(grid)].mean() > 0.2
    assert broken / 200 > 0.25


def test_tail_by_hand() -> None:
    assert binomial_tail(0, 3, 0.5) == pytest.approx(1 / 8)
    assert binomial_tail(1, 3, 0.5) == pytest.approx(4 / 8)
    assert binomial_tail(3, 3, 0.1) == 1.0
    assert binomial_tail(40, 100, 0.5) == pytest.approx(sum(math.comb(100, k) for k in range(41)) / 2**100, rel=1e-9)


def test_where_nothing_is_shown_nothing_is_accepted() -> None:
    few = selective_threshold(np.full(5, 0.99), np.zeros(5, dtype=bool), 0.1, 0.05)
    assert (few.threshold, few.coverage) == (1.0, 0.0)  # 5 rows without an error prove little about one in ten
    bad = selective_threshold(np.full(500, 0.9), np.ones(500, dtype=bool), 0.1, 0.05)
    assert bad.coverage == 0.0
    good = selective_threshold(np.full(500, 0.9), np.zeros(500, dtype=bool), 0.1, 0.05)
    assert (good.threshold, good.coverage) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("confidence", "wrong", "risk", "delta", "message"),
    [
        (np.zeros(0), np.zeros(0, dtype=bool), 0.1, 0.1, "not empty"),
        (np.zeros(3), np.zeros(2, dtype=bool), 0.1, 0.1, "shapes"),
        (np.array([0.5, np.nan]), np.zeros(2, dtype=bool), 0.1, 0.1, "outside"),
        (np.array([0.5, 1.5]), np.zeros(2, dtype=bool), 0.1, 0.1, "outside"),
        (np.array([0.5]), np.zeros(1, dtype=bool), 0.0, 0.1, "risk is 0"),
        (np.array([0.5]), np.zeros(1, dtype=bool), 0.1, 1.0, "delta is 1"),
    ],
)
def test_bad_input_is_named(confidence, wrong, risk: float, delta: float, message: str) -> None:
    with pytest.raises(LearningError, match=message):
        selective_threshold(confidence, wrong, risk, delta)
