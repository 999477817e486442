"""Every contender learns what can be learnt, ignores what was not run, and refuses what cannot be learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.embedding.adapter import EmbeddingAdapter, Floats, Role
from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.baselines import LEARNERS, PROMPT_LENGTH, Boosting, Logistic, Means, Mlp, Random
from ruvllm.learning.outcomes.features import EmbeddingCache, features_of, known_places
from ruvllm.learning.outcomes.neighbours import PLACES, neighbour_scores, with_neighbours
from ruvllm.learning.outcomes.networks import Training, make_reduction, tier_loss
from ruvllm.learning.outcomes.ours import (
    FastGrnnQuality,
    Strength,
    contrast_errors,
    entropies,
    quality_logits,
    solve_linear,
    surest,
)
from ruvllm.learning.outcomes.predictors import Array, Learner, Wide
from ruvllm.router.layout import LAYOUT

N, D = 300, 6
EVERY = [*LEARNERS, PROMPT_LENGTH, FastGrnnQuality()]


def lesson(seed: int = 0, n: int = N, d: int = D) -> tuple[Array, Wide]:
    """The first place says that the query is hard: the small tier fails it, the big one is middling at all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    hard = x[:, 0] > 0
    return x, np.stack([np.where(hard, 0.1, 0.9), np.full(n, 0.5)], axis=1)


def curved(seed: int = 0, n: int = N, d: int = D) -> tuple[Array, Wide]:
    """The small tier fails where the first place is far out, on either side: no linear path sees that."""
    x, score = lesson(seed, n, d)
    score[:, 0] = np.where(np.abs(x[:, 0]) > 0.67, 0.05, 0.95)
    return x, score


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("learner", EVERY, ids=lambda learner: learner.name)
def test_it_learns_which_queries_are_hard(learner: Learner) -> None:
    x, score = lesson()
    unseen, truth = lesson(1)
    predicted = learner.fit(x, score, 0).predict(unseen)
    assert predicted.shape == truth.shape
    assert np.isfinite(predicted).all()
    chosen = predicted.argmax(axis=1)
    assert np.mean(chosen == truth.argmax(axis=1)) > 0.8


@pytest.mark.parametrize("learner", EVERY, ids=lambda learner: learner.name)
def test_what_was_not_run_teaches_nothing(learner: Learner) -> None:
    x, score = lesson()
    known = score.copy()
    known[::3, 0] = np.nan
    predicted = learner.fit(x, known, 0).predict(x)
    # a third of the small tier's outcomes is missing: were NaN read as 0, its mean would fall to 0.33
    assert predicted[:, 0].mean() == pytest.approx(score[:, 0].mean(), abs=0.06)


@pytest.mark.parametrize("learner", [Mlp(), FastGrnnQuality(), Boosting()], ids=lambda learner: learner.name)
def test_the_same_seed_gives_the_same_router(learner: Learner) -> None:
    x, score = curved()
    first, again, other = (learner.fit(x, score, seed).predict(x) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("learner", EVERY, ids=lambda learner: learner.name)
def test_rows_that_teach_nothing_are_refused(learner: Learner) -> None:
    x, score = lesson(n=20)
    with pytest.raises(LearningError, match=r"tier 0 has 3 outcomes in 3 rows"):
        learner.fit(x[:3], score[:3], 0)
    broken = x.copy()
    broken[4, 1] = np.inf
    with pytest.raises(LearningError, match="row 4 are not finite"):
        learner.fit(broken, score, 0)
    with pytest.raises(LearningError, match="want 0 to 1"):
        learner.fit(x, score * 5, 0)
    with pytest.raises(LearningError, match=r"want \(n, d\) and \(n, m\)"):
        learner.fit(x, score[:5], 0)


@pytest.mark.parametrize("learner", EVERY, ids=lambda learner: learner.name)
def test_labels_of_one_class_and_constant_features_are_safe(learner: Learner) -> None:
    x, score = np.ones((30, D), dtype=np.float32), np.tile([0.0, 1.0], (30, 1))
    predicted = learner.fit(x, score, 0).predict(x)
    assert np.isfinite(predicted).all()
    assert (predicted.argmax(axis=1) == 1).all()


def test_a_score_between_0_and_1_is_a_share_of_successes() -> None:
    x = np.zeros((50, 1), dtype=np.float32)
    predicted = Logistic(strength=1e6).fit(x, np.tile([0.25, 0.75], (50, 1)), 0).predict(x)
    assert predicted[0] == pytest.approx([0.25, 0.75], abs=1e-3)


def test_means_and_random_know_no_query() -> None:
    x, score = lesson()
    assert np.ptp(Means().fit(x, score, 0).predict(x), axis=0).tolist() == [0, 0]
    assert Means().fit(x, score, 0).predict(x)[0] == pytest.approx(score.mean(axis=0))
    assert np.mean(Random().fit(x, score, 0).predict(x).argmax(axis=1)) == pytest.approx(0.5, abs=0.12)


def test_more_inputs_than_the_cell_takes_are_reduced_by_training_rows() -> None:
    x, _ = lesson(n=100, d=40)
    reduction = make_reduction(x, 8)
    reduced = reduction.apply(x)
    assert reduced.shape == (100, 8)
    assert np.abs(np.cov(reduced.T) - np.eye(8) * 100 / 99).max() < 1e-3  # uncorrelated, unit variance
    assert make_reduction(x, 64).apply(x)[:, 40:].any() == np.False_


def test_loss_by_hand() -> None:
    logits, score = torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]])
    # one known tier: cross-entropy log 2, and the order of a single tier is always right
    assert float(tier_loss(logits, score, Training())) == pytest.approx(np.log(2), abs=1e-6)
    both = torch.tensor([[1.0, 0.0]])
    p = 1 / (1 + np.exp(-1.0))
    divergence = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))  # softmax(1, 0) against one half each, T = 1
    wanted = np.log(2) + 0.5 * divergence
    assert float(tier_loss(logits, both, Training(temperature=1.0))) == pytest.approx(wanted, abs=1e-6)


