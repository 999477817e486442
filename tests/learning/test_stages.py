"""The pipeline's stages as programs: the bytes of a training in one process, and files that are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ruvllm.errors import LearningError
from ruvllm.learning import stages
from ruvllm.learning import train as training
from ruvllm.learning.ewc import consolidate_bundle, load_ewc
from ruvllm.learning.fake import fake_arrays, write_fake_snapshot
from ruvllm.learning.inputs import Given, Inputs
from ruvllm.learning.learned import SECTIONS, load_learned, purpose_of
from ruvllm.learning.prepared import load_prepared, save_prepared
from ruvllm.settings import PROJECT_ROOT


@pytest.fixture
def workspace(tmp_path: Path, quick, first_night: Path) -> Path:
    """snapshot.npz, params.yaml and inputs.json of a second night: the training begins at an EWC state."""
    write_fake_snapshot(tmp_path / "snapshot.npz", fake_arrays(30, 12, seed=4))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(quick.as_dict()))
    consolidated = consolidate_bundle(first_night / "bundle", first_night / "snapshot.npz")
    (tmp_path / "state").write_bytes(consolidated.state)
    inputs = Inputs("second", "2026-01-02T00:00:00+00:00", ewc=Given("state", consolidated.sha256))
    (tmp_path / "inputs.json").write_text(inputs.to_json())
    return tmp_path


def options(folder: Path, **files: str) -> list[str]:
    names = {"snapshot": "snapshot.npz", "params": "params.yaml", "inputs": "inputs.json", **files}
    return [word for name, file in names.items() for word in (f"--{name}", str(folder / file))]


def test_stage_by_stage_gives_the_bytes_of_one_process(workspace: Path):
    files = {"features": "features.npz"}
    stages.main(["features", *options(workspace, **files)])
    files["network"] = "network.safetensors"
    stages.main(["train", *options(workspace, **files)])
    stages.main(["compress", *options(workspace, **files, out="staged", metrics="staged.json")])
    training.main(options(workspace, out="whole", metrics="whole.json"))
    made = {path.name: path.read_bytes() for path in (workspace / "staged").iterdir()}
    assert "training.safetensors" in made
    assert made == {path.name: path.read_bytes() for path in (workspace / "whole").iterdir()}
    assert (workspace / "staged.json").read_bytes() == (workspace / "whole.json").read_bytes()


def test_files_of_other_data_or_settings_are_refused(workspace: Path, quick, with_params):
    snapshot = stages.load_snapshot(workspace / "snapshot.npz")
    prepared = training.prepare(snapshot, quick, load_ewc(workspace / "state"))
    save_prepared(prepared, workspace / "features.npz")
    again = load_prepared(workspace / "features.npz", snapshot, quick, prepared.ewc)
    assert (again.material.features == prepared.material.features).all()
    other = write_fake_snapshot(workspace / "other.npz", fake_arrays(30, 12, seed=5))
    with pytest.raises(LearningError, match="run the stage features again"):
        load_prepared(workspace / "features.npz", other, quick, None)

    stages.main(["train", *options(workspace, features="features.npz", network="network")])
    load_learned(workspace / "network", purpose_of(prepared, quick), quick)
    for changed in (
        purpose_of(replace(prepared, ewc=None), quick),
        purpose_of(prepared, with_params(loss={"top_k": 2})),
    ):
        with pytest.raises(LearningError, match="other data or settings; run the stage train again"):
            load_learned(workspace / "network", changed, quick)


def test_a_file_that_is_cut_off_names_the_stage_to_run(workspace: Path, quick):
    snapshot = stages.load_snapshot(workspace / "snapshot.npz")
    path = workspace / "cut"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(LearningError, match="run the stage features again"):
        load_prepared(path, snapshot, quick, None)
    with pytest.raises(LearningError, match="run the stage train again"):
        load_learned(path, "", quick)


def test_the_stage_train_lists_the_settings_that_it_is_bound_to():
    stage = yaml.safe_load((PROJECT_ROOT / "dvc.yaml").read_text())["stages"]["train"]
    assert tuple(stage["params"]) == SECTIONS
