"""The pipeline's last stage: charts of report.json as SVG files. Knows nothing of databases.

python -m ruvllm.reporting.plots --report report.json --out figures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruvllm.errors import LearningError
from ruvllm.evaluation.table import policy_rows
from ruvllm.learning.command import run_command
from ruvllm.reporting.charts import charts
from ruvllm.reporting.records import NightReport, Tenth
from ruvllm.router.durable import replace_file


def main(arguments: list[str] | None = None) -> None:
    """Draw every chart that the report has figures for; the folder then holds these and no others.

    Raises:
        LearningError: the report cannot be read.
    """
    parser = argparse.ArgumentParser(description="Draw the figures of an evaluation.")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        report = json.loads(given.report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LearningError(f"report {given.report}: {error}; run the stage evaluate first") from error
    given.out.mkdir(parents=True, exist_ok=True)
    for old in given.out.glob("*.svg"):
        old.unlink()
    for name, svg in charts(of_evaluation(report)).items():
        replace_file(given.out / f"{name}.svg", svg.encode())


def of_evaluation(report: Mapping[str, Any]) -> NightReport:
    """What an evaluation alone can show: policies, domains, calibration."""
    calibration = report.get("calibration", {})
    return NightReport(
        night=0, cycle_id="", version="", champion="", promoted=False, why_not="", tiers=(), domains=(), nights=(),
        policies=policy_rows(dict(report)), n_test=report["n_test"], n_train=report["n_train"],
        per_domain=report.get("per_domain", {}), ece=calibration.get("ece"),
        tenths=[Tenth(**tenth) for tenth in calibration.get("bins", [])],
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
