"""The page of the gateway's load runs: verdicts and tables of the results that are there, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.serving.gateway_page import main, text
from tests.benchmarks.serving.load import PARTS, estimate_s


def _result(folder: Path, part: str, met: bool) -> None:
    report = Report(f"gateway-{part}", folder, conditions(nodes=10))
    report.table("Overhead", ("what", "p50 ms"), [("chat", 4.25)], "A note.")
    report.target("overhead", "p50 <= 5 ms", "4.25 ms", met)


def test_a_page_has_verdicts_tables_and_what_is_missing(tmp_path: Path) -> None:
    _result(tmp_path, "overhead", met=True)
    _result(tmp_path, "swap", met=False)
    main([str(tmp_path), str(tmp_path / "gateway.md")])
    page = (tmp_path / "gateway.md").read_text(encoding="utf-8")
    assert "| gateway-overhead | overhead | p50 <= 5 ms | 4.25 ms | met |" in page
    assert "| gateway-swap | overhead | p50 <= 5 ms | 4.25 ms | **missed** |" in page
    assert "| chat | 4.25 |" in page
    assert page.rstrip().endswith(
        "Not measured yet: cost, everything, route, overload, local-swap, disconnects, peers."
    )


def test_no_results_make_no_page(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make bench-gateway"):
        text(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_an_estimate(part: str) -> None:
    assert 20 <= estimate_s(part, 300.0, 20) <= 400
