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
from ruvllm.learning.outcomes.networks import Training, make_reduction, tier_loss
from ruvllm.learning.outcomes.ours import FastGrnnQuality
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
    x, score = lesson(n=80)
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
    fitted = FastGrnnQuality().fit(*lesson(d=128), 0)
    logits = fitted.network(torch.randn(20, 128))  # type: ignore[attr-defined]
    tier_loss(logits, torch.rand(20, 2), Training()).backward()
    still = {n for n, p in fitted.network.named_parameters() if p.grad is None or not p.grad.abs().sum()}  # type: ignore[attr-defined]
    assert still == {"cell.U1_z", "cell.U2_z", "cell.U1_h", "cell.U2_h"}  # h = 0: nothing recurs


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
