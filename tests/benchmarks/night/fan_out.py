"""One night's collection by one Dask worker and by two, on this machine: outcomes, seconds, speed-up.

    python -m tests.benchmarks.night.fan_out FOLDER docs/fan-out.md --sample 24      (needs the extra fan-out)

Every worker has one lane of models with one thread, so that two workers have twice the hands of one. (By default a
machine's lanes use all of its cores, and more workers on the same machine bring nothing.) Each measurement has an
installation of its own under FOLDER, with the same questions; models answer for real. Speed-up is of the collection's
own seconds, those of the slower worker, loading of models included; `whole` adds cluster and flow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
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
from ruvllm.nightly import night, sharing
from ruvllm.services import down, prefect_environment, prefect_running
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory.report import conditions

BUDGET_S = 3600.0  # a bound: everything is to be collected
_ANSWERS = """
    SELECT query, tier, context_bin, answer, quality FROM learning.oracle_runs ORDER BY query, tier, context_bin
"""


def measure(sample: int) -> dict[str, Any]:
    """In this process's own installation, with the workers that its environment names."""
    settings = load_settings()
    with prefect_running(settings) as api_url:
        os.environ.update(prefect_environment(settings), PREFECT_API_URL=api_url)
        from flows.sharing import share_out

        cycle_id = _prepare(settings, sample)
        begun = time.monotonic()
        shares = share_out(settings, cycle_id, BUDGET_S, lanes=1)
        whole_s = time.monotonic() - begun
    report = sharing.together([sharing.OracleReport(**share) for share in shares])
    return {
        "workers": settings.collect_workers, "questions": report.queries, "runs": report.runs,
        "seconds": report.seconds, "model_seconds": report.model_seconds, "whole_s": whole_s,
        "outcomes_sha256": _digest(settings),
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


def measured(folder: Path, workers: int, sample: int) -> dict[str, Any]:
    """`measure` in a process and an installation of its own."""
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(folder), "RUVLLM_LADDER": "packaged", "RUVLLM_ACCEPT_GEMMA_TERMS": "true",
        "RUVLLM_THREADS": "1", "RUVLLM_COLLECT_WORKERS": str(workers), "PREFECT_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.fan_out", str(folder), "", "--measure", str(sample)]
    try:
        done = subprocess.run(command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        down(load_settings({}, state_dir=folder))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def page(path: Path, one: dict[str, Any], two: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    same = "the same" if one["outcomes_sha256"] == two["outcomes_sha256"] else "**not the same**"
    rows = [
        f"| {r['workers']} | {r['questions']} | {r['runs']} | {r['seconds']:.1f} | {r['whole_s']:.1f} |"
        for r in (one, two)
    ]
    lines = [
        "# A collection shared by Dask workers", "",
        f"`python -m tests.benchmarks.night.fan_out FOLDER {path}`; {said}.", "",
        f"Two workers are {one['seconds'] / two['seconds']:.2f} times as fast as one (whole: "
        f"{one['whole_s'] / two['whole_s']:.2f}), with one lane of models each; their outcomes are {same}. N is one "
        "run of each.", "",
        "| workers | questions | runs of models | seconds | whole |", "|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what a second Dask worker brings.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--sample", type=int, default=24, help="questions")
    parser.add_argument("--measure", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    one, two = (measured(given.folder.absolute() / f"workers-{n}", n, given.sample) for n in (1, 2))
    given.page.write_text(page(given.page, one, two), encoding="utf-8")
    print(json.dumps([one, two], indent=1))
    return 0 if one["outcomes_sha256"] == two["outcomes_sha256"] else 1


if __name__ == "__main__":
    sys.exit(main())
