"""How long a training takes, and how that grows: seconds a pass over 1 K to 1 M rows, all of it at 10 K.

    python -m pytest -m benchmark tests/benchmarks/router/test_training.py --keep FOLDER

One thread, each size in a process of its own (training_child.py). A pass is as many steps as see
every row once. The largest size takes about 4 GB and two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ruvllm.settings import PROJECT_ROOT
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark

SIZES = (1_000, 10_000, 100_000, 1_000_000)
WHOLE = 10_000
_SECONDS, _MIB = 60.0, 1024.0
_LINEAR = 1.5  # seconds a row at the largest size against the least of the smaller ones


def measured(what: str, n: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.router.training_child", what, str(n)],
        cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


def test_training(out: Path, command: str) -> None:
    report = Report("training", out, conditions(n=max(SIZES), command=command))
    each = [measured("epochs", n) for n in SIZES]
    rows = [
        (f"{one['rows']:,}", round(one["seconds_an_epoch"], 4), round(1e6 * one["seconds_an_epoch"] / one["rows"], 2),
         round(one["peak_mib"]))
        for one in each
    ]  # fmt: skip
    report.table("A pass over all rows, one thread", ("rows", "seconds", "us a row", "peak RSS MiB"), rows,
                 "By the median of 10 steps; the peak holds the snapshot and torch.")  # fmt: skip
    all_of_it = measured("whole", WHOLE)
    report.table(
        f"A whole training on {WHOLE:,} rows", ("seconds", "CPU seconds", "steps of the last fit", "peak RSS MiB"),
        [(round(all_of_it["seconds"], 1), round(all_of_it["cpu_seconds"], 1), all_of_it["steps"],
          round(all_of_it["peak_mib"]))],
        "Choosing out of five folds, fitting on all rows, weights in bytes.",
    )  # fmt: skip
    a_row = [one["seconds_an_epoch"] / one["rows"] for one in each]
    growth = a_row[-1] / min(a_row[1:])
    report.target("training on 10,000 rows", "< 60 s", f"{all_of_it['seconds']:.1f} s", all_of_it["seconds"] < _SECONDS)
    report.target("its memory", "< 1 GB", f"{all_of_it['peak_mib']:.0f} MiB at its peak", all_of_it["peak_mib"] < _MIB)
    report.target("linear in rows, 10 K to 1 M", f"<= {_LINEAR} x a row", f"{growth:.2f} x", growth <= _LINEAR)
