"""docs/analysts-speed.md from the results of the night's measurements at size. Measures nothing.

python -m tests.benchmarks.night.page RESULTS docs/analysts-speed.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.memory.report import page

_INTRODUCTION = """
# Views, the night's page and promoters at size

Made by `make bench-night` (each run's command stands below); no figure is typed by hand. The answers are made rows
(`tests/analytics/analytics_rows.py`), spread over 90 days. Every query of [analysts.md](analysts.md) that reads
answers and learning is asked by an analyst's login, with row-level security on; what its plan reads stands beside it.
A scan of a whole table is intended where the query asks for all of it, or where the table has a row a night or a
promotion.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown from the results of the night's measurements at size.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    wholes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(chosen.results.glob("*.json"))]
    if not wholes:
        parser.error(f"{chosen.results} holds no results; run make bench-night first")
    chosen.page.write_text(page(wholes, _INTRODUCTION), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
