from __future__ import annotations

import math
from pathlib import Path

import pytest

from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.threads import BUDGET_S, candidates, choose, cores
from ruvllm.inference.tiers import Tier
from ruvllm.settings import Settings

NEVER = math.inf


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 0.55}, 2),
        ({1: 1.0, 2: 0.95}, 1),  # not worth a second core
        ({1: 0.5, 2: 5.0}, 1),  # two threads spin for one another beside a busy process
        ({1: NEVER, 2: 1.0}, 2),
        ({1: NEVER, 2: NEVER}, 2),
        ({1: 1.0, 4: 0.3, 8: 0.29}, 4),
    ],
)
def test_the_fewest_threads_that_no_more_beat_clearly(seconds: dict[int, float], best: int) -> None:
    assert choose(seconds) == best


def test_candidates_are_within_the_machine() -> None:
    assert [candidates(n) for n in (1, 2, 3, 16)] == [[1], [1, 2], [1, 3], [1, 8, 16]]


def test_a_worker_measures_its_threads_in_a_budget_below_two_seconds(
    tiers: dict[str, Tier], paths: dict[str, Path], model_settings: Settings
) -> None:
    with LlamaWorker(tiers["few-shot"], paths["few-shot"], model_settings) as worker:
        assert {worker.threads.decode, worker.threads.prefill} <= set(candidates(cores()))
    assert BUDGET_S < 2
