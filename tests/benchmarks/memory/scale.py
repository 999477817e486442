"""Memory past one machine: run the measurements, make the page. Knows nothing of how each is done.

    python -m tests.benchmarks.memory.scale shards --n 10000 --n 100000 --state DIR     four servers and a coordinator
    python -m tests.benchmarks.memory.scale failovers --count 20 --state DIR            a primary killed under load
    python -m tests.benchmarks.memory.scale billion --n 10000000 --dim 128 --partitions 8 --state DIR
    python -m tests.benchmarks.memory.scale page                                        docs/scale.md from the figures

Each writes its figures into docs/scale.json, where the last run of each size wins; `page` types no figure by hand.
`billion` goes on where it was stopped, if it is given the same state folder; the folder is removed by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ruvllm.memory.shards import simulate
from ruvllm.settings import PROJECT_ROOT
from tests.benchmarks.memory import billion, scale_page
from tests.benchmarks.memory.report import conditions

FIGURES = PROJECT_ROOT / "docs" / "scale.json"
PAGE = PROJECT_ROOT / "docs" / "scale.md"


def shards(chosen: argparse.Namespace) -> None:
    for n in chosen.n or [10_000]:
        folder = _folder(chosen.state) / f"shards-{n}"
        try:
            report = simulate(folder, n, chosen.dim, chosen.shards, chosen.queries, progress=_say)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        keep(chosen.figures, "shards", str(n), asdict(report))


def failovers(chosen: argparse.Namespace) -> None:
    """Alternately the server alone and every process of its member; each is made whole again before the next."""
    from ruvllm.database.standby import StandbyCluster
    from tests.database.failover import KINDS, fail_over, make_table

    cluster = StandbyCluster(_folder(chosen.state) / "standby", {"shared_buffers": "32MB"})
    try:
        make_table(cluster.start())
        done = []
        for number in range(chosen.count):
            done.append(asdict(fail_over(cluster, KINDS[number % len(KINDS)])))
            _say(number + 1, chosen.count, str(done[-1]))
            cluster.start()
        keep(chosen.figures, "failovers", "all", {"runs": done})
    finally:
        cluster.stop()


def tiers(chosen: argparse.Namespace) -> None:
    plan = billion.Plan(chosen.n, chosen.dim, chosen.partitions, _folder(chosen.state) / "billion", chosen.queries,
                        chosen.buffers, chosen.work_mem, chosen.workers)  # fmt: skip
    figures = billion.run(plan, chosen.hot, _say)
    keep(chosen.figures, "billion", f"{plan.n}x{plan.dim}", asdict(figures))


def page(chosen: argparse.Namespace) -> None:
    PAGE.write_text(scale_page.page(json.loads(chosen.figures.read_text(encoding="utf-8"))), encoding="utf-8")


def keep(path: Path, kind: str, size: str, values: dict[str, object]) -> None:
    """Into the file of figures, with the machine and the moment."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole.setdefault(kind, {})[size] = {"conditions": conditions(), **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
    print(json.dumps(values), flush=True)


def _folder(state: Path) -> Path:
    """One that the servers' user can enter."""
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o755)
    return state.absolute()


def _say(done: int, total: int, note: str = "") -> None:
    print(f"{time.strftime('%H:%M:%S')} {done:,} of {total:,} {note}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure memory past one machine, and make docs/scale.md.")
    parser.add_argument("--figures", type=Path, default=FIGURES)
    doors = parser.add_subparsers(required=True)
    for name, work in (("shards", shards), ("failovers", failovers), ("billion", tiers), ("page", page)):
        door = doors.add_parser(name)
        door.set_defaults(work=work)
        if name != "page":
            door.add_argument("--state", type=Path, required=True, help="a folder for servers and vectors")
            door.add_argument("--queries", type=int, default=200)
        if name == "shards":
            door.add_argument("--n", type=int, action="append", help="nodes in all; may be given several times")
            door.add_argument("--shards", type=int, default=4)
        if name == "billion":
            door.add_argument("--n", type=int, default=200_000)
            door.add_argument("--partitions", type=int, default=8)
            door.add_argument("--buffers", default="2GB")
            door.add_argument("--work-mem", default="2GB")
            door.add_argument("--workers", type=int, default=1)
            door.add_argument("--hot", action="store_true", help="also an index of halves on the first partition")
        if name in ("shards", "billion"):
            door.add_argument("--dim", type=int, default=128)
        if name == "failovers":
            door.add_argument("--count", type=int, default=20)
    chosen = parser.parse_args(arguments)
    chosen.work(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
