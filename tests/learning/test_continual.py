"""Tasks in a row: naive training forgets, EWC and replay keep; the merged anchor pulls as an anchor a task does."""

import numpy as np
import pytest
import torch

from ruvllm.errors import LearningError
from ruvllm.learning.ewc import Ewc, Origin
from ruvllm.learning.outcomes.continual import (
    METHODS,
    Method,
    Plan,
    Task,
    _with_anchor,
    learn,
    search_penalty,
)
from ruvllm.learning.replay import offer_by_stratum
from ruvllm.router.layout import N_FEATURES

PLAN = Plan(updates=600, batch=16, learning_rate=0.01, penalty=3000.0, capacity=60, fisher_rows=40)
ORIGIN = Origin("", "outcomes", (), "", "", "spec")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name, place, better, seed, n=120):
    """A task that shows itself in feature `place`: there tier `better` answers and the other does not."""
    random = np.random.default_rng(seed)

    def rows(count):
        x = random.normal(scale=0.3, size=(count, N_FEATURES)).astype(np.float32)
        x[:, place] += 2.0
        score = np.zeros((count, 2))
        score[:, better] = 1.0
        return x, score, np.zeros((count, 2))

    x, score, cost = rows(n)
    return Task(name, x, score, cost, *rows(60))


TASKS = [made("a", 0, 0, 1), made("b", 1, 1, 2), made("c", 2, 0, 3), made("d", 3, 1, 4)]


def by_name(name):
    return next(method for method in METHODS if method.name == name)


def test_what_is_not_kept_is_forgotten_and_what_is_kept_is_not():
    # the second half of the tasks turns the answer of the first around, on inputs that differ in one place
    tasks = [made("a", 0, 0, 1), made("b", 0, 1, 2)]
    tasks[1].x[:, 0] -= 1.8
    tasks[1].test_x[:, 0] -= 1.8
    kept = {name: learn(tasks, by_name(name), PLAN, 0) for name in ("naive", "replay", "EWC + replay", "joint")}
    assert kept["naive"].accuracy[0, 0] > 0.95
    assert kept["naive"].accuracy[1, 0] < 0.5
    assert kept["replay"].accuracy[1, 0] > kept["naive"].accuracy[1, 0] + 0.3
    assert kept["EWC + replay"].transfer.backward_transfer > kept["naive"].transfer.backward_transfer + 0.3
    assert kept["joint"].transfer is None
    assert kept["joint"].average > 0.9


def test_ewc_holds_the_first_task_more_the_larger_its_penalty():
    tasks = [made("a", 0, 0, 1), made("b", 0, 1, 2)]
    firsts = [learn(tasks, Method("e", ewc="online"), Plan(**{**vars(PLAN), "penalty": p}), 0) for p in (0.0, 3e4)]
    assert firsts[1].accuracy[1, 0] > firsts[0].accuracy[1, 0] + 0.3


def test_the_same_seed_gives_the_same_run():
    first, again, other = (learn(TASKS, by_name("EWC + replay"), PLAN, seed).accuracy for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_merged_anchor_is_an_anchor_a_task_up_to_a_constant():
    random = np.random.default_rng(0)

    def drawn():
        return {"w": random.random((3, 4)).astype(np.float32), "b": random.random(4).astype(np.float32)}

    fishers, anchors = [drawn() for _ in range(3)], [drawn() for _ in range(3)]
    fishers[0]["b"][:2] = fishers[1]["b"][:2] = fishers[2]["b"][:2] = 0.0
    state = Ewc(fishers[0], anchors[0], 7.0, 1.0, ORIGIN)
    for fisher, anchor in zip(fishers[1:], anchors[1:], strict=True):
        state = _with_anchor(state, fisher, anchor)

    def apart(theta):
        return 3.5 * sum(
            (f[k] * (theta[k] - a[k]) ** 2).sum() for f, a in zip(fishers, anchors, strict=True) for k in f
        )

    thetas = [drawn() for _ in range(5)]
    merged = [float(state.loss({name: torch.as_tensor(v) for name, v in theta.items()})) for theta in thetas]
    differences = np.array([apart(theta) for theta in thetas]) - merged
    assert differences == pytest.approx(np.full(5, differences[0]), rel=1e-4)


def test_the_search_looks_at_no_test_row():
    turned = [Task(t.name, t.x, t.score, t.cost, t.test_x, 1 - t.test_score, t.test_cost) for t in TASKS[:2]]
    plan = Plan(**{**vars(PLAN), "updates": 100})
    chosen = [search_penalty(tasks, by_name("online EWC"), plan, 0, (1.0, 1e4)) for tasks in (TASKS[:2], turned)]
    assert chosen[0] == chosen[1]


def test_every_stratum_has_the_same_share_and_each_of_its_keys_the_same_chance():
    counts = {"a": np.zeros(20), "b": np.zeros(5)}
    rounds = 3000
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        slots, seen = {}, {}
        offer_by_stratum(slots, seen, "a", [str(i) for i in range(12)], 8, rng)
        offer_by_stratum(slots, seen, "b", [str(i) for i in range(5)], 8, rng)
        offer_by_stratum(slots, seen, "a", [str(i) for i in range(12, 20)], 8, rng)
        assert {name: len(held) for name, held in slots.items()} == {"a": 4, "b": 4}
        assert seen == {"a": 20, "b": 5}
        for name, held in slots.items():
            for key in held:
                counts[name][int(key)] += 1
    for name, share in (("a", 4 / 20), ("b", 4 / 5)):
        # a share's standard deviation here is below 0.0075
        assert counts[name] / rounds == pytest.approx(np.full(len(counts[name]), share), abs=0.03)


def test_more_strata_than_places_is_an_error():
    with pytest.raises(LearningError, match="2 strata for 1 places"):
        offer_by_stratum({"a": ["1"]}, {"a": 1}, "b", ["2"], 1, np.random.default_rng(0))


def test_stratified_replay_keeps_rows_of_every_task():
    plan = Plan(**{**vars(PLAN), "updates": 80, "capacity": 4, "stratified": True})
    assert learn(TASKS, by_name("replay"), plan, 0).accuracy.shape == (4, 4)


@pytest.mark.parametrize(
    ("tasks", "wanted"),
    [(TASKS[:1], "two or more"), ([TASKS[0], Task("e", *[np.zeros((0, 2))] * 6)], "no rows")],
)
def test_tasks_that_cannot_be_learnt_are_refused(tasks, wanted):
    with pytest.raises(LearningError, match=wanted):
        learn(tasks, METHODS[0], PLAN, 0)
