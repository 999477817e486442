"""`python -m ruvllm.learning.train`: snapshot in, router bundle out. Knows nothing of the database, MLflow or Prefect.

Steps, caution and calibration are chosen on out-of-fold decisions; the network that is exported is then trained on all
training rows. With an EWC state it starts from the anchor, keeps its scaling and transforms, and pays the penalty.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ruvllm.errors import LearningError
from ruvllm.inference.types import BINS
from ruvllm.learning.checkpoint import save_checkpoint
from ruvllm.learning.command import run_command, say, single_thread
from ruvllm.learning.compress import AfterStep, Compressed, in_bytes, sparse
from ruvllm.learning.config import Config, load_config
from ruvllm.learning.data import Array, Snapshot, features_for, fit_feature_transforms, load_snapshot
from ruvllm.learning.ewc import Ewc, Origin, load_ewc
from ruvllm.learning.fit import Material, Normaliser, fit, make_normaliser, new_network
from ruvllm.learning.inputs import Inputs, read_inputs
from ruvllm.learning.selection import Chosen, choose, out_of_fold
from ruvllm.learning.targets import degenerate, make_targets
from ruvllm.learning.work import WorkFolder, purpose_of
from ruvllm.progress import Progress, silent
from ruvllm.router.bundle import Compact, Golden, write_bundle
from ruvllm.router.compact import size_of
from ruvllm.router.fastgrnn import RouterNetwork
from ruvllm.router.manifest import Calibration, Deciding, Manifest
from ruvllm.router.transforms import Transforms

_GOLDEN_ROWS = 16
_SAMPLING_NOTE = (
    "temperature and top_p: no sampling grid was run, so their labels are the task type's default (0.0 and 1.0)"
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a training starts from: the features as this router will see them, and the state that it starts on."""

    material: Material
    transforms: Transforms | None
    ewc: Ewc | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Learned:
    """A network as it was trained, and what was chosen for it; caution and calibration are not in its biases yet."""

    network: RouterNetwork
    chosen: Chosen


@dataclass(frozen=True, eq=False)
class Trained:
    """A calibrated network and what its bundle needs to say."""

    network: RouterNetwork
    chosen: Chosen
    material: Material
    transforms: Transforms | None
    warnings: tuple[str, ...]
    anchored: bool  # on an EWC state
    compressed: Compressed | None = None


def train(
    snapshot: Snapshot, config: Config, ewc: Ewc | None = None, show: Progress = silent, work: Path | None = None
) -> Trained:
    """Train on a snapshot's training rows: the three stages one after another. Deterministic on one torch thread.

    With the folder `work` a run that was killed is taken up again: finished folds are kept there, and the last fit
    every few steps; it is emptied at the end.

    Raises:
        LearningError: too few rows, or the EWC state has other shapes.
    """
    prepared = prepare(snapshot, config, ewc)
    kept = work_folder(work, prepared, config)
    trained = compress(prepared, learn(prepared, config, show, kept), config)
    if kept is not None:
        kept.remove()
    return trained


def prepare(snapshot: Snapshot, config: Config, ewc: Ewc | None = None) -> Prepared:
    """First stage: fit transforms and scaling, or keep those of the EWC state, where that fits this snapshot.

    Raises:
        LearningError: too few rows.
    """
    snapshot.require_training()
    ewc, warnings = usable(ewc, snapshot, config)
    transforms, material = _material(snapshot, config, ewc)
    return Prepared(material, transforms, ewc, tuple(warnings))


def work_folder(folder: Path | None, prepared: Prepared, config: Config) -> WorkFolder | None:
    """Where a training that may be killed keeps what it has finished."""
    if folder is None:
        return None
    return WorkFolder(folder, purpose_of(prepared.material.snapshot, config, prepared.ewc))


def learn(prepared: Prepared, config: Config, show: Progress = silent, kept: WorkFolder | None = None) -> Learned:
    """Second stage: choose out of fold, then fit on every training row.

    Raises:
        LearningError: the EWC state has other shapes.
    """
    material, ewc = prepared.material, prepared.ewc
    rows, seed = material.snapshot.train, config.training.seed
    chosen = choose(out_of_fold(material, config, show, kept), material, config)
    network = new_network(material, rows, config, seed)
    if ewc is not None:
        _start_from(network, ewc)
    saved = kept.last_fit() if kept is not None else None
    fit(network, material, rows, config, chosen.steps, seed, ewc, saved=saved)
    return Learned(network, chosen)


