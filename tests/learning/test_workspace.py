"""A real `dvc repro`: from snapshot to report, repeated for nothing, remade to the byte, and failing with a reason."""

from pathlib import Path

import psutil
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.ewc import consolidate_bundle
from ruvllm.learning.fake import fake_arrays, second_night, write_fake_snapshot
from ruvllm.learning.workspace import run_pipeline
from ruvllm.router.runtime import RouterRuntime

OUTPUTS = (
    "features.npz",
    "network.safetensors",
    "train.json",
    "report.json",
    "metrics.json",
    "dvc.lock",
    "bundle/manifest.json",
    "bundle/training.safetensors",
)


def contents(workspace: Path):
    return {name: (workspace / name).read_bytes() for name in OUTPUTS}


def interrupt(done: int, total: int, note: str = "") -> None:
    raise KeyboardInterrupt


def test_two_nights_by_dvc(tmp_path: Path):
    others = psutil.Process().children(recursive=True)
    night, notes = tmp_path / "night-1", []
    write_fake_snapshot(tmp_path / "one.npz", fake_arrays(20, 9))
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(night, tmp_path / "one.npz", None, None, "night-1", interrupt)
    assert psutil.Process().children(recursive=True) == others  # dvc and its stage ended with it

    first = run_pipeline(night, tmp_path / "one.npz", None, None, "night-1", lambda *step: notes.append(step))
    assert RouterRuntime.load(first.bundle).version == "night-1"
    assert first.metrics["n_train"] == 20
    assert first.metrics["decision_us"]["p50"] > 0
    assert any("fold" in note for _, _, note in notes)

    before, stamp = contents(night), first.report.stat().st_mtime_ns
    again = run_pipeline(night, tmp_path / "one.npz", None, None, "night-1")
    assert first.report.stat().st_mtime_ns == stamp  # nothing was done
    assert again.lock_sha256 == first.lock_sha256

    for name in ("report.json", "metrics.json", "train.json"):
        (night / name).unlink()
    run_pipeline(night, tmp_path / "one.npz", None, None, "night-1")
    assert first.report.stat().st_mtime_ns != stamp
    assert contents(night) == before

    (tmp_path / "ewc").write_bytes(consolidate_bundle(first.bundle, night / "snapshot.npz").state)
    write_fake_snapshot(tmp_path / "two.npz", second_night(fake_arrays(20, 9), fake_arrays(10, 6, seed=5)))
    second = run_pipeline(tmp_path / "night-2", tmp_path / "two.npz", first.bundle, tmp_path / "ewc", "night-2")
    assert RouterRuntime.load(second.bundle).manifest.metrics["anchored"] == 1
    assert '"champion"' in second.report.read_text()


def test_a_stage_that_fails_says_why(tmp_path: Path):
    write_fake_snapshot(tmp_path / "small.npz", fake_arrays(6, 3))
    with pytest.raises(LearningError, match="6 training questions"):
        run_pipeline(tmp_path / "night", tmp_path / "small.npz", None, None, "night-1")


def test_a_missing_input_is_named(tmp_path: Path):
    with pytest.raises(LearningError, match=r"nowhere\.npz"):
        run_pipeline(tmp_path / "night", tmp_path / "nowhere.npz", None, None, "night-1")
