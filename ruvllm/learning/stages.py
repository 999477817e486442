"""The pipeline's stages up to the bundle, as programs (dvc.yaml): each reads files and writes files.

    python -m ruvllm.learning.stages features --snapshot snapshot.npz --params params.yaml --inputs inputs.json \\
        --features features.npz

`train` adds --network, which it writes; `compress` --out and --metrics. `python -m ruvllm.learning.train` is all three
in one process, with the same bytes. Knows nothing of the database, MLflow or Prefect.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ruvllm.learning.command import run_command, say, single_thread
from ruvllm.learning.config import Config, load_config
from ruvllm.learning.data import Snapshot, load_snapshot
from ruvllm.learning.ewc import Ewc, load_ewc
from ruvllm.learning.inputs import read_inputs
from ruvllm.learning.learned import load_learned, purpose_of, save_learned
from ruvllm.learning.prepared import load_prepared, save_prepared
from ruvllm.learning.train import compress, learn, prepare, write, write_metrics

Stage = Callable[[argparse.Namespace, Snapshot, Config, Ewc | None], None]


def features_stage(given: argparse.Namespace, snapshot: Snapshot, config: Config, ewc: Ewc | None) -> None:
    """snapshot.npz -> features.npz."""
    save_prepared(prepare(snapshot, config, ewc), given.features)
    say(1, 1, f"features of {len(snapshot.features)} questions")


def train_stage(given: argparse.Namespace, snapshot: Snapshot, config: Config, ewc: Ewc | None) -> None:
    """features.npz -> network.safetensors."""
    prepared = load_prepared(given.features, snapshot, config, ewc)
    learned = learn(prepared, config, say)
    save_learned(learned, purpose_of(prepared, config), given.network)
    say(1, 1, f"trained on {len(snapshot.train)} questions, {learned.chosen.steps} steps")


def compress_stage(given: argparse.Namespace, snapshot: Snapshot, config: Config, ewc: Ewc | None) -> None:
    """network.safetensors -> the bundle, and train.json."""
    prepared = load_prepared(given.features, snapshot, config, ewc)
    trained = compress(prepared, load_learned(given.network, purpose_of(prepared, config), config), config)
    inputs = read_inputs(given.inputs)
    write(trained, config, inputs, given.out)
    write_metrics(trained, given.metrics)
    say(1, 1, f"router {inputs.version} in bytes")


STAGES: dict[str, tuple[Stage, tuple[str, ...]]] = {
    "features": (features_stage, ("features",)),
    "train": (train_stage, ("features", "network")),
    "compress": (compress_stage, ("features", "network", "out", "metrics")),
}
_GIVEN = ("snapshot", "params", "inputs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m ruvllm.learning.stages", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, (work, files) in STAGES.items():
        options = stages.add_parser(stage, help=work.__doc__)
        for name in (*_GIVEN, *files):
            options.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(arguments)
    single_thread()
    ewc = read_inputs(given.inputs).ewc
    STAGES[given.stage][0](
        given,
        load_snapshot(given.snapshot),
        load_config(given.params),
        load_ewc(given.inputs.parent / ewc.path) if ewc else None,
    )


if __name__ == "__main__":
    run_command(main)
