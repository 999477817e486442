"""The page of latencies says what was measured and admits the rest; a killed measurement goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.inference import latency_page
from tests.benchmarks.inference.cells import Cells, estimate_s, whole_grid

FIRST = ("first", "lfm2-350m", "Q4_0", 2, 512, "restored")
SPEED = ("speed", "lfm2-350m", "Q4_0", 2)


def _first(ms: float) -> dict[str, Any]:
    return {"prompt_tokens": 512, "cached_tokens": 464, "first_ms": ms, "answer_ms": 3 * ms, "slowest_ms": 4 * ms}


def test_a_cell_is_measured_once_and_again_only_for_more_rounds(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure() -> dict[str, Any]:
        asked.append(1)
        return _first(150.0)

    for n in (3, 3, 2):
        assert Cells(tmp_path, n).of(FIRST, measure)["first_ms"] == 150.0
    assert len(asked) == 1
    assert Cells(tmp_path, 5).missing(FIRST)
    assert Cells(tmp_path, 5).of(FIRST, measure)["n"] == 5
    assert len(asked) == 2


def test_targets_are_judged_by_the_cells_and_the_rest_is_not_measured(tmp_path: Path) -> None:
    kept = Cells(tmp_path / "cells", 3)
    kept.of(FIRST, lambda: _first(190.0))
    page = latency_page.page(tmp_path)
    lines = [line for line in page.splitlines() if "all but 48 of 512 prompt tokens" in line]
    assert ["| met |" in line for line in lines] == [True, False]  # 190 of 200 ms, and 570 of 500
    assert "**missed**" in lines[1]
    other = next(line for line in page.splitlines() if "all but 48 of 1,024 prompt tokens" in line)
    assert "not measured" in other


def test_a_bins_arithmetic_is_of_the_measured_pace(tmp_path: Path) -> None:
    numbers = dict.fromkeys(
        ["file_mb", "loaded_s", "rss_mb", "own_mb", "work_mb", "raw_prefill_per_s", "raw_decode_per_s"], 1.0
    )
    cell = {**numbers, "prefill_per_s": 100.0, "decode_per_s": 24.0, "prefill_ratio": 1.01, "decode_ratio": 1.2}
    Cells(tmp_path / "cells", 3).of(SPEED, lambda: cell)
    page = latency_page.page(tmp_path)
    assert "| lfm2-350m | 5.5 | 8.1 | 13.2 | 23.4 | 43.9 |" in page  # (bin + 96) / 100 + 48 / 24 s
    assert "prefill 1.010 x, decode 1.200 x" in page
    assert next(line for line in page.splitlines() if "beside the raw loop, lfm2-350m" in line).endswith("**missed** |")


def test_an_empty_folder_makes_a_page_that_claims_nothing(tmp_path: Path) -> None:
    page = latency_page.page(tmp_path)
    assert "Nothing was measured yet" in page
    assert "| met |" not in page
    assert len(whole_grid()) == 4 + 2 * 4  # every tier at Q4_0, two at four more


def test_larger_models_and_longer_prompts_are_foreseen_to_take_longer() -> None:
    small, large = (estimate_s(shape, "Q4_0", 512, 16, 1) for shape in ("350m", "2.6b"))
    assert large > 5 * small > 5 * estimate_s("350m", "Q4_0", 64, 16, 1)