def compress(prepared: Prepared, learned: Learned, config: Config) -> Trained:
    """Third stage: the network's bytes where the settings ask for them; caution and calibration go into the biases."""
    material, network, chosen = prepared.material, learned.network, learned.chosen
    slim = _slim(network, material, config, prepared.ewc)
    _apply(chosen, network)
    if slim is not None:
        _apply(chosen, slim)
    warnings = (*prepared.warnings, *degenerate(material.snapshot, material.targets), _SAMPLING_NOTE)
    compressed = in_bytes(slim) if slim is not None else None
    return Trained(network, chosen, material, prepared.transforms, warnings, prepared.ewc is not None, compressed)


def _slim(network: RouterNetwork, material: Material, config: Config, ewc: Ewc | None) -> RouterNetwork | None:
    """The paper's second and third phase, where the settings ask for them."""
    if config.compression.kept == 1:
        return None

    def go_on(slim: RouterNetwork, steps: int, after_step: AfterStep) -> None:
        rows, seed = material.snapshot.train, config.training.seed
        fit(slim, material, rows, config, steps, seed, ewc, after_step=after_step)

    return sparse(network, go_on, config.compression)


def usable(ewc: Ewc | None, snapshot: Snapshot, config: Config) -> tuple[Ewc | None, list[str]]:
    """The state, unless it is of another ladder, encoder, layout or cell: then training starts anew and says so."""
    if ewc is None:
        return None, []
    mine = Origin("", snapshot.ladder, snapshot.tiers, snapshot.encoder_id, snapshot.layout_hash, config.router.variant)
    if differs := ewc.origin.differs(mine):
        return None, [f"EWC state of router {ewc.origin.version} is not used: it differs in {', '.join(differs)}"]
    return ewc, []


def _material(snapshot: Snapshot, config: Config, ewc: Ewc | None) -> tuple[Transforms | None, Material]:
    transforms = Transforms(**ewc.transforms) if ewc and ewc.transforms else None
    transforms = transforms or fit_feature_transforms(snapshot, config.training.seed)
    features = features_for(snapshot, transforms)
    scaling = make_normaliser(features[snapshot.train], config.features)
    if ewc is not None:
        names = ("feature_mean", "feature_scale", "feature_mask")
        scaling = scaling.keep(Normaliser(*(ewc.buffers[name] for name in names)))
    return transforms, Material(snapshot, make_targets(snapshot), features, scaling)


def _start_from(network: RouterNetwork, ewc: Ewc) -> None:
    parameters = dict(network.named_parameters())
    ewc.loss(parameters)  # refuses other shapes
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.as_tensor(ewc.anchor[name]))


def _apply(chosen: Chosen, network: RouterNetwork) -> None:
    """Caution and the calibration's intercept become part of the biases."""
    tier, context = chosen.fixed
    network.tier_shift[tier] += chosen.caution
    network.bin_shift[context] += chosen.caution
    network.confidence_shift += chosen.intercept / chosen.slope


def write(trained: Trained, config: Config, inputs: Inputs, folder: Path) -> str:
    """Write the bundle and, beside it, training.safetensors; returns the bundle's digest.

    Raises:
        BundleError: the folder is there, or the disk is full.
    """
    snapshot, chosen = trained.material.snapshot, trained.chosen
    calibration = Calibration(1.0 / chosen.slope, chosen.threshold, _calibration_details(chosen))
    manifest = Manifest(
        version=inputs.version,
        created_at=inputs.created_at,
        ladder=snapshot.ladder,
        tiers=snapshot.tiers,
        variant=config.router.variant,
        hidden=config.router.hidden,
        layout_hash=snapshot.layout_hash,
        encoder_id=snapshot.encoder_id,
        snapshot=snapshot.digest,
        metrics=_figures(trained),
        calibration=calibration,
        deciding=Deciding(config.router.decides, snapshot.latency_weight, snapshot.cost_weight, config.loss.tempered),
    )
    golden = make_golden(trained.network, trained.material.features, calibration.temperature)
    sha256 = write_bundle(
        folder, trained.network.export_arrays(), manifest, golden=golden, transforms=trained.transforms,
        compact=_compact(trained, calibration.temperature),
    )  # fmt: skip
    save_checkpoint(folder, trained.network, config, trained.warnings, sha256)
    return sha256


