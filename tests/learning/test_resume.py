"""A training run that is killed goes on to the same bits, and never from what is not its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.errors import LearningError
from ruvllm.learning import selection
from ruvllm.learning import train as training
from ruvllm.learning.data import Snapshot, features_for, load_snapshot
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.fit import Material, fit, make_normaliser, new_network
from ruvllm.learning.saved import Saved
from ruvllm.learning.targets import make_targets
from ruvllm.learning.train import train


class Killed(Exception):
    """As if the process had ended."""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return write_fake_snapshot(tmp_path_factory.mktemp("resume") / "s.npz", fake_arrays(24, 6))


@pytest.fixture
def short(with_params):
    return with_params(training={"steps": 40, "check_every": 10, "folds": 2}, compression={"kept": 1.0})


def material_of(snapshot: Snapshot, config) -> Material:
    features = features_for(snapshot, None)
    scaling = make_normaliser(features[snapshot.train], config.features)
    return Material(snapshot, make_targets(snapshot), features, scaling)


def state(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in network.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return set(one) == set(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("last", [1, 10, 19, 25, 39])
def test_a_fit_killed_at_any_step_ends_the_same(snapshot: Snapshot, short, tmp_path: Path, last: int) -> None:
    material, rows = material_of(snapshot, short), snapshot.train
    whole = new_network(material, rows, short, 0)
    fit(whole, material, rows, short, 40, 0)

    def killer(step: int, network: torch.nn.Module) -> None:
        if step == last:
            raise Killed

    saved = Saved(tmp_path / "fit.safetensors", "this one")
    with pytest.raises(Killed):
        fit(new_network(material, rows, short, 0), material, rows, short, 40, 0, after_step=killer, saved=saved)
    steps: list[int] = []
    again = new_network(material, rows, short, 0)
    fit(again, material, rows, short, 40, 0, after_step=lambda step, _: steps.append(step), saved=saved)
    assert same(state(again), state(whole))
    assert steps[0] == (last - 1) // 10 * 10 + 1  # the state is kept every 10 steps, after the step was looked at


def test_what_was_saved_for_another_purpose_is_left_alone(snapshot: Snapshot, short, tmp_path: Path) -> None:
    material, rows = material_of(snapshot, short), snapshot.train
    network = new_network(material, rows, short, 0)
    fit(network, material, rows, short, 20, 0, saved=Saved(tmp_path / "fit", "one"))
    steps: list[int] = []
    other = Saved(tmp_path / "fit", "other")
    fit(new_network(material, rows, short, 1), material, rows, short, 10, 1,
        after_step=lambda step, _: steps.append(step), saved=other)  # fmt: skip
    assert steps[0] == 1


def test_a_damaged_state_is_named(snapshot: Snapshot, short, tmp_path: Path) -> None:
    material, rows = material_of(snapshot, short), snapshot.train
    saved = Saved(tmp_path / "fit.safetensors", "one")
    fit(new_network(material, rows, short, 0), material, rows, short, 10, 0, saved=saved)
    content = saved.path.read_bytes()
    saved.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LearningError, match=r"fit\.safetensors: damaged .*begins anew"):
        fit(new_network(material, rows, short, 0), material, rows, short, 10, 0, saved=saved)


def test_a_run_killed_between_folds_trains_only_what_is_left(
    snapshot: Snapshot, short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(snapshot, short)
    run, runs = selection._run_fold, []

    def counted(*given) -> None:
        runs.append(given[-1])
        if len(runs) == 2:
            raise Killed
        run(*given)

    monkeypatch.setattr(selection, "_run_fold", counted)
    with pytest.raises(Killed):
        train(snapshot, short, work=tmp_path / "work")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["fold-0.npz"]
    runs.append(-1)  # past the killing
    again = train(snapshot, short, work=tmp_path / "work")
    assert runs[3:] == [short.training.seed + 2]  # the second fold, the first is not trained again
    assert same(state(again.network), state(whole.network))
    assert again.chosen == whole.chosen
    assert list((tmp_path / "work").iterdir()) == []


def test_a_fold_of_other_settings_is_not_taken(snapshot: Snapshot, short, with_params, tmp_path: Path) -> None:
    from ruvllm.learning.work import WorkFolder, purpose_of

    material = material_of(snapshot, short)
    first = WorkFolder(tmp_path, purpose_of(snapshot, short, None))
    selection.out_of_fold(material, short, training.silent, first)
    other = with_params(training={"steps": 40, "check_every": 10, "folds": 2, "seed": 5}, compression={"kept": 1.0})
    assert purpose_of(snapshot, other, None) != first.purpose
    found = selection.out_of_fold(material, short, training.silent, first)
    assert not WorkFolder(tmp_path, purpose_of(snapshot, other, None)).read_fold(0, np.zeros(24, dtype=bool), found)
    (tmp_path / "fold-0.npz").write_bytes(b"PK\x03\x04 not a fold")
    with pytest.raises(LearningError, match=r"fold-0\.npz: damaged"):
        selection.out_of_fold(material, short, training.silent, first)


def test_the_command_takes_a_work_folder(first_night: Path, tmp_path: Path, quick) -> None:
    import json

    import yaml

    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(json.loads(json.dumps(quick.as_dict()))))
    training.main([
        "--snapshot", str(first_night / "snapshot.npz"), "--params", str(params), "--out", str(tmp_path / "bundle"),
        "--metrics", str(tmp_path / "train.json"), "--work", str(tmp_path / "work"),
    ])  # fmt: skip
    assert list((tmp_path / "work").iterdir()) == []
    confidence = json.loads((tmp_path / "train.json").read_text())["confidence"]
    assert confidence["selective_risk"] == quick.selection.risk
    assert 0 <= confidence["selective_coverage"] <= 1
    assert load_snapshot(first_night / "snapshot.npz").digest
