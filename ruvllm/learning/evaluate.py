"""`python -m ruvllm.learning.evaluate`: snapshot and bundle in, report.json out. Trains nothing.

The candidate, the champion and the baselines decide the same held-out questions; report.py says what is reported. Times
go to a file of their own, so that a repeated run writes the same report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ruvllm.errors import BundleError, LearningError
from ruvllm.learning.baselines import logistic
from ruvllm.learning.checkpoint import Checkpoint, load_checkpoint
from ruvllm.learning.command import run_command, say, single_thread
from ruvllm.learning.config import Config, load_config
from ruvllm.learning.data import Array, Snapshot, features_for, load_snapshot
from ruvllm.learning.fit import Material, Normaliser, forward, make_batch
from ruvllm.learning.inputs import read_inputs
from ruvllm.learning.off_policy import off_policy_report
from ruvllm.learning.report import Contest, Report, Settings, importance_report, make_report
from ruvllm.learning.routing import decision_times, route
from ruvllm.learning.targets import Pairs, Targets, degenerate, make_targets, take
from ruvllm.learning.traffic import Traffic, load_traffic
from ruvllm.router.runtime import RouterRuntime


def evaluate(
    snapshot: Snapshot, folder: Path, champion: Path | None, config: Config, traffic: Traffic | None = None
) -> Report:
    """The report on the bundle in `folder`, which has to be the trainer's; `traffic` adds the off-policy estimate.

    Raises:
        BundleError: the bundle is not whole, or its golden vectors do not come out.
        LearningError: no question is held out, or the bundle is of another ladder.
    """
    if not len(snapshot.test):
        raise LearningError("snapshot: no held-out question, want at least one; collect more (ruvllm cycle)")
    runtime, checkpoint, targets = RouterRuntime.load(folder), load_checkpoint(folder), make_targets(snapshot)
    _require(runtime, snapshot)
    serving, warnings = _champion(champion, snapshot)
    material = _material(snapshot, targets, checkpoint)
    every = np.arange(len(snapshot.keys))
    settings = config.evaluation
    contest = Contest(
        candidate=route(runtime, snapshot, every),
        champion=route(serving, snapshot, every) if serving else None,
        logistic=logistic(
            material.normaliser.apply(material.features), targets, snapshot.train, snapshot,
            settings.logistic_c, checkpoint.config.loss.weight_floor,
        ),
    )  # fmt: skip
    warnings = [*checkpoint.warnings, *degenerate(snapshot, targets), *warnings]
    judged = Settings(config.loss.epsilon, settings.resamples, settings.seed)
    report = make_report(snapshot, targets, contest, judged, list(dict.fromkeys(warnings)))
    report["importance"] = importance_report(
        snapshot, targets, material.features, _decider(runtime, snapshot, material.features), judged
    )
    if runtime.has_compact:
        report["compact"] = _compact_report(
            RouterRuntime.load(folder, compact=True), contest, report, snapshot, targets
        )
    report["fallback"] = _fallback_report(runtime, contest, snapshot, targets)
    if traffic is not None:
        report["off_policy"] = off_policy_report(traffic, runtime, serving, settings.seed, settings.resamples)
    return {**report, "golden_max_error": torch_difference(runtime, checkpoint, material), "golden_n": len(every)}


def _fallback_report(runtime: RouterRuntime, contest: Contest, snapshot: Snapshot, targets: Targets) -> Report:
    """How often it acts, and what it brought in utility and cost against the heads' own choice (held-out questions)."""
    rows = snapshot.test
    served, own = contest.candidate.pairs[rows], contest.candidate.heads[rows]
    cost = snapshot.cost[rows].astype(np.float64)
    return {
        "rate": contest.candidate.fell_back,
        "threshold": runtime.threshold,
        "gained": float((take(targets.utility[rows], served) - take(targets.utility[rows], own)).mean()),
        "cost": float((take(cost, served) - take(cost, own)).mean()),
        "promise": dict(runtime.manifest.calibration.details),
    }


def _compact_report(
    compact: RouterRuntime, contest: Contest, report: Report, snapshot: Snapshot, targets: Targets
) -> Report:
    """What the weights in bytes cost on the held-out questions, against the same router's floats."""
    pairs = route(compact, snapshot, snapshot.test).pairs
    utility = float(take(targets.utility[snapshot.test], pairs).mean())
    return {
        "bytes": compact.manifest.metrics.get("compact_bytes", 0.0),
        "same_decisions": float((pairs == contest.candidate.pairs[snapshot.test]).all(axis=1).mean()),
        "utility": utility,
        "utility_lost": report["policies"]["fastgrnn"]["utility"] - utility,
        "n": len(snapshot.test),
    }


def _decider(runtime: RouterRuntime, snapshot: Snapshot, features: Array) -> Callable[[Array], Pairs]:
    """The router's decisions on the held-out questions, were their features (m, 128) the given ones."""

    def decide(given: Array) -> Pairs:
        changed = features.copy()
        changed[snapshot.test] = given
        return route(runtime, snapshot, snapshot.test, changed).pairs

    return decide


