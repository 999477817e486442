"""What comes in of edges, and what of them attention gets to see: bounded, finite, in a defined order."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ruvllm.attention.graph import MAX_DEGREE, MAX_EDGES, N_CODES, Edges, directed, sound
from ruvllm.errors import InputError


def edges(rows: list[tuple[int, int, int, float]], confidence: float = 1.0, age: float = 0.0) -> Edges:
    src, dst, relation, weight = zip(*rows, strict=True) if rows else ((), (), (), ())
    count = len(rows)
    return Edges(
        np.array(src, np.int64), np.array(dst, np.int64), np.array(relation, np.int8), np.array(weight, np.float32),
        np.full(count, confidence, np.float32), np.full(count, age, np.float32),
    )  # fmt: skip


def pairs(kept: Edges) -> list[tuple[int, int]]:
    return list(zip(kept.src.tolist(), kept.dst.tolist(), strict=True))


@pytest.mark.parametrize(
    "row", [(1, 1, 1, 0.5), (0, 1, 1, np.nan), (0, 1, 1, np.inf), (0, 9, 1, 0.5), (-1, 1, 1, 0.5), (0, 1, 0, 0.5),
            (0, 1, 7, 0.5)],
    ids=["to itself", "NaN", "infinite", "to nowhere", "from nowhere", "no relation", "unknown relation"],
)  # fmt: skip
def test_a_bad_edge_is_dropped_and_a_good_one_stays(row: tuple[int, int, int, float]) -> None:
    assert pairs(sound(edges([row, (2, 0, 3, 0.25)]), 3)) == [(2, 0)]


def test_bad_facts_of_an_edge_drop_it_too() -> None:
    assert len(sound(edges([(0, 1, 1, 0.5)], confidence=float("nan")), 2).src) == 0
    assert len(sound(edges([(0, 1, 1, 0.5)], age=float("inf")), 2).src) == 0


def test_numbers_are_brought_into_range() -> None:
    kept = sound(edges([(0, 1, 1, 7.0), (1, 0, 2, -3.0)], confidence=9.0, age=-5.0), 2)
    assert kept.weight.tolist() == [1.0, 0.0]
    assert kept.confidence.tolist() == [1.0, 1.0]
    assert kept.age_days.tolist() == [0.0, 0.0]


def test_too_many_edges_keep_the_heaviest_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    rows = [(i, j, 1 + (i + j) % 6, float(rng.random())) for i in range(60) for j in range(60) if i != j]
    first = sound(edges(rows), 60)
    again = sound(edges([rows[i] for i in rng.permutation(len(rows))]), 60)
    assert len(first.src) == MAX_EDGES
    assert pairs(first) == pairs(again)
    assert first.weight.min() > np.median([row[3] for row in rows])


def test_a_hub_keeps_its_heaviest_edges_and_leaves_room_for_others() -> None:
    hub = [(0, i % 255 + 1, 1 + i // 255 % 6, 0.5 + i / 1e6) for i in range(100_000)]
    started = time.process_time()
    kept = sound(edges([*hub, (7, 8, 1, 0.1)]), 256)
    assert time.process_time() - started < 2  # bounded work: it takes 0.05 s
    assert sum(src == 0 for src, _ in pairs(kept)) == MAX_DEGREE
    assert (7, 8) in pairs(kept)


def test_arrays_of_different_length_are_refused() -> None:
    good = edges([(0, 1, 1, 0.5)])
    with pytest.raises(InputError, match="one length"):
        sound(Edges(good.src, good.dst, good.relation, np.ones(2, np.float32), good.confidence, good.age_days), 2)


def test_every_edge_speaks_both_ways_and_every_node_to_itself() -> None:
    made = directed(sound(edges([(0, 2, 1, 0.5), (1, 2, 6, 0.75)]), 3), 3)
    said = list(zip(made.source.tolist(), made.target.tolist(), made.code.tolist(), strict=True))
    assert said == [(0, 0, 0), (2, 0, 7), (1, 1, 0), (2, 1, 12), (0, 2, 1), (1, 2, 6), (2, 2, 0)]
    assert made.code.max() < N_CODES
    assert (np.diff(made.target) >= 0).all()


def test_no_node() -> None:
    made = directed(sound(edges([]), 0), 0)
    assert len(made.source) == 0
