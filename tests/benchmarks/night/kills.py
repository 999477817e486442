"""Kill -9 of the flow's process after each step of a night: does the resumed night hold what an unkilled one holds?

    python -m tests.benchmarks.night.kills FOLDER docs/night-kills.md [--after day,collect,train]

Each boundary is an installation of its own under FOLDER, in which a small night is killed and taken up again. Compared
are the digests (`ruvllm db digest`: ids, times and latencies left out) of the tables that latencies do not reach, and
how often each thing was done: answers, outcomes, versions, ledger rows. `in-dvc` is no boundary: there the night dies
while dvc trains. What was found is kept in FOLDER/kills.json; a run that was stopped goes on where it was, and the page
is of all that was ever found there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
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
    "ingest", "day", "collect", "in-dvc", "train", "evaluate", "propose", "promote", "consolidate", "watch", "catch-up",
    "merge", "compact", "archive", "decay", "upkeep", "maintain", "serve", "report",
)  # fmt: skip
# What a measured latency reaches (labels, weights, gates) differs between any two runs, killed or not.
TABLES = ("memory.node_texts", "memory.node_words", "learning.replay_counter")
COUNTED = (
    "serving.interactions", "serving.outbox", "learning.oracle_queries", "learning.oracle_runs", "learning.cycles",
    "learning.steps", "learning.ewc_state", "registry.ledger", "memory.nodes", "memory.edges",
)  # fmt: skip


UNKILLED = "unkilled"


@dataclass(frozen=True)
class Held:
    """What an installation holds after its night, and how the runs before ended."""

    killed: int
    resumed: int
    digests: dict[str, str]
    counts: dict[str, int]

    def differs_from(self, other: Held) -> list[str]:
        digests = [name for name in TABLES if self.digests[name] != other.digests[name]]
        counts = [f"{n} {self.counts[n]}/{other.counts[n]}" for n in COUNTED if self.counts[n] != other.counts[n]]
        return digests + counts


def run(folder: Path, kill_after: str) -> int:
    """The exit code of one run of the night; -9 where it was killed."""
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged", "KILL_AFTER": kill_after,
        "RUVLLM_ACCEPT_GEMMA_TERMS": "true", "RUVLLM_THREADS": "1", "RUVLLM_SEARCH_K": "2", "RUVLLM_MAX_TOKENS": "8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.killed_night"]
    return subprocess.run(command, env=environment, cwd=PROJECT_ROOT, check=False).returncode


def held(folder: Path, step: str) -> Held:
    """A night in an installation of its own, killed after `step` and taken up again."""
    settings = load_settings({}, state_dir=folder)
    try:
        killed = run(folder, step) if step != UNKILLED else 0
        resumed = run(folder, "")
        with psycopg.connect(database_url(settings)) as connection:
            found = table_digests(connection, alike)
    finally:
        down(settings)  # the killed process left its Prefect server and Postgres
    shutil.rmtree(folder)  # half a gigabyte each would be left
    digests = {name: found[name].digest for name in TABLES}
    return Held(killed, resumed, digests, {name: found[name].rows for name in COUNTED})


def page(path: Path, found: dict[str, Held]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    wanted = found[UNKILLED]
    rows = [
        f"| {step} | {one.killed} | {one.resumed} | {', '.join(one.differs_from(wanted)) or 'nothing'} |"
        for step, one in found.items() if step != UNKILLED
    ]  # fmt: skip
    lines = [
        "# A night that is killed", "", f"`python -m tests.benchmarks.night.kills FOLDER {path}`; {said}.", "",
        f"Compared by digest: {', '.join(TABLES)}. By rows: {', '.join(COUNTED)}.", "",
        f"As the unkilled night: {sum(is_same(one, wanted) for one in found.values()) - 1} of {len(found) - 1}, of "
        f"{len(STEPS)} that there are.", "",
        "| killed after | exit | resumed | differs from the unkilled night |", "|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)


def is_same(one: Held, wanted: Held) -> bool:
    return one.killed in (0, -signal.SIGKILL) and one.resumed == 0 and not one.differs_from(wanted)


def read(path: Path) -> dict[str, Held]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {step: Held(**one) for step, one in document.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a night after each step and compare.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--after", default=",".join(STEPS), help="steps, with commas between")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    found = read(folder / "kills.json")
    for step in (UNKILLED, *given.after.split(",")):
        if step not in found:
            stop_and_clear(folder / step)
            found[step] = held(folder / step, step)
            (folder / "kills.json").write_text(json.dumps({s: asdict(one) for s, one in found.items()}, indent=1))
            given.page.write_text(page(given.page, found), encoding="utf-8")
            print(step, found[step].killed, found[step].resumed, found[step].differs_from(found[UNKILLED]), flush=True)
    return 0 if all(is_same(one, found[UNKILLED]) for one in found.values()) else 1


def stop_and_clear(folder: Path) -> None:
    """What an earlier run left that was stopped in the middle."""
    if folder.exists():
        down(load_settings({}, state_dir=folder))
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
