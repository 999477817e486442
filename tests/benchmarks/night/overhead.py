"""What a night costs beside its models and its training, part by part, against a goal of 60 s.

    python -m tests.benchmarks.night.overhead FOLDER docs/night-overhead.md [--nights 3]

Small nights with the packaged models, one after the other in one installation under FOLDER: the first makes databases,
the later ones find them. Each is a process of its own, as `ruvllm cycle` is. Orchestration is all that is not a step in
which models answer, embed or are trained: start and end of the servers, Prefect's own work, and the other steps.
Processor seconds are this process's and Prefect's server's; they tell how much of the time other programs took.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from ruvllm import corpus, process, services
from ruvllm.corpus import corpus_nodes
from ruvllm.corpus.questions import day, oracle_sample
from ruvllm.settings import PROJECT_ROOT, Settings, load_settings
from tests.benchmarks.memory.report import conditions
from tests.benchmarks.night.week import WANTED_S, WORK

QUESTIONS, SAMPLE, BUDGET_S = 3, 15, 900.0
NIGHTS = 3
_ASIDE = "the corpus made small"
_FIELDS = ("user", "system", "children_user", "children_system")


def one_night() -> dict[str, Any]:
    """What `ruvllm cycle` does, with a clock between its parts."""
    settings = load_settings()
    marks = {"begun": psutil.Process().create_time(), "Python and imports": time.time()}
    _small_corpus()
    marks[_ASIDE] = time.time()
    with services.prefect_as_found(settings) as api_url:
        marks["servers started"] = time.time()
        os.environ.update(services.prefect_environment(settings), PREFECT_API_URL=api_url)
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        from flows.nightly import run_here

        marks["flows imported"] = time.time()
        steps = run_here(QUESTIONS, BUDGET_S, "overhead", SAMPLE)["steps"]
        marks["flow run"] = time.time()
        server_cpu = _server_cpu(settings)
    marks["servers stopped"] = time.time()
    own = psutil.Process().cpu_times()
    return {
        "parts": _parts(marks), "steps": {name: step["seconds_taken"] for name, step in steps.items()},
        "own_cpu_s": sum(getattr(own, field) for field in _FIELDS), "prefect_cpu_s": server_cpu,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def _small_corpus() -> None:
    """The passages of the nights' questions: embedding all of the corpus takes a minute."""
    nights = range(1, 10)
    questions = [q for n in nights for q in (*day(n, QUESTIONS), *oracle_sample(n, SAMPLE))]
    needed = {key for question in questions for key in question.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    corpus.corpus_nodes = lambda: nodes


def _parts(marks: dict[str, float]) -> dict[str, float]:
    """Seconds up to each mark, from the one before."""
    return {name: marks[name] - marks[before] for before, name in pairwise(marks) if name != _ASIDE}


def _server_cpu(settings: Settings) -> float:
    """Of the Prefect server and its workers, since its start."""
    server = process.find(settings.run_dir / "prefect.pid.json")
    family = [server, *server.children(recursive=True)] if server else []
    return float(sum(each.cpu_times().user + each.cpu_times().system for each in family))


def measured(folder: Path) -> dict[str, Any]:
    """`one_night` in a process of its own."""
    environment = {
        **os.environ, "RUVLLM_STATE_DIR": str(folder / "state"), "RUVLLM_LADDER": "packaged",
        "RUVLLM_ACCEPT_GEMMA_TERMS": "true", "RUVLLM_SEARCH_K": "2", "RUVLLM_MAX_TOKENS": "8",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.benchmarks.night.overhead", str(folder), "-", "--one"]
    done = subprocess.run(command, env=environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(found: dict[str, Any]) -> dict[str, float]:
    """Every part of one night's orchestration, in seconds; `flow run` is what its steps leave of it."""
    steps, parts = found["steps"], dict(found["parts"])
    parts["flow run, between the steps"] = parts.pop("flow run") - sum(steps.values())
    return {**parts, **{f"step {name}": seconds for name, seconds in steps.items() if name not in WORK}}


def page(path: Path, nights: list[dict[str, Any]]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in conditions().items())
    by_part = [rows(found) for found in nights]
    totals = [sum(parts.values()) for parts in by_part]
    work = [sum(found["steps"].get(name, 0.0) for name in WORK) for found in nights]
    middle = statistics.median(totals)
    verdict = "met" if middle < WANTED_S else "**missed**"
    table = {
        **{name: [parts.get(name, 0.0) for parts in by_part] for name in by_part[-1]},
        "**orchestration**": totals, "models and training": work,
        "processor: this process and what it waited for": [found["own_cpu_s"] for found in nights],
        "processor: Prefect's server": [found["prefect_cpu_s"] for found in nights],
        "load of the machine at the end": [found["load"] for found in nights],
    }  # fmt: skip
    columns = ["part", *(f"night {number}" for number in range(1, len(nights) + 1))]
    lines = [
        "# What a night costs beside its models", "",
        f"`python -m tests.benchmarks.night.overhead FOLDER {path}`; {said}.", "",
        f"Seconds. Models and training are the steps {', '.join(WORK)}; all else is orchestration. Median of "
        f"{len(nights)} small nights: {middle:.1f} s, wanted under {WANTED_S:g} s: {verdict}.", "",
        f"| {' | '.join(columns)} |", "|---" * len(columns) + "|",
        *(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |" for name, values in table.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what a night costs beside its models.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(one_night()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    folder = given.folder.absolute()
    nights: list[dict[str, Any]] = []
    try:
        for _ in range(given.nights):
            nights.append(measured(folder))
            print(json.dumps(nights[-1]), flush=True)
            given.page.write_text(page(given.page, nights), encoding="utf-8")
    finally:
        services.down(load_settings({}, state_dir=folder / "state"))
    return 0 if statistics.median(sum(rows(found).values()) for found in nights) < WANTED_S else 1


if __name__ == "__main__":
    sys.exit(main())
