"""dvc.yaml: every command, path and parameter in it exists, and its figures are drawn."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ruvllm.errors import LearningError
from ruvllm.learning.stages import STAGES as PROGRAMS
from ruvllm.reporting import plots
from ruvllm.settings import PROJECT_ROOT
from tests.registry.conftest import make_report

STAGES: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "params.yaml").read_text())
GIVEN = {"snapshot.npz", "inputs.json", "traffic.npz"}  # what ruvllm/learning/workspace.py puts there


def outputs(stage: dict[str, Any]) -> set[str]:
    listed = [*stage.get("outs", []), *stage.get("metrics", [])]
    return {name for each in listed for name in ([each] if isinstance(each, str) else each)}


@pytest.mark.parametrize("name", STAGES)
def test_commands_and_their_options_are_there(name: str) -> None:
    module, options = re.match(r"python -m (\S+)(.*)", STAGES[name]["cmd"]).groups()  # type: ignore[union-attr]
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    for option in re.findall(r"--(\w+)", options):
        assert re.search(rf'"(--)?{option}"', source), option


def test_the_pipeline_has_the_stages_of_the_specification() -> None:
    assert list(STAGES) == ["features", "train", "compress", "evaluate", "figures"]  # the snapshot is given
    for name in ("features", "train", "compress"):
        assert f"ruvllm.learning.stages {name} " in STAGES[name]["cmd"]
        named = set(re.findall(r"--(\w+)", STAGES[name]["cmd"]))
        assert named == {"snapshot", "params", "inputs", *PROGRAMS[name][1]}


def test_stages_read_what_is_given_or_made_before_and_name_what_they_make() -> None:
    there = set(GIVEN)
    for name, stage in STAGES.items():
        assert set(stage["deps"]) <= there, name
        assert all(output in stage["cmd"] for output in outputs(stage)), name
        there |= outputs(stage)


@pytest.mark.parametrize("name", STAGES)
def test_parameters_are_those_of_the_file(name: str) -> None:
    for path in STAGES[name].get("params", []):
        found: Any = PARAMS
        for key in path.split("."):
            found = found[key]
        assert found is not None


def test_a_changed_setting_of_any_section_makes_a_stage_run_again() -> None:
    """dvc compares only the parameters that a stage lists."""
    listed = {path.split(".")[0] for stage in STAGES.values() for path in stage.get("params", [])}
    assert listed == set(PARAMS)


def test_the_figures_of_an_evaluation_are_drawn_alike_twice(tmp_path: Path) -> None:
    report = {**make_report(), "calibration": {"ece": 0.1, "n": 9, "bins": [{"n": 9, "said": 0.5, "right": 0.6}]}}
    report["per_domain"] = {"people": {"n": 9, "accuracy_tier": 0.7}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.svg").write_text("of another run")
    arguments = ["--report", str(tmp_path / "report.json"), "--out", str(tmp_path / "figures")]
    plots.main(arguments)
    first = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert set(first) == {"regret.svg", "accuracy.svg", "calibration.svg"}
    assert all(content.startswith(b"<svg") for content in first.values())
    plots.main(arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == first
    (tmp_path / "report.json").unlink()
    with pytest.raises(LearningError, match="run the stage evaluate first"):
        plots.main(arguments)
