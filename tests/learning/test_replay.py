"""The reservoir is uniform, survives a crash, and forgets what was deleted."""

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.learning.replay import Reservoir, offer


def test_every_experience_is_kept_with_the_same_chance():
    n, capacity, rounds = 40, 8, 3000
    kept = np.zeros(n)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        slots = []
        assert offer(slots, 0, [str(i) for i in range(n)], capacity, rng) == n
        assert len(set(slots)) == capacity
        for key in slots:
            kept[int(key)] += 1
    expected = rounds * capacity / n
    # each count has variance e (1 - c/n), and the counts sum to a constant
    chi_square = ((kept - expected) ** 2).sum() / (expected * (1 - capacity / n)) * (n - 1) / n
    assert chi_square < 62.4  # p = 0.01 at 39 degrees of freedom


@pytest.fixture
def queries(database):
    """Enrols oracle queries, for the foreign key."""

    def enrol(*keys, domain="d"):
        with database.transaction() as connection:
            connection.cursor().executemany(
                "INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split,"
                " grouping, layout_hash, features, embedding, retrieved)"
                " VALUES (%s, 'default', 'c', 'q', '{}', 'k', %s, 'train', 'g', 'h', '{}', '{}', '{}')",
                [(key, domain) for key in keys],
            )
        return list(keys)

    return enrol


def test_a_reservoir_fills_counts_and_replaces(database, queries):
    reservoir = Reservoir(database, 4)
    keys = queries(*"abcdefghij")
    assert reservoir.offer(keys[:3]) == 3
    assert Reservoir(database, 4).keys() == ["a", "b", "c"]
    assert reservoir.offer(keys[:3]) == 0  # a step that is run again offers nothing new
    assert reservoir.seen() == 3
    reservoir.offer(keys[3:])
    assert reservoir.seen() == 10
    assert len(set(reservoir.keys())) == 4


def test_an_offer_that_fails_leaves_everything_as_it_was(database, queries):
    reservoir = Reservoir(database, 4)
    reservoir.offer(queries("a", "b"))
    import psycopg

    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        reservoir.offer(["c-never-enrolled"])
    assert (reservoir.keys(), reservoir.seen()) == (["a", "b"], 2)


def test_a_deleted_query_leaves_no_gap(database, queries):
    reservoir = Reservoir(database, 4)
    reservoir.offer(queries("a", "b", "c"))
    with database.transaction() as connection:
        connection.execute("DELETE FROM learning.replay WHERE query = 'b'")
    reservoir.offer(queries("d"))
    assert reservoir.keys() == ["a", "c", "d"]


def test_a_capacity_of_none_is_refused(database):
    with pytest.raises(LearningError, match="want 1 or more"):
        Reservoir(database, 0)


def held(reservoir):
    """Domains of what the reservoir holds."""
    return [key[0] for key in list(reservoir.keys())]


def test_by_domain_a_rare_domain_keeps_its_share(database, queries):
    reservoir = Reservoir(database, 6, by_domain=True)
    reservoir.offer(queries(*(f"a{n}" for n in range(30)), domain="a"))
    assert len(reservoir.keys()) == 6
    reservoir.offer(queries("b0", "b1", domain="b"))
    assert "".join(sorted(held(reservoir))) == "aaabb"
    reservoir.offer(queries(*(f"b{n}" for n in range(2, 9)), domain="b"))
    assert "".join(sorted(held(reservoir))) == "aaabbb"
    assert reservoir.seen() == 39
    assert reservoir.offer(reservoir.keys()) == 0


def test_a_reservoir_may_begin_and_end_to_keep_domains_apart(database, queries):
    Reservoir(database, 8).offer([*queries("a0", "a1", "a2", domain="a"), *queries("b0", domain="b")])
    apart = Reservoir(database, 8, by_domain=True)
    apart.offer(queries("b1", domain="b"))
    assert apart.seen() == 5
    assert sorted(apart.keys()) == ["a0", "a1", "a2", "b0", "b1"]
    together = Reservoir(database, 8)
    together.offer(queries("c0", domain="c"))
    assert together.seen() == 6
    with database.transaction() as connection:
        assert connection.execute("SELECT stratum, seen FROM learning.replay_counter").fetchall() == [("", 6)]
