"""Competence against the ends and shape in the paper, difficulty against an order by hand, what a step may draw."""

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.config import Config, parse_config
from ruvllm.learning.curriculum import competence, difficulty, row_weights
from ruvllm.learning.data import features_for
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.fit import Material, fit, make_normaliser, make_pace, new_network
from ruvllm.learning.loss import make_lessons
from ruvllm.learning.targets import make_targets

EASY_TO_HARD = difficulty(np.array([0.9, 0.5, 0.1]), np.array([5.0, 9.0, 30.0]), np.array([0.0, 1.0, 2.0]))


def test_competence_starts_and_ends_where_the_paper_says_and_slows_down():
    assert competence(0, 100, 0.1) == pytest.approx(0.1)
    assert competence(100, 100, 0.1) == competence(500, 100, 0.1) == 1.0
    # dc/dt is proportional to 1 / c: the square grows by the same amount at every step
    squares = np.array([competence(step, 100, 0.1) ** 2 for step in range(101)])
    assert np.diff(squares) == pytest.approx(np.full(100, 0.0099))


def test_a_small_margin_a_long_question_and_more_hops_are_harder():
    assert pytest.approx([1 / 3, 2 / 3, 1]) == EASY_TO_HARD
    same = np.ones(3)
    assert difficulty(np.array([0.1, 0.5, 0.9]), same, same).argmin() == 2
    assert difficulty(same, np.array([3.0, 1.0, 2.0]), same).argmin() == 1
    assert difficulty(same, same, np.array([2.0, 1.0, 0.0])).argmin() == 2
    assert difficulty(same, same, same) == pytest.approx([1, 1, 1])


def test_a_step_draws_what_competence_allows_and_never_nothing():
    drawn = [row_weights(EASY_TO_HARD, reached).tolist() for reached in (0.01, 0.7, 1.0)]
    assert drawn == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("bad", [
    lambda: competence(-1, 10), lambda: competence(0, 0), lambda: competence(0, 10, 0.0),
    lambda: difficulty(np.ones(2), np.ones(3), np.ones(2)),
    lambda: difficulty(np.ones(0), np.ones(0), np.ones(0)),
    lambda: difficulty(np.array([np.nan]), np.ones(1), np.ones(1)),
    lambda: row_weights(np.ones(0), 1.0),
])  # fmt: skip
def test_what_cannot_be_is_a_typed_error(bad):
    with pytest.raises(LearningError, match="want"):
        bad()


@pytest.fixture(scope="module")
def material(tmp_path_factory, config):
    snapshot = write_fake_snapshot(tmp_path_factory.mktemp("pace") / "snapshot.npz", fake_arrays(30, 12))
    features = features_for(snapshot, None)
    return Material(
        snapshot, make_targets(snapshot), features, make_normaliser(features[snapshot.train], config.features)
    )


def test_a_fit_begins_with_the_easy_questions_and_ends_with_all(material, config):
    rows = material.snapshot.train
    lessons = make_lessons(material.targets, rows, config.loss.weight_floor)
    pace = make_pace(material, rows, 20)
    counted = [int((pace(lessons, step).row_weight > 0).sum()) for step in (1, 6, 12, 21, 40)]
    assert counted == sorted(counted)
    assert counted[0] < counted[1] < counted[2] < counted[3] == counted[4] == len(rows)
    assert pace(lessons, 1).row_weight.mean() == pytest.approx(1.0)
    margin = material.targets.tier_margin[rows]
    first = pace(lessons, 1).row_weight.numpy() > 0
    assert margin[first].mean() > margin.mean()


def test_a_curriculum_trains_another_network_and_none_the_same(material, with_params):
    def weights(**changed):
        config = with_params(training={"steps": 20, **changed})
        network = new_network(material, material.snapshot.train, config, 0)
        fit(network, material, material.snapshot.train, config, 20, 0)
        return np.concatenate([value.detach().numpy().ravel() for value in network.parameters()])

    plain = weights()
    assert np.array_equal(plain, weights(curriculum=0.0))
    assert not np.array_equal(plain, weights(curriculum=0.5))


def test_a_network_from_before_the_setting_was_trained_without(config: Config) -> None:
    stored = config.as_dict()
    del stored["training"]["curriculum"]
    assert parse_config(stored).training.curriculum == 0
