"""What training reaches where features tell, and what it must not do where they do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning import train as training
from ruvllm.learning.evaluate import evaluate
from ruvllm.learning.fake import TIERS, fake_arrays, write_fake_snapshot
from ruvllm.learning.fit import make_normaliser
from ruvllm.learning.inputs import Inputs
from ruvllm.learning.loss import make_lessons
from ruvllm.learning.selection import calibrate, choose_threshold, decisions, folds, sigmoid, step_up
from ruvllm.learning.targets import make_targets
from ruvllm.learning.train import train, write
from ruvllm.router.layout import LAYOUT
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import PROJECT_ROOT

INPUTS = Inputs("test", "2026-01-01T00:00:00+00:00")


def judged(arrays, config, folder: Path):
    snapshot = write_fake_snapshot(folder / "s.npz", arrays)
    trained = train(snapshot, config)
    write(trained, config, INPUTS, folder / "bundle")
    return trained, evaluate(snapshot, folder / "bundle", None, config)


def test_questions_whose_features_tell_are_learned(config, tmp_path: Path):
    _, report = judged(fake_arrays(90, 60, "determined"), config, tmp_path)
    assert report["seen"]["accuracy_tier"] > 0.95
    regret = {name: policy["regret"]["utility"]["mean"] for name, policy in report["policies"].items()}
    assert regret["fastgrnn"] < 0.7 * regret["best-fixed"]
    assert report["paired"]["best-fixed"]["utility"]["high"] < 0
    assert regret["oracle"] == 0


def test_of_more_sessions_than_a_step_takes_each_comes_with_its_own_labels(with_params, tmp_path: Path):
    few = with_params(training={"batch": 32, "steps": 120, "check_every": 20, "folds": 2})
    _, report = judged(fake_arrays(120, 60, "determined"), few, tmp_path)
    assert report["seen"]["accuracy_tier"] > 0.85
    assert report["paired"]["best-fixed"]["utility"]["high"] < 0


def test_where_features_tell_nothing_the_router_stays_by_the_best_fixed_choice(config, tmp_path: Path):
    worse = []
    for seed in (0, 1):
        _, report = judged(fake_arrays(120, 90, "random", seed), config, tmp_path / str(seed))
        worse.append(report["paired"]["best-fixed"]["utility"]["mean"])
    assert np.mean(worse) < 0.15  # the bound: 0.15 points on a scale where the two tiers are 0.6 apart


def test_with_nothing_in_favour_of_leaving_it_the_fixed_choice_is_made_for_every_question(with_params, tmp_path: Path):
    held = with_params(selection={"caution": [100.0]})
    for seed in (0, 2):  # weak features and few rows: a caution of 8 let some held-out questions slip
        _, report = judged(fake_arrays(30, 90, "weak", seed), held, tmp_path / str(seed))
        assert report["paired"]["best-fixed"]["utility"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_repositorys_caution_reaches_that_far(config):
    assert max(config.selection.caution) == 100.0


def test_one_class_of_labels_is_allowed_and_named(quick, tmp_path: Path):
    arrays = fake_arrays(24, 9)
    arrays["quality"][:, 0, :3], arrays["quality"][:, 1, :3] = 1.0, 0.0
    _, report = judged(arrays, quick, tmp_path)
    assert "degenerate labels: tier is always small" in report["warnings"]
    assert report["policies"]["fastgrnn"]["regret"]["utility"]["mean"] == 0.0


def test_a_ladder_of_two_never_chooses_a_third(first_night: Path):
    golden = RouterRuntime.load(first_night / "bundle")
    assert golden.tiers == TIERS
    from ruvllm.router.bundle import read_bundle

    probabilities = read_bundle(first_night / "bundle").golden.model_probs
    assert (probabilities[:, 2:] == 0).all()
    assert probabilities[:, :2].sum(axis=1) == pytest.approx(np.ones(16), abs=1e-6)


def test_golden_vectors_have_first_and_later_turns(first_night: Path):
    from ruvllm.router.bundle import read_bundle

    hidden = read_bundle(first_night / "bundle").golden.hidden
    assert (~hidden.any(axis=1)).sum() == 8
    assert hidden.any(axis=1).sum() == 8


def test_the_same_snapshot_gives_the_same_bytes(first_night: Path, quick, tmp_path: Path):
    from ruvllm.learning.data import load_snapshot

    again = train(load_snapshot(first_night / "snapshot.npz"), quick)
    write(again, quick, Inputs("first", INPUTS.created_at), tmp_path / "bundle")
    for path in (first_night / "bundle").iterdir():
        assert (tmp_path / "bundle" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_command_writes_a_bundle_that_serves(first_night: Path, tmp_path: Path, capsys, quick):
    import yaml

    params = tmp_path / "params.yaml"
    document = quick.as_dict()
    params.write_text(yaml.safe_dump(json.loads(json.dumps(document))))
    training.main([
        "--snapshot", str(first_night / "snapshot.npz"), "--params", str(params), "--out", str(tmp_path / "bundle"),
        "--metrics", str(tmp_path / "train.json"), "--version", "by-hand",
    ])  # fmt: skip
    assert RouterRuntime.load(tmp_path / "bundle").version == "by-hand"
    metrics = json.loads((tmp_path / "train.json").read_text())
    assert metrics["n_train"] == 30
    assert any("default" in warning for warning in metrics["warnings"])  # temperature and top_p have no grid yet
    assert "[1/3] fold 1 of 2" in capsys.readouterr().out


def test_too_little_to_learn_from(config, tmp_path: Path):
    snapshot = write_fake_snapshot(tmp_path / "s.npz", fake_arrays(7, 3))
    with pytest.raises(LearningError, match="larger budget"):
        train(snapshot, config)


def test_params_name_what_is_wrong(tmp_path: Path):
    from ruvllm.learning.config import load_config

    text = (PROJECT_ROOT / "params.yaml").read_text()
    for old, new, match in (
        ("rank: 8", "rank: 99", "router.rank"),
        ("hour_sine", "hour_of_day", "features.ignored"),
        ("  folds: 5", "  fold: 5", "fold"),
        ("ewc:", "ewd:", "sections"),
    ):
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new))
        with pytest.raises(LearningError, match=match):
            load_config(path)


def test_places_that_did_not_vary_are_left_out(config):
    features = np.random.default_rng(0).uniform(LAYOUT.low, LAYOUT.high, (20, 128)).astype(np.float32)
    features[:, 40] = 0.5
    features[:, 41] = 0.5 + 1e-4 * np.arange(20)
    scaling = make_normaliser(features, config.features)
    assert scaling.mask[[40, 41]].tolist() == [0, 0]
    assert scaling.scale[[40, 41]].tolist() == [1, 1]
    assert scaling.mask[LAYOUT["hour_sine"]].tolist() == [0]  # params.yaml ignores it
    assert scaling.mask.sum() == 128 - 2 - 5
    later = make_normaliser(np.flip(features, axis=1) + 1, config.features)
    kept = later.keep(scaling)
    assert kept.mean[3] == scaling.mean[3]  # the earlier router's weights were trained for that
    assert kept.mean[40] == later.mean[40]  # it did not look at this one


def test_weights_are_the_utility_at_stake(tmp_path: Path):
    targets = make_targets(write_fake_snapshot(tmp_path / "s.npz", fake_arrays(24, 9)))
    lessons = make_lessons(targets, np.arange(24), 0.1)
    assert float(lessons.tier_weight.mean()) == pytest.approx(1.0, abs=1e-6)
    ratio = float(lessons.tier_weight[0] / lessons.tier_weight[1])
    assert ratio == pytest.approx((targets.tier_margin[0] + 0.1) / (targets.tier_margin[1] + 0.1), rel=1e-5)


def test_folds_keep_groups_whole_and_even():
    groups = np.array([f"g{i // 3}" for i in range(30)])
    fold = folds(groups, 5, seed=0)
    assert np.bincount(fold).tolist() == [6] * 5
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    assert max(folds(np.array(["a", "a", "b"]), 5, seed=0)) == 1  # no more folds than groups


def test_caution_holds_the_router_at_the_fixed_choice():
    tiers, bins = np.array([[0.0, 1.0, -9, -9]]), np.array([[2.0, 0, 0, -9, -9]])
    fixed = np.array([[0, 1]])
    assert decisions(tiers, bins, fixed, 0.0).tolist() == [[1, 0]]
    assert decisions(tiers, bins, fixed, 1.5).tolist() == [[0, 0]]
    assert decisions(tiers, bins, fixed, 8.0).tolist() == [[0, 1]]


def test_calibration_finds_the_slope_it_was_made_with():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, 5000)
    near = rng.random(5000) < sigmoid(0.5 * logits - 0.3)
    assert calibrate(logits, near) == pytest.approx((0.5, -0.3), abs=0.06)
    slope, intercept = calibrate(-logits, near)  # a confidence that is upside down says nothing
    assert sigmoid(np.array([slope * 0.0 + intercept]))[0] == pytest.approx(near.mean(), abs=0.03)


def test_fallback_is_chosen_where_it_gains():
    utility = np.full((80, 4, 5), -np.inf)
    utility[:, :2, :3] = 1.0
    utility[:40, 1, 1] = 3.0  # one up is better for the first half
    pairs, confidence = np.zeros((80, 2), dtype=np.int64), np.r_[np.full(40, 0.2), np.full(40, 0.8)]
    assert step_up(pairs, utility)[0].tolist() == [1, 1]
    assert step_up(np.array([[1, 2]]), utility)[0].tolist() == [1, 2]  # nothing above
    assert 0.2 < choose_threshold(confidence, pairs, utility) <= 0.8
    assert choose_threshold(1 - confidence, pairs, -np.abs(utility)) == 0.0
