"""The ablation trains without each part, pairs what comes out with the whole, and says what there is nothing of."""

from dataclasses import replace

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.ablation import PARTS, ablate, lines
from ruvllm.learning.command import single_thread
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.ewc import consolidate_bundle, load_ewc
from ruvllm.learning.exploring import WAYS


@pytest.fixture(scope="module")
def found(first_night, with_params):
    single_thread()
    quick = with_params(training={"steps": 20, "folds": 2}, evaluation={"resamples": 200})
    return ablate(load_snapshot(first_night / "snapshot.npz"), quick, seeds=2)


def by_name(found, name):
    return next(row for row in found.rows if name in row.name)


def test_every_part_has_a_row_and_what_is_not_there_says_why(found):
    assert len(found.rows) == len(PARTS) + 1
    assert by_name(found, "without EWC").absent == "there was no EWC state, as in a first night"
    assert by_name(found, "replay").absent == "nothing was replayed in this night"
    measured = [row for row in found.rows if not row.absent]
    assert all(row.utility is not None for row in measured)
    assert all(len(line) == 3 for line in lines(found))


def test_differences_are_from_the_whole_router(found):
    whole = by_name(found, "the whole").utility
    for row in found.rows[1:]:
        if row.difference:
            assert row.difference.mean == pytest.approx(row.utility - whole, abs=1e-9)
            assert row.difference.low <= row.difference.mean <= row.difference.high


def test_every_way_to_explore_is_played(found):
    assert [each.way for each in found.exploring] == list(WAYS)
    assert all(each.regret >= 0 for each in found.exploring)


def test_an_ewc_state_has_its_row_and_too_little_without_replay_is_said(first_night, tmp_path, with_params):
    single_thread()
    state = tmp_path / "ewc.safetensors"
    state.write_bytes(consolidate_bundle(first_night / "bundle", first_night / "snapshot.npz").state)
    quick = with_params(training={"steps": 20, "folds": 2}, evaluation={"resamples": 200})
    snapshot = load_snapshot(first_night / "snapshot.npz")
    mostly_replayed = replace(snapshot, replayed=np.arange(len(snapshot.replayed)) >= 2)
    found = ablate(mostly_replayed, quick, load_ewc(state), seeds=1)
    assert by_name(found, "without EWC").difference is not None
    assert by_name(found, "replay").absent.startswith("not trained: snapshot: 2 training questions")


def test_without_held_out_questions_there_is_nothing_to_compare(first_night, quick):
    snapshot = load_snapshot(first_night / "snapshot.npz")
    with pytest.raises(LearningError, match="no held-out question"):
        ablate(replace(snapshot, split=np.zeros_like(snapshot.split)), quick)
