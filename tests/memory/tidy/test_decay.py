"""Edges fade with time, once; learn from answers; and what was pruned can be had back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import runs
from ruvllm.memory.tidy.decay import decay, reinforce
from tests.memory.tables import contents

NOW = datetime.now(UTC)


def _linked(memory: Memory) -> list[int]:
    a, b, c = memory.add([NewNode(text) for text in "abc"]).ids
    memory.link_all(
        [(a, b, "SameTopic", 0.8), (b, c, "Cites", 0.06), (a, c, "Derived", 0.01), (c, a, "Contains", 1.0)], "test"
    )
    return [a, b, c]


def _weights(database: Database) -> dict[str, float]:
    with database.transaction() as connection:
        return {rel: round(w, 4) for rel, w in connection.execute("SELECT rel, weight FROM memory.edges")}


def _at(days: float) -> datetime:
    return NOW + timedelta(days=days, hours=1)


def test_a_weight_halves_in_thirty_days_whatever_the_nights(memory: Memory, database: Database) -> None:
    _linked(memory)
    for night in range(1, 43):  # 42 days are six steps
        decay(database, apply=True, now=_at(night))
    assert _weights(database)["SameTopic"] == round(0.8 * 0.5 ** (42 / 30), 4)


def test_once_after_a_long_time_is_the_same(memory: Memory, database: Database) -> None:
    _linked(memory)
    decay(database, apply=True, now=_at(42))
    assert _weights(database)["SameTopic"] == round(0.8 * 0.5 ** (42 / 30), 4)


def test_a_second_run_on_a_day_changes_nothing(memory: Memory, database: Database) -> None:
    _linked(memory)
    assert decay(database, apply=True, now=_at(7)).faded == 2
    before = contents(database)
    again = decay(database, apply=True, now=_at(7))
    assert (again.faded, again.pruned) == (0, 0)
    assert contents(database) == before


def test_what_falls_below_the_floor_is_pruned_and_provenance_is_not(memory: Memory, database: Database) -> None:
    a, b, _ = _linked(memory)
    before = contents(database)
    dry = decay(database, now=_at(14))
    assert (dry.dry, dry.faded, dry.pruned) == (True, 1, 1)
    assert contents(database) == before
    real = decay(database, now=_at(14))
    assert (real.dry, real.faded, real.pruned) == (False, 1, 1)
    assert set(_weights(database)) == {"SameTopic", "Derived", "Contains"}
    assert _weights(database)["Derived"] == 0.01
    with database.transaction() as connection:
        packed = connection.execute("SELECT neighbours FROM memory.adjacency WHERE node = %s", [b]).fetchone()
    assert packed == ([a],)
    runs.undo(database, real.run)
    assert contents(database) == before


def test_undo_leaves_a_weight_that_was_learnt_since(memory: Memory, database: Database) -> None:
    a, b, _ = _linked(memory)
    run = decay(database, apply=True, now=_at(7)).run
    faded = _weights(database)
    with database.transaction() as connection:
        assert reinforce(connection, [a, b], 1.0) == 1
    runs.undo(database, run)
    assert _weights(database)["SameTopic"] == pytest.approx(faded["SameTopic"] * 0.9 + 0.1, abs=1e-3)
    assert _weights(database)["Cites"] == 0.06


def test_a_used_edge_does_not_fade(memory: Memory, database: Database) -> None:
    a, b, _ = _linked(memory)
    with database.transaction() as connection:
        reinforce(connection, [a, b], 0.8)
        connection.execute("UPDATE memory.edges SET last_used_at = %s WHERE rel = 'SameTopic'", [_at(40)])
    decay(database, apply=True, now=_at(42))
    assert _weights(database)["SameTopic"] == 0.82


@pytest.mark.parametrize(
    ("quality", "weight", "learnt"), [(1.0, 0.82, 1), (0.75, 0.82, 1), (0.5, 0.8, 0), (0.25, 0.72, 1), (0.0, 0.72, 1)]
)
def test_edges_learn_from_an_answer(
    memory: Memory, database: Database, quality: float, weight: float, learnt: int
) -> None:
    a, b, _ = _linked(memory)
    with database.transaction() as connection:
        assert reinforce(connection, [b, a, a], quality) == learnt
        assert reinforce(connection, [a], quality) == 0
    assert _weights(database) == {"SameTopic": weight, "Cites": 0.06, "Derived": 0.01, "Contains": 1.0}


def test_weights_stay_between_0_and_1_whatever_comes(memory: Memory, database: Database) -> None:
    a, b, _ = _linked(memory)
    with database.transaction() as connection:
        for quality in [1.0] * 90 + [0.0] * 60:  # the table's CHECK would refuse any other weight
            reinforce(connection, [a, b], quality)
    assert 0 <= _weights(database)["SameTopic"] < 0.01


def test_a_cap_is_of_pruned_edges(memory: Memory, database: Database) -> None:
    ids = memory.add([NewNode(str(n)) for n in range(6)]).ids
    memory.link_all([(ids[0], other, "Cites", 0.05) for other in ids[1:]], "test")
    capped = decay(database, apply=True, cap=2, now=_at(7))
    assert (capped.pruned, capped.faded, capped.capped) == (2, 3, True)
