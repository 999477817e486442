"""Kill -9 of the flow's process at the steps of a night: does the resumed night hold what an unkilled one holds?

    python -m tests.benchmarks.night.kills FOLDER docs/night-kills.md [--rows each,each-unkept,in-dvc,collect]

Every row is a small night in an installation of its own under FOLDER. `unkilled` is what the others are compared with.
`each` is one night that is killed after every one of its steps, and taken up again as often; `each-unkept` is killed
as often with a step's work done and its result not yet kept, so that the work is done again. A step's name is a night
that is killed there alone, and `in-dvc` one that dies while dvc trains. Compared are the digests (`ruvllm db digest`:
ids, times and latencies left out) of the tables that latencies do not reach, and how often each thing was done.

What was found is kept in FOLDER/kills.json and every run in FOLDER/ROW.runs.json: started again, it goes on where it
was. The page is of all that was ever found there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from ruvllm.backup.digest import alike, table_digests
from ruvllm.database import database_url
from ruvllm.services import down
from ruvllm.settings import PROJECT_ROOT, load_settings
from tests.benchmarks.memory.report import conditions

STEPS = (
    "ingest", "day", "collect", "train", "attend", "evaluate", "propose", "promote", "consolidate", "watch", "catch-up",
    "merge", "compact", "archive", "decay", "upkeep", "maintain", "serve", "report",
)  # fmt: skip
# What a measured latency reaches (labels, weights, gates) differs between any two runs, killed or not.
TABLES = ("memory.node_texts", "memory.node_words", "learning.replay_counter")
COUNTED = (
    "serving.interactions", "serving.outbox", "learning.oracle_queries", "learning.oracle_runs", "learning.cycles",
    "learning.steps", "learning.ewc_state", "registry.ledger", "memory.nodes", "memory.edges",
)  # fmt: skip
UNKILLED, EACH, UNKEPT, IN_DVC = "unkilled", "each", "each-unkept", "in-dvc"
# The step `serve` asks its question anew where its answer was lost: a check that is not made again proves nothing.
ASKED_AGAIN = {UNKEPT: ("serving.interactions", "serving.outbox")}
ROWS = (EACH, UNKEPT, IN_DVC, *STEPS)
BOUND_S = 900.0  # of one run
TIMED_OUT = 124
_SIGKILLED = -int(signal.SIGKILL)


@dataclass(frozen=True)
class Run:
    """One run of the night: where it was to be killed, how it ended, seconds."""

    step: str
    exit: int
    seconds: float


@dataclass(frozen=True)
class Held:
    """What an installation holds after its night, and how its runs ended."""

    runs: list[Run]
    digests: dict[str, str]
    counts: dict[str, int]

    @property
    def killed(self) -> int:
        return sum(run.exit == _SIGKILLED for run in self.runs)

    @property
    def ended_as_meant(self) -> bool:
        """Killed wherever it was to be, and well at last."""
        return [run.exit for run in self.runs] == [_SIGKILLED if run.step else 0 for run in self.runs]

    def differs_from(self, other: Held, asked_again: Sequence[str] = ()) -> list[str]:
        """Tables that hold other rows; those of `asked_again` are to hold one more."""
        digests = [name for name in TABLES if self.digests[name] != other.digests[name]]
        wanted = {name: other.counts[name] + (name in asked_again) for name in COUNTED}
        return digests + [f"{n} {self.counts[n]}/{wanted[n]}" for n in COUNTED if self.counts[n] != wanted[n]]


def plan(row: str) -> list[str]:
    """Where each run of a row is killed; the last one is not."""
    if row in (EACH, UNKEPT):
        return [*STEPS, ""]
    return [""] if row == UNKILLED else [row, ""]


def held(folder: Path, row: str) -> Held:
    """What the row's night comes to; runs that an earlier call made are not made again."""
    settings = load_settings({}, state_dir=folder / row)
    kept = folder / f"{row}.runs.json"
    runs = [Run(**run) for run in json.loads(kept.read_text())] if kept.exists() else []
    try:
        for step in plan(row)[len(runs) :]:
            runs.append(run(settings.state_dir, step, row == UNKEPT))
            kept.write_text(json.dumps([asdict(one) for one in runs]), encoding="utf-8")
            print(f"{row}: {step or 'to the end'} {runs[-1].exit} in {runs[-1].seconds:.0f} s", flush=True)
        with psycopg.connect(database_url(settings)) as connection:
            found = table_digests(connection, alike)
    finally:
        down(settings)  # the killed process left its Prefect server and Postgres
    shutil.rmtree(settings.state_dir)  # a fifth of a gigabyte each would be left
    digests = {name: found[name].digest for name in TABLES}
    return Held(runs, digests, {name: found[name].rows for name in COUNTED})


