"""Estimates from a log against the truth that only full information knows, and against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.evaluation.offpolicy import Log, effective_size, estimate, gate, importance

Values = NDArray[np.float64]

N, M = 400, 3


def by_hand() -> tuple[Log, Values]:
    log = Log(
        action=np.array([0, 1, 0]),
        propensity=np.array([0.5, 0.25, 0.5]),
        reward=np.array([1.0, 0.0, 0.5]),
        model=np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2]]),
    )
    return log, np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def test_three_rows_by_hand() -> None:
    log, target = by_hand()  # weights 2, 2, 0
    assert importance(log, target).tolist() == [2.0, 2.0, 0.0]
    assert estimate(log, target, "ips").value.mean == pytest.approx(2 / 3)
    assert estimate(log, target, "snips").value.mean == pytest.approx(0.5)
    # 0.8 + 2 (1 - 0.8), 0.5 + 2 (0 - 0.2), 0.2
    assert estimate(log, target, "dr").value.mean == pytest.approx((1.2 + 0.1 + 0.2) / 3)
    assert estimate(log, target, "dr").effective == pytest.approx(2.0)


def test_cut_weights_are_counted() -> None:
    log, target = by_hand()
    cut = estimate(log, target, "ips", most=1.5)
    assert cut.value.mean == pytest.approx(0.5)
    assert cut.clipped == pytest.approx(2 / 3)


def test_effective_size_is_the_rows_of_equal_weights() -> None:
    assert effective_size(np.array([3.0, 3.0, 0.0])) == pytest.approx(2.0)
    assert effective_size(np.zeros(3)) == 0.0


class World:
    """Full information: what every action brings on every row; logs are drawn from it."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        hard = rng.random((N, 1))
        self.truth = np.clip(1.0 - hard * np.array([0.9, 0.5, 0.3]) + rng.normal(0, 0.1, (N, M)), 0, 1)
        self.model = np.clip(self.truth + rng.normal(0, 0.2, (N, M)), 0, 1)
        self.logging = np.full((N, M), 0.1) + 0.7 * np.eye(M)[rng.integers(0, M, N)]
        self.drawn = np.arange(N)  # rows of the world in the latest log

    def value(self, policy: Values) -> float:
        return float((policy * self.truth).sum(axis=1).mean())

    def log(self, seed: int) -> Log:
        """Rows drawn with replacement, so that the truth is the value on the whole world."""
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, N, N)
        chances = self.logging[rows]
        action = np.minimum((chances.cumsum(axis=1) < rng.random((N, 1))).sum(axis=1), M - 1)
        at = np.arange(N)
        self.drawn = rows
        return Log(action, chances[at, action], self.truth[rows, action], self.model[rows])


def greedy(world: World, sign: float) -> Values:
    return np.eye(M)[(sign * world.model).argmax(axis=1)]


@pytest.mark.parametrize("how", ["ips", "snips", "dr"])
def test_95_percent_intervals_hold_the_truth(how: str) -> None:
    world = World()
    policy = greedy(world, 1.0)
    held = 0
    for seed in range(200):
        log = world.log(seed)
        value = estimate(log, policy[world.drawn], how, resamples=200, seed=seed).value
        held += value.low <= world.value(policy) <= value.high
    assert held >= 180  # of 190 expected; 1,000 logs are drawn by the benchmark


def test_doubly_robust_is_narrower_than_ips() -> None:
    world = World()
    policy, log = greedy(world, 1.0), world.log(0)
    widths = {}
    for how in ("ips", "dr"):
        value = estimate(log, policy[world.drawn], how).value
        widths[how] = value.high - value.low
    assert widths["dr"] < 0.6 * widths["ips"]


def test_gate_rejects_what_is_worse_and_accepts_what_is_much_better() -> None:
    world = World()
    best, worst = greedy(world, 1.0), greedy(world, -1.0)
    passed = {"better": 0, "worse": 0}
    for seed in range(60):
        log = world.log(seed)
        rows = world.drawn
        passed["better"] += gate(log, best[rows], worst[rows], resamples=100, seed=seed).accepted
        passed["worse"] += gate(log, worst[rows], best[rows], resamples=100, seed=seed).accepted
    assert passed == {"better": 60, "worse": 0}


def test_gate_keeps_out_what_is_no_better_and_its_bound_is_one_sided() -> None:
    world = World()
    world.truth[:, 1] = world.truth[:, 0]  # two actions that bring the same
    one, other = np.tile([1.0, 0.0, 0.0], (N, 1)), np.tile([0.0, 1.0, 0.0], (N, 1))
    verdicts = [gate(world.log(seed), one, other, resamples=100, seed=seed) for seed in range(200)]
    assert sum(verdict.accepted for verdict in verdicts) <= 19  # of 10 expected, three standard deviations above
    assert all(verdict.difference.low < verdict.bound < verdict.difference.mean for verdict in verdicts)
    between = (verdicts[0].difference.low + verdicts[0].bound) / 2  # a two-sided bound would refuse this margin
    assert gate(world.log(0), one, other, margin=between, resamples=100, seed=0).accepted


def test_gate_rejects_the_same_policy_and_too_few_rows() -> None:
    world = World()
    log = world.log(0)
    best = greedy(world, 1.0)[world.drawn]
    assert not gate(log, best, best).accepted
    short = Log(log.action[:20], log.propensity[:20], log.reward[:20], log.model[:20])
    verdict = gate(short, np.eye(M)[short.action], np.eye(M)[(short.action + 1) % M])
    assert not verdict.accepted
    assert "effective rows" in verdict.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensity": np.array([0.5, 0.0, 0.5])}, "propensities"),
        ({"propensity": np.array([0.5, 1.5, 0.5])}, "propensities"),
        ({"reward": np.array([1.0, np.nan, 0.0])}, "not finite"),
        ({"action": np.array([0, 2, 0])}, "actions 0 to 2, want 0 to 1"),
        ({"action": np.array([0, 1])}, "want \\(n,\\) three times"),
    ],
)
def test_an_unusable_log_is_refused(change: dict[str, Values], said: str) -> None:
    with pytest.raises(LearningError, match=said):
        Log(**{**vars(by_hand()[0]), **change})


@pytest.mark.parametrize("target", [np.full((3, 2), 0.6), np.full((3, 1), 1.0), np.array([[2.0, -1.0]] * 3)])
def test_a_target_that_is_no_policy_is_refused(target: Values) -> None:
    with pytest.raises(LearningError, match="target policy"):
        estimate(by_hand()[0], target)


def test_snips_without_any_overlap_says_so() -> None:
    log, _ = by_hand()
    with pytest.raises(LearningError, match="never does what the log did"):
        estimate(log, np.eye(2)[1 - log.action], "snips")
    with pytest.raises(LearningError, match="want one of ips, snips, dr"):
        estimate(log, np.eye(2)[log.action], "magic")