def _calibration_details(chosen: Chosen) -> dict[str, float]:
    """How often the fallback acts, and from which confidence on which error rate is promised."""
    promised = {name: float(getattr(chosen.selective, name)) for name in ("threshold", "coverage", "risk", "delta")}
    return {"fallback_rate": chosen.fallback_rate, **{f"selective_{name}": value for name, value in promised.items()}}


def _compact(trained: Trained, temperature: float) -> Compact | None:
    if trained.compressed is None:
        return None
    golden = make_golden(trained.compressed.network, trained.material.features, temperature)
    return Compact(trained.compressed.packed, golden)


def make_golden(network: RouterNetwork, features: Array, temperature: float) -> Golden:
    """16 rows through torch in double precision, every second one behind an earlier turn."""
    exact = copy.deepcopy(network).double()
    rows = np.linspace(0, len(features) - 1, _GOLDEN_ROWS).astype(int)
    given = features[rows]
    with torch.no_grad():
        x = exact.normalise(torch.as_tensor(given).double())
        hidden = exact.step(x, exact.first_hidden(_GOLDEN_ROWS)).roll(1, 0).float()
        hidden[::2] = 0
        following = exact.step(x, hidden.double())
        outputs = exact.read(following, x, all_bins=True)
    results = (
        outputs.choice.softmax(dim=1),
        outputs.context.softmax(dim=1),
        outputs.temperature,
        outputs.top_p,
        torch.sigmoid(outputs.confidence / temperature),
        torch.sigmoid(outputs.quality),
        outputs.utility,
        following,
    )
    return Golden(given, hidden.numpy(), *(result.numpy().astype(np.float32) for result in results))


def _figures(trained: Trained) -> dict[str, float]:
    snapshot, chosen = trained.material.snapshot, trained.chosen
    return {
        "n_train": float(len(snapshot.train)),
        "steps": float(chosen.steps),
        "caution": chosen.caution,
        "out_of_fold_utility": chosen.utility,
        "out_of_fold_utility_best_fixed": chosen.utility_fixed,
        "anchored": float(trained.anchored),
        **({} if trained.compressed is None else {"compact_bytes": float(size_of(trained.compressed.packed).total)}),
    }


def metrics_of(trained: Trained) -> dict[str, Any]:
    """train.json: what was chosen and why; no times, so that a repeated run writes the same bytes."""
    tier, context = trained.chosen.fixed
    return {
        **_figures(trained),
        "best_fixed": {"tier": trained.material.snapshot.tiers[tier], "context_bin": BINS[context]},
        "confidence": {
            "temperature": 1.0 / trained.chosen.slope,
            "threshold": trained.chosen.threshold,
            **_calibration_details(trained.chosen),
        },
        "features_used": int(trained.material.normaliser.mask.sum()),
        "warnings": list(trained.warnings),
    }


def write_metrics(trained: Trained, path: Path) -> None:
    """train.json."""
    path.write_text(json.dumps(metrics_of(trained), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(prog="python -m ruvllm.learning.train", description=__doc__)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder, must not be there")
    parser.add_argument("--metrics", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, help="inputs.json; stands for --version and --ewc")
    parser.add_argument("--ewc", type=Path, help="EWC state to start from")
    parser.add_argument("--version", default="router")
    parser.add_argument("--work", type=Path, help="folder of a run that may be killed; it goes on from there")
    given = parser.parse_args(arguments)
    single_thread()
    snapshot, config = load_snapshot(given.snapshot), load_config(given.params)
    inputs, ewc = _inputs(given)
    trained = train(snapshot, config, load_ewc(ewc) if ewc else None, say, given.work)
    write(trained, config, inputs, given.out)
    write_metrics(trained, given.metrics)
    say(1, 1, f"router {inputs.version} trained on {len(snapshot.train)} questions, {trained.chosen.steps} steps")


def _inputs(given: argparse.Namespace) -> tuple[Inputs, Path | None]:
    if given.inputs is None:
        return Inputs(given.version, datetime.now(UTC).isoformat(timespec="seconds")), given.ewc
    if given.ewc is not None:
        raise LearningError("--ewc and --inputs: got both, want one; inputs.json names the EWC state")
    inputs = read_inputs(given.inputs)
    return inputs, given.inputs.parent / inputs.ewc.path if inputs.ewc else None


if __name__ == "__main__":
    run_command(main)
