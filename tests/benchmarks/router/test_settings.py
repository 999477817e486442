"""Which settings the competing networks get: chosen by folds within training rows, never on rows that are reported.

python -m pytest -m benchmark tests/benchmarks/router/test_settings.py --data FOLDER --keep FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.learning.outcomes.baselines import Mlp
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.networks import Training
from ruvllm.learning.outcomes.ours import FastGrnnQuality, Recipe
from ruvllm.learning.outcomes.records import TRAIN
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import VIEWS, Arena, apgr_of
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

SET = "paretobandit_k3"


@dataclass(frozen=True)
class Tried:
    what: str
    training: Training


TRIED = (
    Tried("light: dropout 0.3, decay 0.3", Training(dropout=0.3, weight_decay=0.3)),
    Tried("strong: dropout 0.6, decay 2", Training(dropout=0.6, weight_decay=2.0)),
    Tried("strong, no order term", Training(dropout=0.6, weight_decay=2.0, order_weight=0.0)),
    Tried(
        "strongest, slow, no order term",
        Training(dropout=0.7, weight_decay=5.0, learning_rate=0.0015, order_weight=0.0),
    ),
)


def _recipe(training: Training) -> Recipe:
    """Ours starts at the linear solution: fewer steps, and the order term as tried."""
    return Recipe(training=replace(training, steps=160))


def test_settings(data: Path, cache: EmbeddingCache, out: Path, command: str, seeds: int) -> None:
    whole = load(data, SET)
    train = whole.rows(np.flatnonzero(whole.split == TRAIN))
    train = replace(train, split=np.full(len(train), ""))  # folds within it
    arena = Arena(train, cache.embed(train.queries), cache.adapter.id)
    report = Report("settings", out)
    report.conditions = conditions(n=len(train), seeds=min(seeds, 2), command=command)
    rows = []
    for tried in TRIED:
        for learner in (Mlp(training=tried.training), FastGrnnQuality(recipe=_recipe(tried.training))):
            for view in VIEWS:
                found = [apgr_of(arena, learner, view, seed) for seed in range(min(seeds, 2))]
                rows.append((tried.what, learner.name, view, float(np.mean(found)), float(np.std(found))))
    report.table(
        "Settings of the networks",
        ("settings", "network", "looks at", "APGR over cost", "sd over seeds"),
        rows,
        f"Out of fold within the training rows of {SET}; the set's test rows and the other sets had no say.",
    )
    assert (out / "settings.json").is_file()
