"""One training measured in a process of its own, so that its peak of memory is its own. Prints one line of JSON.

    python -m tests.benchmarks.router.training_child epochs 100000
    python -m tests.benchmarks.router.training_child whole 10000

The rows are made up: how long a step takes does not depend on what they say. Ten thousand different ones, told again
with other keys, groups and sessions where more are asked for.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ruvllm.learning.command import single_thread
from ruvllm.learning.config import load_config
from ruvllm.learning.data import Snapshot, load_snapshot
from ruvllm.learning.fake import Arrays, fake_arrays
from ruvllm.learning.fit import fit, make_batch, new_network
from ruvllm.learning.train import prepare, train
from ruvllm.settings import PROJECT_ROOT

_MADE = 10_000
_HELD = 30
_STEPS = 10


def told_again(arrays: Arrays, times: int) -> Arrays:
    """The training rows `times` over, each time as other questions of other groups and sessions."""
    n = len(arrays["keys"])
    rows = np.flatnonzero(arrays["split"] == 0)
    order = np.concatenate([np.tile(rows, times), np.flatnonzero(arrays["split"] == 1)])
    turn = np.concatenate([np.repeat(np.arange(times), len(rows)), np.zeros(n - len(rows), dtype=int)])
    found = {
        name: values[order] if len(values.shape) and len(values) == n else values for name, values in arrays.items()
    }
    turn = np.char.add("/", turn.astype(str))
    found["keys"] = np.char.add(found["keys"], turn)
    found["group"] = np.char.add(found["group"], turn)
    found["session"] = np.where(found["session"] == "", "", np.char.add(found["session"], turn))
    return found


def snapshot_of(n: int) -> Snapshot:
    """n training rows, through the file that a night writes."""
    made = fake_arrays(min(n, _MADE), _HELD)
    arrays = told_again(made, n // _MADE) if n > _MADE else made
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for an array
        return load_snapshot(path)


def epochs(n: int) -> dict[str, float]:
    """Seconds of as many steps as see every row once, by the median step."""
    config = load_config(PROJECT_ROOT / "params.yaml")
    material = prepare(snapshot_of(n), config).material
    rows, seed = material.snapshot.train, config.training.seed
    network = new_network(material, rows, config, seed)
    stamps: list[float] = []
    fit(network, material, rows, config, _STEPS + 1, seed, after_step=lambda *_: stamps.append(time.perf_counter()))
    step = statistics.median(np.diff(stamps).tolist())  # the first one is left out
    sessions = len(make_batch(material, rows).valid)
    return {"rows": len(rows), "seconds_an_epoch": step * max(1.0, sessions / (config.training.batch or sessions))}


def whole(n: int) -> dict[str, float]:
    """All of a training: choosing out of fold, fitting, weights in bytes."""
    config = load_config(PROJECT_ROOT / "params.yaml")
    snapshot = snapshot_of(n)
    began, cpu = time.perf_counter(), time.process_time()
    trained = train(snapshot, config)
    return {
        "rows": len(snapshot.train),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "steps": trained.chosen.steps,
    }


def main() -> None:
    """Measure, then say the peak too."""
    single_thread()
    what, n = sys.argv[1], int(sys.argv[2])
    found = {"epochs": epochs, "whole": whole}[what](n)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak_mib": peak}))


if __name__ == "__main__":
    main()
