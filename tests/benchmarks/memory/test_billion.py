"""The warm tier in partitions, and that a run that was stopped goes on.

    python -m pytest -m benchmark tests/benchmarks/memory/test_billion.py --n 200000 --dim 128 --keep FOLDER

The run of ten million is tests/benchmarks/memory/scale.py's.
"""

from __future__ import annotations

import pytest

from tests.benchmarks.memory import billion
from tests.benchmarks.memory.conftest import Options
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark


def test_warm_partitions(options: Options, report: Report) -> None:
    options.keep.mkdir(parents=True, exist_ok=True)
    options.keep.chmod(0o755)
    queries = min(options.queries, 200)
    plan = billion.Plan(options.n, options.dim, 8, options.keep / "billion", queries, "1GB", "1GB")
    figures = billion.run(plan, hot=False, progress=lambda done, total, note="": None)
    columns = ("ranked again, each partition", "recall@10", "p50 ms", "p99 ms", "CPU ms")
    report.table(
        "Warm partitions",
        columns,
        [(each.candidates, each.recall, each.p50_ms, each.p99_ms, each.cpu_ms) for each in figures.searches],
        f"{figures.partitions} partitions, index {figures.warm_bytes / figures.n:.0f} bytes a node, "
        f"build {1e3 * figures.build_cpu_s / figures.n:.2f} CPU ms a node.",
    )
    best = max(each.recall for each in figures.searches)
    report.target("recall@10 of the warm tier", "at least 0.95", f"{best:.3f}", best >= 0.95)
    again = billion.run(plan, hot=False, progress=lambda done, total, note="": None)
    assert again.build_cpu_s == figures.build_cpu_s  # nothing was built twice
    assert again.heap_bytes == figures.heap_bytes
