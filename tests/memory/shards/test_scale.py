"""What measures past one machine: a small warm tier that goes on where it was stopped, and the arithmetic."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import psycopg
import pytest

from tests.benchmarks.memory import billion, scale_arithmetic, scale_page
from tests.benchmarks.memory.billion import Figures, Search

MEASURED = Figures(
    n=1_000_000, dim=128, partitions=1, queries=100, heap_bytes=300_000_000, warm_bytes=200_000_000, copy_cpu_s=10.0,
    build_cpu_s=3600.0, build_wall_s=3600.0, rss_bytes=10**9,
    searches=(Search(50, 0.90, 1, 2, 1.0), Search(100, 0.96, 2, 3, 2.0), Search(200, 0.99, 4, 5, 4.0)),
    cold_cpu_ms=100.0, hot_rows=1_000_000, hot_bytes=600_000_000, hot_build_cpu_s=7200.0, hot_cpu_ms=1.0,
    hot_recall=0.98,
)  # fmt: skip


def test_a_stopped_run_goes_on(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second partition's index: the first is not built again, and the answers are right."""
    plan = billion.Plan(1200, 32, 2, open_dir / "warm", queries=20, buffers="16MB", work_mem="32MB", workers=0)
    build, built = billion._index, []

    def stops(connection: psycopg.Connection, number: int, plan: billion.Plan) -> None:
        built.append(number)
        if built == [0, 1]:
            raise KeyboardInterrupt
        build(connection, number, plan)

    monkeypatch.setattr(billion, "_index", stops)
    with pytest.raises(KeyboardInterrupt):
        billion.run(plan, hot=False, progress=_silent)
    figures = billion.run(plan, hot=True, progress=_silent)
    assert built == [0, 1, 1]
    recalls = [each.recall for each in figures.searches]
    assert recalls[-1] == 1.0  # 800 candidates of 600 rows: everything is ranked again
    assert recalls == sorted(recalls)
    assert figures.hot_recall > 0.9
    file = open_dir / "figures.json"
    billion.save(figures, file)
    assert billion.load(file) == figures


def test_the_arithmetic_by_hand() -> None:
    """At the measured size a node costs what was measured; ten times the nodes cost ten times that."""
    rates = scale_arithmetic.rates(replace(MEASURED, n=1_250_000, heap_bytes=375_000_000, hot_rows=1_250_000), 128)
    assert (rates.heap_bytes, rates.candidates, rates.recall) == (300.0, 100, 0.96)
    assert rates.warm_build_s == pytest.approx(3600 / 1_250_000)
    warm = scale_arithmetic.MIXES[1]
    need = scale_arithmetic.need(replace(rates, warm_bytes=200.0), 10_000_000, 128, warm)
    assert need.memory_gib == pytest.approx(2 * 10e6 * 200 / 2**30)
    assert need.disk_gib == pytest.approx(2 * 10e6 * (1200 + 300 + 200) / 2**30)
    assert need.build_core_hours == pytest.approx(10e6 * 3600 / 1_250_000 / 3600)
    assert need.query_cpu_ms == pytest.approx(8 * 2.0)
    assert need.query_reads == pytest.approx(8 * 100)
    assert need.queries_s == pytest.approx(min(300_000 / 800, 8 * 1000 * 2 / 3 / 16))  # one primary of 8 cores
    ten = scale_arithmetic.need(replace(rates, warm_bytes=200.0), 100_000_000, 128, warm)
    assert ten.memory_gib == pytest.approx(10 * need.memory_gib)
    wider = scale_arithmetic.rates(MEASURED, 384)
    assert wider.heap_bytes == 300.0 + 2 * 256
    assert wider.warm_bytes == 200.0 + 256 / 8


@pytest.mark.parametrize(("memory", "disk"), [(1.0, 1.0), (1.0, 50_000.0), (40_000.0, 1.0)])
def test_the_machines_hold_it_all_in_whole_copies(memory: float, disk: float) -> None:
    machine, count = scale_arithmetic.cheapest(memory, disk)
    assert count % scale_arithmetic.COPIES == 0
    assert count * machine.memory_gib * scale_arithmetic.RESIDENT >= memory
    assert count * machine.disk_gib * scale_arithmetic.FREE >= disk


def test_the_page_says_what_is_missing_and_what_is_not_met() -> None:
    assert scale_page.page({}).count("Not measured yet.") == 3
    conditions = {"date": "2026-01-01", "processor": "x", "memory": "y", "load at the start": 0.0}
    body = json.loads(json.dumps({"1": {"conditions": conditions, **asdict(MEASURED)}}))
    page = scale_page.page({"billion": body})
    assert "recall@10 0.960" in page
    assert "| 1,000 M | 384 | all hot |" in page


def _silent(done: int, total: int, note: str = "") -> None:
    pass
