"""The picture of a question that attention helped, for the README: docs/explain.png. As `ruvllm memory explain` draws.

    python -m pytest -m benchmark tests/benchmarks/attention/test_explained.py --data FOLDER --keep FOLDER
    python -m tests.benchmarks.attention.page FOLDER/results docs/attention.md

The model is trained on four fifths of the questions that need several passages; the picture is of the question of the
last fifth whose gold rose most.
"""

from __future__ import annotations

import numpy as np
import pytest

from ruvllm.attention.explain import draw
from ruvllm.attention.model import AttentionModel
from ruvllm.attention.shape import Shape
from ruvllm.attention.stage import Ranked, Retriever
from ruvllm.evaluation.retrieval import recall_at
from ruvllm.learning.attention import AttentionConfig, train
from ruvllm.memory import naming
from tests.benchmarks.attention import contest
from tests.benchmarks.attention.sets import Setting
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark

MOST_BYTES = 200_000
_ENCODER = "the set's"


def test_explained(settings: list[Setting], config: AttentionConfig, report: Report) -> None:
    several = [each for each in settings if each.several]
    model = _trained(several, config)
    each, place, ranked = max(
        ((each, i, _ranked(each, i, model)) for each in several for i in _held_out(each)),
        key=lambda found: _risen(found[0], found[1], found[2]),
    )
    path = report.folder / "explain.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = {id: naming.title_of(each.texts[id]) or each.texts[id] for id in ranked.ids.tolist()}
    draw(ranked, titles, path, each.questions[place], most=16)
    before, after = ({id: at for at, id in enumerate(ids.tolist(), start=1)} for ids in (ranked.graph.ids, ranked.ids))
    rows = [(titles[id], before.get(id), after.get(id)) for id in each.gold[place]]
    note = f"{each.name}; the largest rise among {sum(len(_held_out(other)) for other in several)} held-out questions."
    report.table(f"The picture: {each.questions[place]}", ("gold passage", "place before", "place after"), rows, note)
    assert path.stat().st_size < MOST_BYTES


def _held_out(each: Setting) -> list[int]:
    return np.flatnonzero(contest.folds_of(each) == 0).tolist()


def _trained(several: list[Setting], config: AttentionConfig) -> AttentionModel:
    lessons = []
    for each in several:
        out = set(_held_out(each))
        every = contest.lessons_of(each, each.graphs())
        lessons += [lesson for i, lesson in enumerate(every) if i not in out]
    made = train(lessons, Shape(several[0].vectors.shape[1]), config)
    return AttentionModel(made.shape, made.arrays, _ENCODER, "trained for the picture")


def _ranked(each: Setting, place: int, model: AttentionModel) -> Ranked:
    return Retriever(each.source, _ENCODER, model).rank(each.questions[place], each.vectors[place])


def _risen(each: Setting, place: int, ranked: Ranked) -> float:
    gold = each.gold[place]
    return recall_at(ranked.ids.tolist(), gold, 5) - recall_at(ranked.graph.ids.tolist(), gold, 5)
