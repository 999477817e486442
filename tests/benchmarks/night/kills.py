"""Kill -9 of the flow's process after each step of a night: does the resumed night hold what an unkilled one holds?

    python -m tests.benchmarks.night.kills FOLDER docs/night-kills.md [--after day,collect,train]

Each boundary is an installation of its own under FOLDER, in which a small night is killed and taken up again. Compared
are the digests (`ruvllm db digest`: ids, times and latencies left out) of the tables that latencies do not reach, and
how often each thing was done: answers, outcomes, versions, ledger rows.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ruvllm.backup.digest import alike, table_digests
from ruvllm.backup.manifest import TableDigest
from ruvllm.database import EmbeddedPostgres, database_url
from ruvllm.settings import PROJECT_ROOT, load_settings
from tests.benchmarks.memory.report import conditions

STEPS = (
    "ingest", "day", "collect", "train", "evaluate", "propose", "promote", "consolidate", "watch", "catch-up", "merge",
    "compact", "archive", "decay", "upkeep", "maintain", "serve", "report",
)  # fmt: skip
# What a measured latency reaches (labels, weights, gates) differs between any two runs, killed or not.
TABLES = ("memory.node_texts", "memory.node_words", "learning.replay_counter")
COUNTED = (
    "serving.interactions", "serving.outbox", "learning.oracle_queries", "learning.oracle_runs", "learning.cycles",
    "learning.steps", "learning.ewc_state", "registry.ledger", "memory.nodes", "memory.edges",
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What an installation holds after its night."""

    digests: dict[str, TableDigest]
    counts: dict[str, int]


def run(folder: Path, kill_after: str) -> int:
    """The exit code of one run of the night; -9 where it was killed."""
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged", "KILL_AFTER": kill_after,
        "RUVLLM_ACCEPT_GEMMA_TERMS": "true", "RUVLLM_THREADS": "1", "RUVLLM_SEARCH_K": "2", "RUVLLM_MAX_TOKENS": "8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.killed_night"]
    return subprocess.run(command, env=environment, cwd=PROJECT_ROOT, check=False).returncode


def held(folder: Path) -> Held:
    settings = load_settings({}, state_dir=folder)
    with psycopg.connect(database_url(settings)) as connection:
        found = table_digests(connection, alike)
    EmbeddedPostgres(settings).stop()
    return Held({name: found[name] for name in TABLES}, {name: found[name].rows for name in COUNTED})


def page(path: Path, rows: list[str]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    lines = [
        "# A night that is killed", "", f"`python -m tests.benchmarks.night.kills FOLDER {path}`; {said}.", "",
        f"Compared by digest: {', '.join(TABLES)}. By rows: {', '.join(COUNTED)}.", "",
        "| killed after | exit | resumed | differs from the unkilled night |", "|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill a night after each step and compare.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--after", default=",".join(STEPS), help="steps, with commas between")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    if run(folder / "unkilled", ""):
        return 1
    wanted, rows, same = held(folder / "unkilled"), [], True
    for step in given.after.split(","):
        killed, resumed = run(folder / step, step), run(folder / step, "")
        found = held(folder / step)
        differs = [n for n in TABLES if found.digests[n] != wanted.digests[n]]
        differs += [f"{n} {found.counts[n]}/{wanted.counts[n]}" for n in COUNTED if found.counts[n] != wanted.counts[n]]
        same &= killed == -signal.SIGKILL and resumed == 0 and not differs
        rows.append(f"| {step} | {killed} | {resumed} | {', '.join(differs) or 'nothing'} |")
    given.page.write_text(page(given.page, rows), encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
