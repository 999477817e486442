"""A thousand kill -9 of Postgres under write-back load, and the null control; about a quarter of an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.memory.kills import CONTROL, Tally, Torture
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark
KILLS, CONTROLS = 1000, 20


def test_a_thousand_kills(open_dir: Path, report: Report) -> None:
    real = Torture(open_dir / "kills", load_s=0.15).run(KILLS)
    control = Torture(open_dir / "kills-control", CONTROL, load_s=0.15).run(CONTROLS)
    columns = ("", "kills", "acknowledged", "lost", "duplicates", "half rows", "writers with a gap", "seconds")
    report.table("kill -9 of Postgres under write-back load", columns, [_row("as shipped", real),
                 _row("null control, synchronous_commit=off", control)], real.as_text())  # fmt: skip
    sound = not (real.lost or real.duplicates or real.half_rows or real.gaps)
    report.target(
        f"{KILLS} kills", "0 acknowledged writes lost, 0 duplicates", f"{real.lost}, {real.duplicates}", sound
    )
    report.target("null control", "loses some", str(control.lost), control.lost > 0)
    assert sound
    assert control.lost > 0


def _row(name: str, tally: Tally) -> tuple[str | int, ...]:
    return (name, tally.kills, tally.acknowledged, tally.lost, tally.duplicates, tally.half_rows, tally.gaps,
            round(tally.seconds))  # fmt: skip
