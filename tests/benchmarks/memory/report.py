"""Results as JSON, and pages of Markdown made from them. Knows nothing of how anything is measured.

    python -m tests.benchmarks.memory.report RESULTS docs/memory.md

makes the page anew from every result in the folder RESULTS: a figure on the page is never typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

Cell = str | int | float | None
_PACKAGES = ("faiss-cpu", "hnswlib", "usearch", "ruvector", "pgvector", "psycopg", "numpy")
VERDICTS = {True: "met", False: "**missed**", None: "not measured"}


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""  # how it was made and what it does not say


@dataclass(frozen=True)
class Target:
    """A goal of the task beside what was measured; `met` None: not measured, `measured` then says why."""

    what: str
    wanted: str
    measured: str
    met: bool | None


@dataclass
class Report:
    """What one module measured; written again after every table, so that a killed run keeps what it has."""

    name: str
    folder: Path
    conditions: dict[str, Cell] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], note: str = "") -> None:
        self.tables.append(Table(title, tuple(columns), tuple(tuple(row) for row in rows), note))
        self.write()

    def target(self, what: str, wanted: str, measured: str, met: bool | None) -> None:
        self.targets.append(Target(what, wanted, measured, met))
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.conditions["load at the end"] = round(os.getloadavg()[0], 1)
        whole = {
            "name": self.name,
            "conditions": self.conditions,
            "tables": [asdict(table) for table in self.tables],
            "targets": [asdict(target) for target in self.targets],
        }
        _replace(self.folder / f"{self.name}.json", json.dumps(whole, indent=1, ensure_ascii=False))
        _replace(self.folder / f"{self.name}.md", section(whole))


def conditions(**more: Cell) -> dict[str, Cell]:
    """The machine and the moment that every table needs beside it, then `more`."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(_versions()),
        "revision": _revision(),
        "load at the start": round(os.getloadavg()[0], 1),
        "niceness": os.nice(0),
        **more,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> Iterable[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} not installed"


def _revision() -> str:
    """The commit, with a + where the tree differs from it; empty without git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# -- Markdown


def section(whole: dict, alone: bool = True) -> str:
    """One module's results under a heading of their own; `alone`: with the conditions, which a page has at its top."""
    parts = [f"## {whole['name']}", *([_conditions_line(whole["conditions"])] if alone else [])]
    parts += [_table(**table) for table in whole["tables"]]
    return "\n\n".join(parts) + "\n"


def page(wholes: Sequence[dict], introduction: str) -> str:
    """All results: first every target with its verdict, then the tables."""
    rows = [
        (w["name"], t["what"], t["wanted"], t["measured"], VERDICTS[t["met"]]) for w in wholes for t in w["targets"]
    ]
    summary = _table("Targets", ("run", "what", "wanted", "measured", "verdict"), rows)
    return (
        "\n\n".join([introduction.strip(), _runs(wholes), summary, *(section(w, False).rstrip() for w in wholes)])
        + "\n"
    )


def _runs(wholes: Sequence[dict]) -> str:
    """Which command on which machine made what, when, at which load."""
    machine = wholes[0]["conditions"]
    rows = []
    for whole in wholes:
        made = whole["conditions"]
        load = f"{made.get('load at the start')} to {made.get('load at the end')}"
        rows.append((whole["name"], made.get("date"), made.get("n"), load, f"`{made.get('command')}`"))
    table = _table("Runs", ("run", "date", "N", "load", "command"), rows)
    named = [str(machine.get(name, "")) for name in ("processor", "memory", "system", "packages", "revision")]
    return f"Machine of the first run: {'; '.join(filter(None, named))}.\n\n{table}"


def _place(path: Path) -> tuple[int, str, int]:
    """Speed first, then the other modules by name, each from few nodes to many."""
    name, _, n = path.stem.rpartition("-")
    return (name != "speed", name, int(n) if n.isdigit() else 0)


def _conditions_line(values: dict[str, Cell]) -> str:
    return "; ".join(f"{name} {value}" for name, value in values.items() if value not in ("", None)) + "."


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> str:
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    body = "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    return f"### {title}\n\n{head}\n{body}" + (f"\n\n{note}" if note else "")


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 10_000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|")


_INTRODUCTION = """
# Memory: speed, size, recall

Made by `python -m tests.benchmarks.memory.report RESULTS docs/memory.md` from the results of `make bench-memory`; no
figure is typed by hand. Contenders are measured block by block in turn within one run, so that a busy machine slows all
of them alike: read ratios first, milliseconds second. CPU milliseconds are of the thread that asks plus, where a server
answers, of its backend. Where other work wanted the cores too, a target is judged by CPU time and says so beside what
the clock said. Goals are of 100,000 and 1,000,000 nodes; a run of fewer, or on a busy machine, only shows the way.

The vectors are made (`tests/benchmarks/memory/vectors.py`): topics of unequal size, noise with the spectrum of text
embeddings, local intrinsic dimension 13 where MiniLM's of SQuAD passages is 11, so a little harder to search than real
ones; rounded to half precision. Queries are stored vectors moved by a third of their length, neighbours are exact.
`--data FILE.npy` takes your own. Ten edges a node, eight of them near it.

The contenders: hnswlib, faiss and usearch build the same graph (M, efConstruction, efSearch of the band) over float32,
halves or bytes. PyPI's `ruvector` 0.1 is a Rust core with two indexes. Its HNSW (hnsw_rs) does index, but lives in
memory only (`Collection.load` builds the graph anew from the saved vectors, so its build time is what a restart costs)
and filters after it searched, so that a filter can leave fewer than k. `ruvector-rabitq` is no graph but a scan of one
bit a dimension with an exact second look. Raw pgvector is one prepared statement over a Unix socket.

At a million both of the server's graphs and their rows are larger than its cache: a ratio to raw pgvector below 1 says
which of the two was in it, not that rules cost nothing. Such a run takes about three hours of two cores, 14 GiB of
memory and 25 GB of disk under BENCH_DIR, and a killed one goes on where it was:

    F='--n 1000000 --build-threads 2 --contenders raw,hnswlib,faiss-half,ruvector'
    make bench-memory BENCH_FLAGS="$F --deselect tests/benchmarks/memory/test_table72.py"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Markdown from the results of the memory benchmarks.")
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    wholes = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(chosen.results.glob("*.json"), key=_place)
    ]
    if not wholes:
        parser.error(f"{chosen.results} holds no results; run make bench-memory first")
    _replace(chosen.page, page(wholes, _INTRODUCTION))
    return 0


if __name__ == "__main__":
    sys.exit(main())
