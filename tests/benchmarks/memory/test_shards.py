"""Four servers and a coordinator on this machine: what a shard spends as nodes grow.

    python -m pytest -m benchmark tests/benchmarks/memory/test_shards.py --n 10000 --keep FOLDER

docs/scale.md is made by tests/benchmarks/memory/scale.py, which measures the same and keeps the figures.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ruvllm.memory.shards import simulate
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark


def test_four_shards(options: Options, report: Report) -> None:
    options.keep.mkdir(parents=True, exist_ok=True)
    options.keep.chmod(0o755)  # the servers' user enters it
    folder = options.keep / "shards"
    try:
        found = simulate(folder, options.n, options.dim, shards=4, queries=options.queries)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    cpu = float(np.mean(found.shard_cpu_ms))
    report.table(
        "Four shards",
        ("nodes", "p50 ms", "p99 ms", "CPU ms a query and shard", "coordinator CPU ms", "recall@10", "build CPU s"),
        [
            (
                found.nodes,
                found.p50_ms,
                found.p99_ms,
                cpu,
                found.coordinator_cpu_ms,
                found.recall,
                sum(found.build_cpu_s),
            )
        ],
        "All servers share this machine's cores: CPU time is what a machine of its own would spend.",
    )
    report.target("LIMIT in the SQL of every shard", "all", "yes" if found.pushed else "no", found.pushed)
    equal = found.exact_equal == 1.0
    report.target("exact answers equal to one server's", "100 %", f"{100 * found.exact_equal:.1f} %", equal)
    assert found.pushed
    assert equal
