"""A small night on the packaged ladder that dies by its own hand after a step; a program for kills.py.

KILL_AFTER=collect python -m tests.benchmarks.night.killed_night
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ruvllm import corpus
from ruvllm.corpus import corpus_nodes
from ruvllm.corpus.questions import day, oracle_sample
from ruvllm.learning import cycle as cycles
from ruvllm.learning import dvc
from ruvllm.nightly import nightshift
from ruvllm.settings import load_settings

QUESTIONS, SAMPLE, BUDGET_S = 4, 18, 900.0
_once = cycles.once
dvc_heard = dvc.heard  # type: ignore[attr-defined]


def once(database: Any, cycle_id: str, name: str, work: Any) -> Any:
    result = _once(database, cycle_id, name, work)
    if name == os.environ.get("KILL_AFTER"):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def heard_and_die(line: str) -> tuple[int, int, str] | None:
    """At the first word of a training fold: dvc and the stage outlive this process."""
    step = dvc_heard(line)
    if step is not None and "fold" in step[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step


def main() -> None:
    if os.environ.get("KILL_AFTER") == "in-dvc":
        dvc.heard = heard_and_die  # type: ignore[attr-defined]
    needed = {key for q in (*day(1, QUESTIONS), *oracle_sample(1, SAMPLE)) for key in q.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    corpus.corpus_nodes = lambda: nodes  # all of it takes a minute to embed
    cycles.once = once
    nightshift.run_night(load_settings(), QUESTIONS, BUDGET_S, "kills", sample=SAMPLE)


if __name__ == "__main__":
    main()