def test_every_weight_of_a_first_turn_gets_gradient() -> None:
    network = FastGrnnQuality().fit_router(*lesson(d=128), 0).network
    with torch.no_grad():
        network.heads["quality"].weight.fill_(0.1)  # it starts at 0, and with no step chosen it still is
    tier_loss(quality_logits(network, torch.randn(20, 128), 4), torch.rand(20, 4), Training()).backward()
    still = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    recurrent = {"cell.U1_z", "cell.U2_z", "cell.U1_h", "cell.U2_h"}  # h = 0: nothing recurs
    others = {name for name in still if name.startswith("heads.") and not name.startswith("heads.quality")}
    assert still == recurrent | others


def test_the_linear_path_is_logistic_regression() -> None:
    x, score = lesson(n=120)
    score[:, 1] = np.random.default_rng(1).random(120)  # shares of a success
    rows, wanted = torch.as_tensor(x), Logistic(strength=0.05).fit(x, score, 0)
    scaled = torch.as_tensor(wanted.scaling.apply(x))  # type: ignore[attr-defined]
    weight, bias = solve_linear(scaled, torch.as_tensor(score, dtype=torch.float32), Strength(0.05, 0.05))
    got = torch.sigmoid(scaled @ weight.T + bias).numpy()
    assert rows.shape == (120, D)
    np.testing.assert_allclose(got, wanted.predict(x), atol=2e-3)


def test_contrasts_can_be_held_back_where_the_level_is_not() -> None:
    x, score = lesson()
    rows, target = torch.as_tensor(x), torch.as_tensor(score, dtype=torch.float32)
    free, _ = solve_linear(rows, target, Strength(1.0, 1.0))
    tied, _ = solve_linear(rows, target, Strength(1.0, 1e-6))
    assert (free[0] - free[1]).abs().max() > 0.5
    assert (tied[0] - tied[1]).abs().max() < 1e-3
    assert tied.abs().max() > 0.1  # what the tiers have in common is still learnt


def test_the_cell_learns_what_the_linear_path_leaves_over() -> None:
    x, score = curved(n=1200)
    unseen, truth = curved(1, n=400)
    straight = Logistic().fit(x, score, 0).predict(unseen).argmax(axis=1)
    ours = FastGrnnQuality().fit_router(x, score, 0)
    assert ours.steps > 0
    assert np.mean(straight == truth.argmax(axis=1)) < 0.65
    assert np.mean(ours.predict(unseen).argmax(axis=1) == truth.argmax(axis=1)) > 0.7


def test_contrast_errors_by_hand() -> None:
    logits = torch.zeros(3, 3)  # qualities of one half each: every difference is 0
    score = torch.tensor([[1.0, 0.0, 0.5], [0.2, float("nan"), 0.6], [0.3, float("nan"), float("nan")]])
    found = contrast_errors(logits, score)
    torch.testing.assert_close(found[:2], torch.tensor([(1.0 + 0.25 + 0.25) / 3, 0.16]))
    assert found[2].isnan()


