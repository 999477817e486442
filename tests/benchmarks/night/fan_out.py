"""One night's collection by one Dask worker, by two, and by one with two lanes: outcomes, seconds, speed-up.

    python -m tests.benchmarks.night.fan_out FOLDER docs/fan-out.md --sample 18      (needs the extra fan-out)

A lane is a pool of models with one thread; two workers of one lane have twice the hands of one worker of one lane. One
worker of two lanes has them too, without a second process: that is what a machine does by itself, and beside it stands
what Dask adds. Each measurement has an installation of its own under FOLDER, with the same questions; models answer for
real. Speed-up is of the collection's own seconds, those of the slower worker, loading of models included; `whole` adds
cluster and flow. What was measured is kept in FOLDER/fan-out.json: started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ruvllm import corpus
from ruvllm.corpus import corpus_nodes
from ruvllm.corpus.questions import oracle_sample
from ruvllm.database import open_database
from ruvllm.learning.oracle import OracleReport
from ruvllm.nightly import night, sharing
from ruvllm.services import down, prefect_as_found, prefect_environment
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory.report import conditions

BUDGET_S = 3600.0  # a bound: everything is to be collected
BOUND_S = 1200.0  # of one measurement
ONE, TWO, LANES = "1 worker", "2 workers", "1 worker, 2 lanes"
HANDS = {ONE: (1, 1), TWO: (2, 1), LANES: (1, 2)}  # workers, lanes of each
_ANSWERS = """
    SELECT query, tier, context_bin, answer, quality FROM learning.oracle_runs ORDER BY query, tier, context_bin
"""


def measure(sample: int, lanes: int) -> dict[str, Any]:
    """In this process's own installation, with the workers that its environment names."""
    settings = load_settings()
    with prefect_as_found(settings) as api_url:
        os.environ.update(prefect_environment(settings), PREFECT_API_URL=api_url)
        from flows.sharing import share_out

        cycle_id = _prepare(settings, sample)
        begun = time.monotonic()
        shares = share_out(settings, cycle_id, BUDGET_S, lanes)
        whole_s = time.monotonic() - begun
        outcomes = _digest(settings)
    report = sharing.together([OracleReport(**share) for share in shares])
    return {
        "workers": settings.collect_workers, "lanes": lanes, "questions": report.queries, "runs": report.runs,
        "of_each": [share["queries"] for share in shares], "seconds": report.seconds,
        "model_seconds": report.model_seconds, "whole_s": whole_s, "load": os.getloadavg()[0],
        "outcomes_sha256": outcomes,
    }  # fmt: skip


def _prepare(settings: Settings, sample: int) -> str:
    """A night up to its collection, with the passages that its questions are about."""
    needed = {key for question in oracle_sample(1, sample) for key in question.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    corpus.corpus_nodes = lambda: nodes  # all of it takes a minute to embed
    cycle_id = night.begin(settings)
    night.ingest(settings, cycle_id)
    sharing.enrol(settings, cycle_id, BUDGET_S, sample)
    return cycle_id


def _digest(settings: Settings) -> str:
    """Of what was answered to what: the same however it was shared out."""
    database = open_database(settings)
    try:
        with database.transaction() as connection:
            rows = connection.execute(_ANSWERS).fetchall()
    finally:
        database.close()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def measured(folder: Path, hands: tuple[int, int], sample: int) -> dict[str, Any]:
    """`measure` in a process and an installation of its own.

    Raises:
        subprocess.TimeoutExpired: it took more than `BOUND_S` seconds.
    """
    workers, lanes = hands
    _clear(folder)
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged", "RUVLLM_ACCEPT_GEMMA_TERMS": "true",
        "RUVLLM_THREADS": "1", "RUVLLM_COLLECT_WORKERS": str(workers), "PREFECT_LOGGING_LEVEL": "WARNING",
        "RUVLLM_SEARCH_K": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.fan_out", str(folder), "-", f"--sample={sample}"]
    try:
        done = subprocess.run(
            [*command, f"--measure={lanes}"], env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True,
            check=True, timeout=BOUND_S,
        )  # fmt: skip
    finally:
        _clear(folder)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _clear(folder: Path) -> None:
    """What an earlier run left that was stopped in the middle, servers and all."""
    if folder.exists():
        down(load_settings({}, state_dir=folder))
        shutil.rmtree(folder)


def page(path: Path, sample: int, found: dict[str, dict[str, Any]]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    rows = [
        f"| {name} | {r['questions']} ({' + '.join(map(str, r['of_each']))}) | {r['runs']} | {r['seconds']:.1f} | "
        f"{r['model_seconds']:.1f} | {r['whole_s']:.1f} | {r['load']:.1f} |"
        for name, r in found.items()
    ]
    lines = [
        "# A collection shared by Dask workers", "",
        f"`python -m tests.benchmarks.night.fan_out FOLDER {path} --sample {sample}`; {said}.", "",
        "A lane is a pool of models with one thread; a worker has one, unless it is said. Seconds are of the slower "
        "worker, loading of models included; `of models` is what all models worked; `whole` adds cluster and flow; "
        "load is the machine's at the end. N is one run of each.", "", *_verdicts(found), "",
        "| hands | questions (each worker's) | runs of models | seconds | of models | whole | load |",
        "|---|---|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _verdicts(found: dict[str, dict[str, Any]]) -> list[str]:
    """Each of the others beside one worker, in a sentence."""
    one = found[ONE]
    return [
        f"- {name}: {one['seconds'] / r['seconds']:.2f} times as fast as {ONE} (whole: "
        f"{one['whole_s'] / r['whole_s']:.2f}), with {_same(one, r)} outcomes."
        for name, r in found.items() if name != ONE
    ]  # fmt: skip


def _same(one: dict[str, Any], other: dict[str, Any]) -> str:
    return "the same" if one["outcomes_sha256"] == other["outcomes_sha256"] else "**other**"


def run_all(folder: Path, path: Path, sample: int) -> dict[str, dict[str, Any]]:
    """What is kept of earlier runs, and the rest measured; the page after each."""
    kept = folder / f"fan-out-{sample}.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name, hands in HANDS.items():
        if name not in found:
            found[name] = measured(folder / name.replace(" ", "-").replace(",", ""), hands, sample)
            kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(name, json.dumps(found[name]), flush=True)
        path.write_text(page(path, sample, found), encoding="utf-8")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what a second Dask worker brings.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--sample", type=int, default=18, help="questions")
    parser.add_argument("--measure", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measure(given.sample, given.measure)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    given.folder.mkdir(parents=True, exist_ok=True)
    found = run_all(given.folder.absolute(), given.page, given.sample)
    return 0 if len({r["outcomes_sha256"] for r in found.values()}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
