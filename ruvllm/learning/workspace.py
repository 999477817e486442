"""Runs the pipeline (dvc.yaml) in a folder of its own: snapshot to figures. Trains nothing itself.

A second run with the same inputs does nothing; a run that was killed is taken up where dvc's lock says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruvllm.errors import LearningError
from ruvllm.learning import dvc
from ruvllm.learning.inputs import Given, Inputs, read_inputs
from ruvllm.learning.traffic import FILE
from ruvllm.progress import Progress, silent
from ruvllm.router.bundle import bundle_files, read_bundle
from ruvllm.router.durable import replace_file, write_folder
from ruvllm.settings import PROJECT_ROOT


@dataclass(frozen=True)
class PipelineResult:
    """What a run left in the workspace. `metrics` are metrics.json's and, measured apart, `decision_us`."""

    bundle: Path
    report: Path
    metrics: dict[str, Any]
    lock_sha256: str  # of dvc.lock: inputs, settings and outputs of every stage


def run_pipeline(
    workspace: Path,
    snapshot: Path,
    champion: Path | None,
    ewc: Path | None,
    version: str,
    progress: Progress = silent,
) -> PipelineResult:
    """Train a candidate on `snapshot` and evaluate it beside the champion, as `dvc repro` in `workspace`.

    Raises:
        LearningError: an input cannot be copied, another process runs the pipeline in this workspace, or a stage
            failed; the message ends with dvc's last lines.
        BundleError: the champion is not a whole bundle.
    """
    try:
        with dvc.ours(workspace):
            _fill(workspace, snapshot, champion, ewc, version)
            dvc.reproduce(workspace, progress)
    except OSError as error:
        raise LearningError(f"workspace {workspace}: {error}; free some space or mend its permissions") from error
    metrics = json.loads((workspace / "metrics.json").read_text(encoding="utf-8"))
    timings = json.loads((workspace / "timings.json").read_text(encoding="utf-8"))
    lock = (workspace / "dvc.lock").read_bytes()
    return PipelineResult(
        workspace / "bundle", workspace / "report.json", {**metrics, **timings}, hashlib.sha256(lock).hexdigest()
    )


def _fill(workspace: Path, snapshot: Path, champion: Path | None, ewc: Path | None, version: str) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        _copy(PROJECT_ROOT / name, workspace / name)
    _copy(snapshot, workspace / "snapshot.npz")
    if not (workspace / FILE).exists():
        replace_file(workspace / FILE, b"")  # no stored answers were given
    inputs = Inputs(
        version=version,
        created_at=_created_at(workspace, version),
        champion=_place_champion(champion, workspace) if champion else None,
        ewc=_place_ewc(ewc, workspace) if ewc else None,
    )
    replace_file(workspace / "inputs.json", inputs.to_json().encode())


def _copy(source: Path, target: Path) -> None:
    """The content of `source`, unless it is there already: dvc goes by content, we save the writing."""
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        replace_file(target, content)


def _created_at(workspace: Path, version: str) -> str:
    """When this version was first begun: a run that is taken up again keeps its day, and with it its bytes."""
    path = workspace / "inputs.json"
    if path.exists() and (earlier := read_inputs(path)).version == version:
        return earlier.created_at
    return datetime.now(UTC).isoformat(timespec="seconds")


def _place_champion(folder: Path, workspace: Path) -> Given:
    sha256 = read_bundle(folder).sha256
    target = workspace / "champion" / sha256
    if not target.exists():
        write_folder(target, bundle_files(folder, sha256))
    return Given(str(target.relative_to(workspace)), sha256)


def _place_ewc(path: Path, workspace: Path) -> Given:
    """Under its digest: the caller's file may be written anew after the next promotion."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    target = workspace / "ewc" / f"{sha256}.safetensors"
    if not target.exists():
        replace_file(target, content)
    return Given(str(target.relative_to(workspace)), sha256)