def run(state_dir: Path, step: str, unkept: bool) -> Run:
    """One run of the night, killed at `step`; after `BOUND_S` seconds too, which is no end that is meant."""
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(state_dir), "RUVLLM_LADDER": "packaged", "KILL_STEP": step,
        "KILL_UNKEPT": "1" if unkept else "", "RUVLLM_ACCEPT_GEMMA_TERMS": "true", "RUVLLM_THREADS": "1",
        "RUVLLM_SEARCH_K": "2", "RUVLLM_MAX_TOKENS": "8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.killed_night"]
    begun = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, cwd=PROJECT_ROOT, check=False, timeout=BOUND_S).returncode
    except subprocess.TimeoutExpired:
        code = TIMED_OUT
    return Run(step, code, time.monotonic() - begun)


def page(path: Path, found: dict[str, Held]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    wanted = found[UNKILLED]
    rows = [_line(row, one, wanted) for row, one in found.items() if row != UNKILLED]
    same = sum(is_same(row, one, wanted) for row, one in found.items() if row != UNKILLED)
    lines = [
        "# A night that is killed", "", f"`python -m tests.benchmarks.night.kills FOLDER {path}`; {said}.", "",
        f"Each row is a night of its own, killed with SIGKILL and taken up again: `{EACH}` after every one of its "
        f"steps in turn, `{UNKEPT}` as often with the step's work done and its result not kept, the others at the step "
        "that is named alone.", "",
        f"Compared by digest: {', '.join(TABLES)}. By rows: {', '.join(COUNTED)}. `{UNKEPT}` is to hold one answer "
        "more: the step `serve` asks its question anew where the answer was lost, for a check has to be made.", "",
        f"As the unkilled night: {same} of {len(found) - 1}.", "",
        "| killed | kills | last run's exit | seconds | differs from the unkilled night |", "|---|---|---|---|---|",
        *rows, "",
    ]  # fmt: skip
    missing = [row for row in ROWS if row not in found]
    return "\n".join([*lines, *([f"Not run here: {', '.join(missing)}.", ""] if missing else [])])


def _line(row: str, one: Held, wanted: Held) -> str:
    spent = sum(run.seconds for run in one.runs)
    ended = "" if one.ended_as_meant else " (not as it was meant)"
    different = ", ".join(one.differs_from(wanted, ASKED_AGAIN.get(row, ()))) or "nothing"
    return f"| {row} | {one.killed} | {one.runs[-1].exit}{ended} | {spent:.0f} | {different} |"


def is_same(row: str, one: Held, wanted: Held) -> bool:
    return one.ended_as_meant and not one.differs_from(wanted, ASKED_AGAIN.get(row, ()))


def read(path: Path) -> dict[str, Held]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        row: Held([Run(**run) for run in one["runs"]], one["digests"], one["counts"]) for row, one in document.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a night at its steps and compare.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"with commas between: {', '.join(ROWS)}")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    found = read(folder / "kills.json")
    for row in (UNKILLED, *given.rows.split(",")):
        if row not in found:
            found[row] = held(folder, row)
            (folder / "kills.json").write_text(json.dumps({s: asdict(one) for s, one in found.items()}, indent=1))
            print(row, found[row].killed, is_same(row, found[row], found[UNKILLED]), flush=True)
        given.page.write_text(page(given.page, found), encoding="utf-8")
    return 0 if all(is_same(row, one, found[UNKILLED]) for row, one in found.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
