"""Ways to rank a memory's passages for a question, trained ones by folds. Knows nothing of tables.

What is trained is trained on the other folds' questions of every set together, one model for all, and asked only
questions it never saw. Every way sees the same seeds and the same neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ruvllm.attention.gather import Reach
from ruvllm.attention.graph import Subgraph
from ruvllm.attention.layers import AttentionNetwork
from ruvllm.attention.runtime import AttentionRuntime
from ruvllm.attention.shape import Shape
from ruvllm.learning.attention import AttentionConfig, Lesson, train
from ruvllm.memory.retrieval.hybrid import DEPTH, fused
from tests.benchmarks.attention.sets import Setting

FOLDS = 5
Ranking = list[int]
Rankings = dict[str, list[Ranking]]  # by set, one of each question


@dataclass(frozen=True)
class Cost:
    seconds: float  # of one training
    lessons: int


def dense(setting: Setting) -> list[Ranking]:
    return [setting.source.nearest(vector, DEPTH).ids.tolist() for vector in setting.vectors]


def words(setting: Setting) -> list[Ranking]:
    return [setting.source.words(question, DEPTH).ids.tolist() for question in setting.questions]


def hybrid(setting: Setting) -> list[Ranking]:
    pairs = zip(setting.questions, setting.vectors, strict=True)
    return [
        fused([setting.source.nearest(vector, DEPTH), setting.source.words(question, DEPTH)], DEPTH).ids.tolist()
        for question, vector in pairs
    ]


def two_hops(graphs: Sequence[Subgraph]) -> list[Ranking]:
    """Hybrid's seeds, and behind each what it leads to at half its score times the edges' weights."""
    return [graph.ids.tolist() for graph in graphs]


def untrained(graphs: Sequence[Subgraph], shape: Shape, seed: int) -> list[Ranking]:
    runtime = AttentionRuntime(shape, AttentionNetwork(shape, seed, random_head=True).arrays())
    return [graph.ids[runtime.attend(graph).order].tolist() for graph in graphs]


def folds_of(setting: Setting) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(setting.questions)) % FOLDS


def lessons_of(setting: Setting, graphs: Sequence[Subgraph]) -> list[Lesson]:
    return [Lesson.of(graph, dict.fromkeys(gold, 1.0)) for graph, gold in zip(graphs, setting.gold, strict=True)]


def trained(
    settings: Sequence[Setting], graphs: dict[str, list[Subgraph]], shape: Shape, config: AttentionConfig
) -> tuple[Rankings, Cost]:
    """By folds; a fold's model is trained on all sets."""
    return _by_folds(settings, graphs, lambda lessons: _fitted(lessons, shape, config))


def logistic(settings: Sequence[Setting], graphs: dict[str, list[Subgraph]]) -> tuple[Rankings, Cost]:
    """The same node features and supervision without any message: what attention has to be better than."""
    return _by_folds(settings, graphs, _regressed)


Order = Callable[[Subgraph], np.ndarray]


def _by_folds(
    settings: Sequence[Setting], graphs: dict[str, list[Subgraph]], fit: Callable[[list[Lesson]], tuple[Order, float]]
) -> tuple[Rankings, Cost]:
    lessons = {each.name: lessons_of(each, graphs[each.name]) for each in settings}
    folds = {each.name: folds_of(each) for each in settings}
    rankings: Rankings = {each.name: [[] for _ in each.questions] for each in settings}
    seconds, count = 0.0, 0
    for fold in range(FOLDS):
        seen = [lessons[name][i] for name in folds for i in np.flatnonzero(folds[name] != fold)]
        order, took = fit(seen)
        seconds, count = seconds + took, count + len(seen)
        for name in folds:
            for i in np.flatnonzero(folds[name] == fold):
                graph = graphs[name][i]
                rankings[name][i] = graph.ids[order(graph)].tolist()
    return rankings, Cost(seconds / FOLDS, count // FOLDS)


def _fitted(lessons: list[Lesson], shape: Shape, config: AttentionConfig) -> tuple[Order, float]:
    made = train(lessons, shape, config)
    runtime = AttentionRuntime(shape, made.arrays)
    return lambda graph: runtime.attend(graph).order, made.seconds


def _regressed(lessons: list[Lesson]) -> tuple[Order, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([_flat(lesson.graph) for lesson in lessons])
    useful = np.concatenate([lesson.useful > 0 for lesson in lessons])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features, useful)
    return lambda graph: np.argsort(-model.decision_function(_flat(graph)), kind="stable"), 0.0


def _flat(graph: Subgraph) -> np.ndarray:
    return np.concatenate([graph.nodes, graph.prior[:, None]], axis=1)


def without_edges() -> Reach:
    return Reach(edges=False)
