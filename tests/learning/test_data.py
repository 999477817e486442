"""A snapshot is read whole or refused by name, and its labels are those of the specification."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.data import digest, features_for, fit_feature_transforms, load_snapshot
from ruvllm.learning.fake import fake_arrays, second_night, write_fake_snapshot
from ruvllm.learning.sessions import sessions_of, unrolled
from ruvllm.learning.targets import best_fixed, degenerate, make_targets
from ruvllm.router.layout import LAYOUT


@pytest.fixture
def arrays():
    return fake_arrays(24, 9)


def test_a_snapshot_is_read_as_it_was_written(arrays, tmp_path: Path):
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    assert (len(snapshot.train), len(snapshot.test)) == (24, 9)
    assert snapshot.places.sum() == 6
    assert snapshot.digest == digest(arrays)  # what the collector stores is what a bundle's manifest names


def broken(name, arrays):
    match name:
        case "features of question question-0-3":
            arrays["features"][3, 7] = np.nan
        case "feature layout":
            arrays["layout_hash"] = np.array("0" * 64)
        case "is in it twice":
            arrays["keys"][30] = arrays["keys"][2]
        case "is in both splits":
            arrays["group"][30] = arrays["group"][2]
        case "arrays missing: night":
            del arrays["night"]
        case "latency_s of question question-0-5: not run":
            arrays["latency_s"][5, 0, 1] = np.nan
        case "want 0 to 1":
            arrays["quality"][4, 0, 0] = 1.5
        case "cost has shape":
            arrays["cost"] = arrays["cost"][:, :3]
    return arrays


@pytest.mark.parametrize(
    "name",
    [
        "features of question question-0-3", "feature layout", "is in it twice", "is in both splits",
        "arrays missing: night", "latency_s of question question-0-5: not run", "want 0 to 1", "cost has shape",
    ],
)  # fmt: skip
def test_a_bad_snapshot_is_refused_and_says_what_is_wrong(name, arrays, tmp_path: Path):
    with pytest.raises(LearningError, match=name):
        write_fake_snapshot(tmp_path / "s.npz", broken(name, arrays))


def test_an_altered_or_missing_file_is_refused(arrays, tmp_path: Path):
    path = tmp_path / "s.npz"
    with pytest.raises(LearningError, match="missing, truncated or altered"):
        load_snapshot(path)
    write_fake_snapshot(path, arrays)
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:300] + bytes([whole[300] ^ 255]) + whole[301:], b"not a zip"):
        path.write_bytes(damaged)
        with pytest.raises(LearningError, match="write the snapshot again"):
            load_snapshot(path)


def test_too_few_rows_say_how_many_there_are(tmp_path: Path):
    snapshot = write_fake_snapshot(tmp_path / "s.npz", fake_arrays(7, 3))
    with pytest.raises(LearningError, match="7 training questions"):
        snapshot.require_training()


def test_earlier_nights_train_only_through_the_reservoir(arrays, tmp_path: Path):
    merged = second_night(arrays, fake_arrays(12, 6, seed=1))
    assert len(write_fake_snapshot(tmp_path / "all.npz", merged).train) == 24 + 12
    merged["replayed"][:20] = False
    snapshot = write_fake_snapshot(tmp_path / "some.npz", merged)
    assert len(snapshot.train) == 4 + 12
    assert len(snapshot.test) == 9 + 6


def test_labels_by_hand(arrays, tmp_path: Path):
    # one question: tier 0 is 0.1 points short at 256 and best at 1024; tier 1 is best on quality and too slow
    arrays["quality"][0, :2, :3] = [[0.475, 0.475, 0.5], [0.6, 0.6, 0.6]]
    arrays["latency_s"][0, :2, :3] = [[1, 2, 0.1], [20, 20, 20]]
    arrays["cost"][0, :2, :3] = [[0.2, 0.2, 0.4], [1, 1, 1]]
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    targets = make_targets(snapshot)
    assert targets.utility[0, 0, :3] == pytest.approx([2.9 - 0.1 - 0.1, 2.9 - 0.2 - 0.1, 3.0 - 0.01 - 0.2], abs=1e-5)
    assert (targets.tier[0], targets.context[0], targets.best_context[0]) == (0, 0, 2)  # viable is not the best
    assert targets.tier_margin[0] == pytest.approx(2.79 - (3.4 - 2.0 - 0.5), abs=1e-5)
    assert targets.context_margin[0] == pytest.approx(2.79 - 2.6, abs=1e-5)
    assert np.isneginf(targets.utility[:, 2:]).all()


def test_one_class_is_named(arrays, tmp_path: Path):
    arrays["quality"][:, 0, :3], arrays["quality"][:, 1, :3] = 1.0, 0.0
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    assert degenerate(snapshot, make_targets(snapshot)) == [
        "degenerate labels: tier is always small", "degenerate labels: context is always 256"
    ]  # fmt: skip
    assert best_fixed(make_targets(snapshot).utility) == (0, 0)


def test_features_are_those_that_the_routers_own_transforms_give(arrays, tmp_path: Path):
    arrays["features"][:, LAYOUT["principal_components"]] = 0.9  # of some earlier router
    snapshot = write_fake_snapshot(tmp_path / "s.npz", arrays)
    assert not features_for(snapshot, None)[:, LAYOUT["principal_components"]].any()
    transforms = fit_feature_transforms(snapshot, 0)
    wanted = transforms.project(snapshot.embedding[:1].astype(float))[0]
    got = features_for(snapshot, transforms)[0, LAYOUT["principal_components"]]
    np.testing.assert_allclose(got, np.clip(wanted, -1, 1), atol=1e-6)


def test_sessions_are_unrolled_in_the_order_of_their_turns():
    session, turn = np.array(["", "s", "t", "s", ""]), np.array([1, 3, 1, 2, 1])
    assert unrolled(sessions_of(session, turn, np.arange(5))).tolist() == [[0, -1], [3, 1], [2, -1], [4, -1]]


def test_the_digest_is_of_the_arrays_and_not_of_the_file(arrays, tmp_path: Path):
    one = write_fake_snapshot(tmp_path / "1.npz", arrays)
    np.savez(tmp_path / "2.npz", **arrays)
    two = load_snapshot(tmp_path / "2.npz")
    files = [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("1.npz", "2.npz")]
    assert files[0] != files[1]
    assert one.digest == two.digest


def test_history_is_that_of_earlier_rows_and_a_held_out_outcome_reaches_no_row_that_trains(arrays, tmp_path: Path):
    places = LAYOUT["historical_accuracy"]
    before = features_for(write_fake_snapshot(tmp_path / "a.npz", arrays), None)[:, places]
    assert not before[0].any()  # nothing was earlier
    assert before[20].any()
    held_out = arrays["split"] == 1
    arrays["quality"][held_out] = 1 - arrays["quality"][held_out]
    after = features_for(write_fake_snapshot(tmp_path / "b.npz", arrays), None)[:, places]
    np.testing.assert_array_equal(before[~held_out], after[~held_out])
    assert (before[held_out] != after[held_out]).any()  # a later held-out question sees an earlier one's