def _champion(folder: Path | None, snapshot: Snapshot) -> tuple[RouterRuntime | None, list[str]]:
    """The champion, unless it cannot route these questions: then the report says so and compares with none."""
    if folder is None:
        return None, []
    try:
        runtime = RouterRuntime.load(folder)
        _require(runtime, snapshot)
    except BundleError as error:
        return None, [f"the champion was not compared: {error}"]
    return runtime, []


def _require(runtime: RouterRuntime, snapshot: Snapshot) -> None:
    runtime.require(snapshot.ladder, [name for name in snapshot.tiers if name], snapshot.encoder_id)


def _material(snapshot: Snapshot, targets: Targets, checkpoint: Checkpoint) -> Material:
    names = ("feature_mean", "feature_scale", "feature_mask")
    scaling = Normaliser(*(getattr(checkpoint.network, name).numpy() for name in names))
    return Material(snapshot, targets, features_for(snapshot, checkpoint.bundle.transforms), scaling)


def torch_difference(runtime: RouterRuntime, checkpoint: Checkpoint, material: Material) -> float:
    """Largest difference between the trained network and the serving runtime over all questions, hidden states carried.

    Compared are both heads' probabilities and the confidence, the network in double precision.
    """
    snapshot = material.snapshot
    network = checkpoint.network.double()
    batch = make_batch(material, np.arange(len(snapshot.keys)))
    wide = network.normalise(torch.as_tensor(material.features).double())
    x = torch.zeros_like(batch.x, dtype=torch.float64)
    x[batch.valid] = wide[torch.as_tensor(batch.rows)]
    with torch.no_grad():
        outputs = forward(network, type(batch)(x, batch.valid, batch.rows))
        confidence = torch.sigmoid(outputs.confidence / runtime.manifest.calibration.temperature)
        wanted = [outputs.choice.softmax(dim=1).numpy(), outputs.context.softmax(dim=1).numpy(), confidence.numpy()]
    served = route(runtime, snapshot, batch.rows)
    got = (served.model_probs, served.context_probs, served.confidence)
    return max(float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True))


def metrics_of(report: Report) -> dict[str, float | int]:
    """metrics.json: the figures that one looks at first."""
    router, fixed = report["policies"]["fastgrnn"], report["policies"]["best-fixed"]
    return {
        "n_train": report["n_train"],
        "n_test": report["n_test"],
        "utility": router["utility"],
        "utility_regret": router["regret"]["utility"]["mean"],
        "utility_regret_best_fixed": fixed["regret"]["utility"]["mean"],
        "accuracy_tier": router["accuracy_tier"],
        "accuracy_pair": router["accuracy_pair"],
        "accuracy_tier_seen": report["seen"]["accuracy_tier"],
        "ece": report["calibration"]["ece"],
        "cost_saved": report["cost_saved"],
        "golden_max_error": report["golden_max_error"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, evaluate, write."""
    parser = argparse.ArgumentParser(prog="python -m ruvllm.learning.evaluate", description=__doc__)
    for name in ("--snapshot", "--bundle", "--params", "--out", "--metrics"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--inputs", type=Path, help="inputs.json; stands for --champion")
    parser.add_argument("--champion", type=Path, help="the bundle that serves now")
    parser.add_argument("--timings", type=Path, help="where the times of a decision go")
    parser.add_argument("--traffic", type=Path, help="stored answers, for the off-policy estimate; an empty file: none")
    given = parser.parse_args(arguments)
    single_thread()
    snapshot, config = load_snapshot(given.snapshot), load_config(given.params)
    report = evaluate(snapshot, given.bundle, _champion_path(given), config, _traffic(given.traffic))
    _write(given.out, report)
    _write(given.metrics, metrics_of(report))
    if given.timings is not None:
        runtime = RouterRuntime.load(given.bundle)
        features = features_for(snapshot, runtime.transforms)[snapshot.test]
        _write(given.timings, {"decision_us": decision_times(runtime, features, config.evaluation.timing_calls)})
    regret = report["policies"]["fastgrnn"]["regret"]["utility"]["mean"]
    say(1, 1, f"evaluated on {report['n_test']} held-out questions, utility regret {regret:.3f}")


def _champion_path(given: argparse.Namespace) -> Path | None:
    if given.inputs is None:
        champion: Path | None = given.champion
        return champion
    if given.champion is not None:
        raise LearningError("--champion and --inputs: got both, want one; inputs.json names the champion")
    inputs = read_inputs(given.inputs)
    return Path(given.inputs.parent / inputs.champion.path) if inputs.champion else None


def _traffic(path: Path | None) -> Traffic | None:
    """A pipeline always has the file; before the first answers there is nothing in it."""
    if path is None or (path.is_file() and path.stat().st_size == 0):
        return None
    return load_traffic(path)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
