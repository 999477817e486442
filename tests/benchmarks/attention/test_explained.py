"""The picture of a question that attention helped, for the README: docs/explain.png. As `ruvllm memory explain` draws.

    python -m pytest -m benchmark tests/benchmarks/attention/test_explained.py --keep FOLDER
    python -m tests.benchmarks.attention.page FOLDER/results docs/attention.md

The questions are the packaged corpus's: what the picture shows anybody has. The model is trained on four fifths of
them; the picture is of the question of the last fifth whose gold rose most, of equals one that needs more passages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.attention.explain import draw
from ruvllm.attention.model import AttentionModel
from ruvllm.attention.shape import Shape
from ruvllm.attention.stage import Ranked, Retriever
from ruvllm.evaluation.retrieval import recall_at
from ruvllm.learning.attention import AttentionConfig, train
from ruvllm.memory import naming
from tests.benchmarks.attention import contest
from tests.benchmarks.attention.asked import corpus
from tests.benchmarks.attention.sets import Setting
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark

ASKED, MOST_BYTES = 400, 200_000
_ENCODER = "the set's"


def test_explained(config: AttentionConfig, keep: Path, report: Report) -> None:
    torch.set_num_threads(1)
    each = corpus(ASKED, keep).setting
    model, held_out = _trained(each, config), _held_out(each)
    place, ranked = max(((i, _ranked(each, i, model)) for i in held_out), key=lambda found: _risen(each, *found))
    path = report.folder / "explain.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = {id: naming.title_of(each.texts[id]) or each.texts[id] for id in ranked.ids.tolist()}
    draw(ranked, titles, path, each.questions[place], most=16)
    before, after = ({id: at for at, id in enumerate(ids.tolist(), start=1)} for ids in (ranked.graph.ids, ranked.ids))
    rows = [(titles[id][:60], before.get(id), after.get(id)) for id in each.gold[place]]
    note = f"{each.name}; the largest rise among {len(held_out)} held-out questions."
    report.table(f"The picture: {each.questions[place]}", ("gold passage", "place before", "place after"), rows, note)
    assert path.stat().st_size < MOST_BYTES


def _held_out(each: Setting) -> list[int]:
    return np.flatnonzero(contest.folds_of(each) == 0).tolist()


def _trained(each: Setting, config: AttentionConfig) -> AttentionModel:
    out = set(_held_out(each))
    lessons = [lesson for i, lesson in enumerate(contest.lessons_of(each, each.graphs())) if i not in out]
    made = train(lessons, Shape(each.vectors.shape[1]), config)
    return AttentionModel(made.shape, made.arrays, _ENCODER, "trained for the picture")


def _ranked(each: Setting, place: int, model: AttentionModel) -> Ranked:
    return Retriever(each.source, _ENCODER, model).rank(each.questions[place], each.vectors[place])


def _risen(each: Setting, place: int, ranked: Ranked) -> tuple[float, int]:
    gold = each.gold[place]
    return recall_at(ranked.ids.tolist(), gold, 5) - recall_at(ranked.graph.ids.tolist(), gold, 5), len(gold)