def test_entropies_are_of_what_was_run() -> None:
    logits = torch.logit(torch.tensor([[0.8, 0.5], [0.25, 0.9]]))
    score = torch.tensor([[1.0, float("nan")], [0.5, 0.9]])
    by_hand = [-np.log(0.8), (-np.log(0.25 * 0.75) / 2 - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)) / 2]
    np.testing.assert_allclose(entropies(logits, score).numpy(), by_hand, rtol=1e-5)


def test_the_usual_choice_stays_unless_another_is_surely_better() -> None:
    usual = torch.tensor([0.5, 0.6, 0.4, 0.5, float("nan")])
    lucky = usual - torch.tensor([0.6, -0.2, -0.2, -0.1, 0.0])  # better by one row
    better = usual - torch.tensor([0.1, 0.12, 0.09, 0.11, 0.0])
    assert surest({"usual": usual, "lucky": lucky}, "usual", 1.0) == "usual"
    assert surest({"usual": usual, "lucky": lucky}, "usual", 0.0) == "lucky"
    assert surest({"usual": usual, "better": better}, "usual", 1.0) == "better"
    assert surest({"usual": usual, "worse": usual + 1}, "usual", 0.0) == "usual"
    assert surest({0: usual[:1], 20: usual[:1] - 1}, 0, 1.0) == 0  # one row shows nothing


def test_neighbours_outcomes_leave_out_the_query_and_its_like() -> None:
    angle = np.array([0.0, 0.001, 0.02, 0.03, 1.5, 1.52])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    score = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1], [0.5, np.nan], [0.5, 0.5]])
    groups = np.array([0, 0, 2, 3, 4, 5])  # the first two say the same
    near = neighbour_scores(vectors, score, groups, np.arange(5), k=2)
    mean = np.array([0.5, 0.5])
    np.testing.assert_allclose(near[0], (np.array([0, 2]) + 10 * mean) / 12)  # rows 2 and 3, not itself nor its like
    np.testing.assert_allclose(near[5, 1], (1 + 10 * 0.5) / 11)  # rows 4 and 3: one of them was not run
    changed = score.copy()
    changed[5] = 0.0
    assert np.array_equal(neighbour_scores(vectors, changed, groups, np.arange(5), k=2), near)  # not a training row
    filled = with_neighbours(np.zeros((6, 128), dtype=np.float32), near)
    assert filled[0, PLACES.start] == pytest.approx((1 + 9 * near[0, 0]) / 10)
    assert filled[:, : PLACES.start].any() == np.False_


class CountingEncoder:
    """Letters counted; remembers what it was asked."""

    id, dimension = "letters", 26

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], role: Role = "document") -> Floats:
        self.asked += texts
        return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)


def test_a_text_is_encoded_once_and_kept_on_disk(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    cache = EmbeddingCache(tmp_path, EmbeddingAdapter(encoder))
    first = cache.embed(["abc", "xyz", "abc"])
    assert sorted(encoder.asked) == ["abc", "xyz"]
    again = EmbeddingCache(tmp_path, EmbeddingAdapter(encoder)).embed(["xyz", "abc", "hello"])
    assert encoder.asked[2:] == ["hello"]
    assert np.array_equal(again[:2], first[[1, 0]])
    assert np.array_equal(first[0], first[2])


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, EmbeddingAdapter(CountingEncoder()))
    cache.embed(["abc"])
    cache.path.write_bytes(cache.path.read_bytes()[:-60])
    with pytest.raises(LearningError, match=r"truncated or altered .*; delete the file"):
        cache.embed(["abc"])
    np.savez(cache.path, keys=np.array(["k"]), vectors=np.ones((1, 26), dtype=np.float32), encoder="another")
    with pytest.raises(LearningError, match="of encoder another"):
        cache.embed(["abc"])


def test_features_say_what_a_query_alone_says() -> None:
    queries = ["What is the capital of France?", "Write a python function that sorts a list."]
    embedding = np.random.default_rng(0).normal(size=(2, 26)).astype(np.float32)
    features = features_of(queries, embedding)
    known = known_places()
    assert features.shape == (2, 128)
    assert features[0, LAYOUT["token_count"]] < features[1, LAYOUT["token_count"]]
    assert np.ptp(features[:, ~known], axis=0).max() == 0  # the same for every query: nothing was made up
    with pytest.raises(LearningError, match="1 rows for 2 queries"):
        features_of(queries, embedding[:1])
