"""Training learns what only edges tell, repeats itself and refuses what teaches nothing; labels; the gate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ruvllm.attention.graph import EDGE_FEATURES, N_EDGE, N_NODE, NODE_FEATURES, Edges, Subgraph, directed, sound
from ruvllm.attention.runtime import AttentionRuntime
from ruvllm.attention.shape import Shape
from ruvllm.errors import GateError, LearningError
from ruvllm.evaluation.retrieval import recall_at
from ruvllm.learning.attention import AttentionConfig, Lesson, listwise_loss, thinned, train
from ruvllm.learning.attention_gate import AttentionPolicy, Held, judge, require
from ruvllm.learning.attention_labels import Evidence, usefulness
from tests.attention.made import graph

SHAPE = Shape(4, width=16, heads=2, layers=1)
QUICK = AttentionConfig(epochs=25, batch=8, edge_dropout=0.05)
_FUSED = NODE_FEATURES.index("fused")


def puzzle(seed: int, n: int = 12) -> Subgraph:
    """Node 0 is what the question finds; the answer is the one node that it cites, which looks like all others.

    Other edges are of another relation, so nodes alone say nothing about which it is.
    """
    rng = np.random.default_rng(seed)
    answer = int(rng.integers(1, n))
    others = [(int(a), int(b), 3) for a, b in rng.integers(1, n, (10, 2)) if a != b]
    rows = np.array([(0, answer, 1), *others])
    count = len(rows)
    real = np.ones(count, np.float32)
    relation: np.ndarray = rows[:, 2].astype(np.int8)
    messages = directed(sound(Edges(rows[:, 0], rows[:, 1], relation, real, real, 0 * real), n), n)
    nodes = np.zeros((n, N_NODE), np.float32)
    nodes[0, _FUSED] = 2.0
    prior = np.concatenate([[2.0], rng.random(n - 1)]).astype(np.float32)
    return Subgraph(
        np.arange(n), nodes, np.zeros((n, 4), np.float32), prior, (np.arange(n) > 0).astype(np.float32),
        np.zeros(n, np.float32), messages.source, messages.target, messages.code,
        np.ones((len(messages.code), N_EDGE), np.float32),
    )  # fmt: skip


def answer_of(made: Subgraph) -> int:
    (m,) = np.flatnonzero((made.source == 0) & (made.code == 1))
    return int(made.target[m])


def lessons(count: int, start: int = 0) -> list[Lesson]:
    made = [puzzle(start + i) for i in range(count)]
    return [Lesson.of(each, {answer_of(each): 1.0}) for each in made]


@pytest.fixture(scope="module")
def trained():  # type: ignore[no-untyped-def]
    return train(lessons(48), SHAPE, QUICK)


def found(runtime: AttentionRuntime, seen: list[Lesson]) -> list[float]:
    return [recall_at(each.graph.ids[runtime.attend(each.graph).order].tolist(), [answer_of(each.graph)], 1)
            for each in seen]  # fmt: skip


def test_what_only_edges_tell_is_learnt_and_holds_for_unseen_questions(trained) -> None:  # type: ignore[no-untyped-def]
    unseen = lessons(40, start=1000)
    before = [recall_at(np.argsort(-each.graph.prior).tolist(), [answer_of(each.graph)], 1) for each in unseen]
    after = found(AttentionRuntime(SHAPE, trained.arrays), unseen)
    assert np.mean(after) > 0.9
    assert np.mean(before) < 0.3
    assert trained.losses[-1] < trained.losses[0] / 2


def test_without_edges_nothing_is_learnt() -> None:
    """The same lessons with the edges taken away: the test above measures messages, nothing else."""
    blind = [replace(each, graph=thinned(each.graph, 1.0, np.random.default_rng(0))) for each in lessons(48)]
    made = train(blind, SHAPE, QUICK)
    unseen = [thinned(each.graph, 1.0, np.random.default_rng(0)) for each in lessons(40, start=1000)]
    runtime = AttentionRuntime(SHAPE, made.arrays)
    right = [int(runtime.attend(each).order[0]) == answer_of(puzzle(1000 + i)) for i, each in enumerate(unseen)]
    assert np.mean(right) < 0.4


def test_training_repeats_itself() -> None:
    short = AttentionConfig(epochs=2, batch=8)
    first, second = (train(lessons(16), SHAPE, short) for _ in range(2))
    for name, array in first.arrays.items():
        assert (array == second.arrays[name]).all(), name
    other = train(lessons(16), SHAPE, replace(short, seed=1))
    assert any((array != other.arrays[name]).any() for name, array in first.arrays.items())


def test_a_new_network_keeps_the_order_before_it() -> None:
    """Nothing learnt, nothing changed: the head starts at 0."""
    from ruvllm.attention.layers import AttentionNetwork

    runtime = AttentionRuntime(SHAPE, AttentionNetwork(SHAPE).arrays())
    made = puzzle(1)
    assert runtime.attend(made).order.tolist() == np.argsort(-made.prior, kind="stable").tolist()


def test_a_question_without_gold_in_reach_is_left_out_and_counted() -> None:
    missing = Lesson.of(puzzle(3), {999: 1.0})
    assert (missing.teaches, missing.missing) == (False, 1)
    made = train([*lessons(10), missing], SHAPE, AttentionConfig(epochs=1))
    assert (made.questions, made.left_out) == (10, 1)


def test_too_few_lessons_are_refused() -> None:
    with pytest.raises(LearningError, match="at least 8"):
        train(lessons(7), SHAPE, QUICK)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_usefulness_must_be_a_number_from_0_on(wrong: float) -> None:
    with pytest.raises(LearningError, match="usefulness"):
        Lesson.of(graph(3), {101: wrong})


def test_epochs_are_bounded_by_visits() -> None:
    assert AttentionConfig(epochs=15, visits=30_000).epochs_for(200) == 15
    assert AttentionConfig(epochs=15, visits=30_000).epochs_for(5000) == 6
    assert AttentionConfig(visits=10).epochs_for(5000) == 1


def test_the_loss_by_hand() -> None:
    """Scores 0, ln 2, absent; gold one half each: -(½ ln 1/3 + ½ ln 2/3)."""
    scores = torch.tensor([[0.0, math.log(2), -math.inf]])
    wanted = -(0.5 * math.log(1 / 3) + 0.5 * math.log(2 / 3))
    assert float(listwise_loss(scores, [np.array([1.0, 1.0], np.float32)])) == pytest.approx(wanted, rel=1e-6)


def test_thinning_keeps_what_a_node_says_to_itself() -> None:
    made = thinned(graph(9, 20), 1.0, np.random.default_rng(0))
    assert (made.code == 0).all()
    assert len(made.code) == 9
    assert EDGE_FEATURES[0] == "weight"


# --- labels -----------------------------------------------------------------------------------------------------------

SHOWN = {1: "Velm was founded in 1911 by Ida Torsen.", 2: "Camber makes clocks.", 3: "Trains are green."}


@pytest.mark.parametrize(
    ("evidence", "wanted"),
    [
        (Evidence("x", SHOWN, gold=(2, 9)), {2: 1.0, 9: 1.0}),
        (Evidence("1911", SHOWN, quality=0.9, without={1: 0.2, 2: 0.88}), {1: pytest.approx(0.7)}),
        (Evidence("clocks and trains are green", SHOWN, quality=0.9, without={3: 0.9}), {}),
        (Evidence("1911 by Ida Torsen", SHOWN, quality=0.9, without={3: 0.9}), {1: pytest.approx(0.9)}),
        (Evidence("1911 [1]", SHOWN, quality=0.8, cited=(1, 7)), {1: 0.8}),
        (Evidence("founded by Ida Torsen", SHOWN, quality=1.0), {1: pytest.approx(1.0)}),
        (Evidence("founded by Ida Torsen", SHOWN, quality=0.4), {}),
        (Evidence("founded by Ida Torsen", SHOWN), {}),
        (Evidence("founded by Ida Torsen", SHOWN, quality=1.0, feedback=0.0), {}),
        (Evidence("clocks", SHOWN, quality=0.0, feedback=1.0), {2: pytest.approx(1.0)}),
        (Evidence("???", SHOWN, quality=1.0), {}),
    ],
    ids=["gold", "leaving out", "not needed", "not needed, others", "cited", "overlap", "bad answer", "unscored",
         "feedback says no", "feedback says yes", "no words"],
)  # fmt: skip
def test_usefulness(evidence: Evidence, wanted: dict[int, float]) -> None:
    assert usefulness(evidence) == wanted


def test_a_quality_out_of_range_is_refused() -> None:
    with pytest.raises(LearningError, match="quality"):
        usefulness(Evidence("x", SHOWN, quality=math.nan))


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_the_gate_passes_what_was_learnt_and_refuses_what_was_not(trained) -> None:  # type: ignore[no-untyped-def]
    """On real figures of a trained model and of one trained on shuffled gold."""
    unseen = lessons(60, start=2000)
    before = {"prior": [recall_at(np.argsort(-each.graph.prior).tolist(), [answer_of(each.graph)], 1)
                        for each in unseen]}  # fmt: skip
    good = judge([Held("puzzles", found(AttentionRuntime(SHAPE, trained.arrays), unseen), before)])
    require(good)
    assert "passed" in good.table()

    rng = np.random.default_rng(5)
    shuffled = [Lesson.of(each.graph, {int(rng.integers(1, 12)): 1.0}) for each in lessons(48)]
    bad_model = AttentionRuntime(SHAPE, train(shuffled, SHAPE, replace(QUICK, epochs=6)).arrays)
    bad = judge([Held("puzzles", found(bad_model, unseen), before)])
    assert not bad.passed
    with pytest.raises(GateError, match="does not beat prior"):
        require(bad)


def test_the_best_baseline_counts() -> None:
    ours = [1.0] * 60
    baselines = {"weak": [0.0] * 60, "strong": [1.0] * 60}
    with pytest.raises(GateError, match="strong"):
        require(judge([Held("s", ours, baselines)]))


def test_too_few_questions_are_inconclusive() -> None:
    verdict = judge([Held("s", [1.0] * 49, {"b": [0.0] * 49})])
    assert "inconclusive" in verdict.rows[0].reason
    assert judge([Held("s", [1.0] * 50, {"b": [0.0] * 50})]).passed


def test_a_loss_elsewhere_refuses() -> None:
    gain = Held("several", [1.0] * 60, {"b": [0.0] * 60})
    small = Held("one", [0.99] * 200, {"b": [1.0] * 200}, gain_expected=False)
    large = Held("one", [0.9] * 200, {"b": [1.0] * 200}, gain_expected=False)
    assert judge([gain, small]).passed
    with pytest.raises(GateError, match="loses to b"):
        require(judge([gain, large]))
    assert judge([gain, large], AttentionPolicy(most_loss=0.2)).passed


def test_a_gate_that_could_show_nothing_is_refused() -> None:
    with pytest.raises(GateError, match="a gain is expected"):
        judge([Held("one", [1.0] * 60, {"b": [1.0] * 60}, gain_expected=False)])
    with pytest.raises(GateError, match="baseline"):
        judge([Held("one", [1.0] * 60, {})])
