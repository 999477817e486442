"""A small night on the packaged ladder that dies by its own hand at a step; a program for kills.py.

KILL_STEP=collect python -m tests.benchmarks.night.killed_night         after the step
KILL_STEP=collect KILL_UNKEPT=1 python -m …                             after its work, before its result is kept
KILL_STEP=in-dvc python -m …                                            at the first word of a training fold
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from ruvllm import corpus
from ruvllm.corpus import corpus_nodes
from ruvllm.corpus.questions import day, oracle_sample
from ruvllm.learning import cycle as cycles
from ruvllm.learning import dvc
from ruvllm.nightly import nightshift
from ruvllm.settings import load_settings

QUESTIONS, SAMPLE, BUDGET_S = 3, 15, 900.0  # a third of the sample is held out, and less is no night
_once = cycles.once
_heard = dvc.heard  # type: ignore[attr-defined]

Result = dict[str, Any]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def once(database: Any, cycle_id: str, name: str, work: Callable[[], Result]) -> Result:
    if name != os.environ.get("KILL_STEP"):
        return _once(database, cycle_id, name, work)
    if os.environ.get("KILL_UNKEPT") and name not in cycles.steps_done(database, cycle_id):
        work()
        die()
    result = _once(database, cycle_id, name, work)
    die()
    return result


def heard_and_die(line: str) -> tuple[int, int, str] | None:
    """dvc and its stage outlive this process."""
    step = _heard(line)
    if step is not None and "fold" in step[2]:
        die()
    return step


def main() -> None:
    if os.environ.get("KILL_STEP") == "in-dvc":
        dvc.heard = heard_and_die  # type: ignore[attr-defined]
    needed = {key for q in (*day(1, QUESTIONS), *oracle_sample(1, SAMPLE)) for key in q.gold_passages}
    nodes = [node for node in corpus_nodes() if node.metadata["key"] in needed]
    corpus.corpus_nodes = lambda: nodes  # all of it takes a minute to embed
    cycles.once = once
    nightshift.run_night(load_settings(), QUESTIONS, BUDGET_S, "kills", sample=SAMPLE)


if __name__ == "__main__":
    main()
