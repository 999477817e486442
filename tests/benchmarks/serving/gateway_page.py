"""docs/gateway.md from the results of the gateway's load runs. Measures nothing.

python -m tests.benchmarks.serving.gateway_page FOLDER/results docs/gateway.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.memory.report import page
from tests.benchmarks.serving.load import PARTS

_INTRODUCTION = """
# The gateway under load

Made by `python -m tests.benchmarks.serving.gateway_page RESULTS docs/gateway.md` from the results of `make
bench-gateway`; no figure is typed by hand. An open loop: a request is due when the schedule says so, whatever became
of those before it, and its time counts from then. Models are processes behind the real worker protocol that take no
time, or as long as a table says; memory, router, outbox and admission are the real ones. The load comes from the same
machine, so it takes a part of the processors. CPU microseconds are the gateway's and its models', not Postgres'.
Attention is off but where a table says so; the row without it there is of the first minute, when most questions are
new to the encoder. Where the load at the start is not near 0, other work had the cores too:
read CPU time and ratios.
"""


def text(results: Path) -> str:
    """The page; parts that were not measured are named at its end."""
    files = {part: results / f"gateway-{part}.json" for part in PARTS}
    wholes = [json.loads(file.read_text(encoding="utf-8")) for file in files.values() if file.is_file()]
    if not wholes:
        raise FileNotFoundError(f"{results}: no gateway-*.json; make bench-gateway measures them")
    missing = [part for part, file in files.items() if not file.is_file()]
    return page(wholes, _INTRODUCTION) + (f"\nNot measured yet: {', '.join(missing)}.\n" if missing else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.page.write_text(text(chosen.results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
