"""Two hundred SIGKILLs of a model's process under load; some minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ruvllm.settings import load_settings
from tests.benchmarks.inference.kills import CLIENTS, Tally, Torture, packaged
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark
KILLS, READY_S, FLAT_MIB = 200, 5.0, 1.0


def test_two_hundred_kills(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    out = request.config.getoption("--out")
    report = Report(f"kills-{KILLS}", Path(str(out or tmp_path)))
    settings = load_settings(state_dir=tmp_path / "state")
    tier, path = packaged(settings)
    command = "python -m pytest -m benchmark tests/benchmarks/inference/test_kills.py"
    report.conditions = conditions(n=KILLS, model=tier.title, clients=CLIENTS, command=command)
    tally = Torture(tier, path, replace(settings, wait_policy="passive")).run(KILLS)
    columns = ("kills", "while it worked", "requests", "answers", "streams", "typed errors", "untyped",
               "without an end", "ready p50 s", "ready p99 s", "own MiB per 100 kills", "open files")  # fmt: skip
    report.table("SIGKILL of a model's process under load", columns, [_row(tally)], tally.as_text())
    report.target(f"{KILLS} kills", "every request ends in an answer or a typed error",
                  f"{tally.untyped} untyped, {tally.unended} without an end", tally.sound)  # fmt: skip
    report.target("ready again", f"p99 < {READY_S:g} s", f"{tally.ready(0.99):.2f} s", tally.ready(0.99) < READY_S)
    report.target("this process's memory", f"within {FLAT_MIB:g} MiB per 100 kills", f"{tally.slope:+.2f}",
                  abs(tally.slope) <= FLAT_MIB)  # fmt: skip
    assert tally.sound
    assert tally.kills == KILLS


def _row(tally: Tally) -> tuple[str | int | float, ...]:
    typed = sum(n for name, n in tally.ends.items() if name not in ("answer", "stream"))
    return (tally.kills, tally.in_flight, tally.requests, tally.ends["answer"], tally.ends["stream"], typed,
            tally.untyped, tally.unended, tally.ready(0.5), tally.ready(0.99), tally.slope,
            f"{tally.files[0]} -> {tally.files[1]}")  # fmt: skip
