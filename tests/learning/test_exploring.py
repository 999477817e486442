"""A stream of questions: outcomes of the tiers that were tried turn a wrong router towards the better one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.data import Snapshot
from ruvllm.learning.exploring import EPSILON, GREEDY, STILL, THOMPSON, WAYS, stream_regret
from ruvllm.learning.fake import TIERS, fake_arrays, write_fake_snapshot
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> RouterRuntime:
    folder = tmp_path_factory.mktemp("exploring") / "bundle"
    write_random_bundle(folder, tiers=TIERS, hidden=8)
    return RouterRuntime.load(folder)


@pytest.fixture
def snapshot(tmp_path: Path, router: RouterRuntime) -> Snapshot:
    """300 held-out questions on which one tier is always right, and it is the one that the router thinks little of."""
    arrays = fake_arrays(9, 300, session_share=0.0)
    first = write_fake_snapshot(tmp_path / "first.npz", arrays)
    still = stream_regret(router, first, STILL, 0)
    assert still.shape == (300,)
    liked = int(np.mean([_likes(router, row) for row in first.features[-20:]]) > 0.5)
    arrays["quality"][:, :2] = np.where(np.arange(2) == liked, 0.3, 0.9)[None, :, None]
    arrays["quality"][:, :, 3:] = np.nan
    return write_fake_snapshot(tmp_path / "snapshot.npz", arrays)


def _likes(router: RouterRuntime, row: np.ndarray) -> int:
    from ruvllm.router.decision import Allowed

    return int(np.argmax(router.decide(row, None, Allowed((True,) * 4, (True,) * 5)).utility[:2]))


def test_outcomes_turn_later_decisions_and_only_where_they_are_learnt(
    router: RouterRuntime, snapshot: Snapshot
) -> None:
    regret = {way: stream_regret(router, snapshot, way, 3) for way in WAYS}
    late = {way: float(values[-100:].mean()) for way, values in regret.items()}
    assert late[STILL] > 1.0  # quality off by 0.6 of 1 is 2.4 of utility
    for way in (GREEDY, EPSILON, THOMPSON):
        assert late[way] < 0.3 * late[STILL], (way, late)
        assert late[way] < 0.5 * float(regret[way][:20].mean()) + 0.05
    assert all((values >= 0).all() for values in regret.values())


def test_an_unknown_way_is_named(router: RouterRuntime, snapshot: Snapshot) -> None:
    with pytest.raises(LearningError, match="want one of learns nothing"):
        stream_regret(router, snapshot, "guessing", 0)
