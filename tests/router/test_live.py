"""What a service knows of itself, from a real Postgres: counted, kept while it is away, forgotten when it is old."""

import math

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.router.layout import DOMAINS
from ruvllm.router.live import REFRESH_S, STALE_S, InFlight, Live, by_domain, read_record

GEOGRAPHY, PEOPLE, OTHER = (DOMAINS.index(name) for name in ("geography", "people", "other"))


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def store(database: Database, request: str, writer: str, quality: float | None, age: str = "1 minute") -> None:
    with database.transaction() as connection:
        connection.execute(
            _INSERT,
            {
                "request": request,
                "writer": writer,
                "quality": quality,
                "source": "gold" if quality is not None else None,
                "age": age,
            },
        )


_INSERT = """
    INSERT INTO serving.interactions (request_id, tenant, question, answer, domain, tier, context_bin, temperature,
        top_p, decided_by, confidence, propensity, router_version, ladder, layout_hash, features, retrieved,
        similarities, used, writer, prompt_tokens, cached_tokens, completion_tokens, cost, stage_ms, total_ms, degraded,
        turn, history, quality, quality_source, asked_at)
    VALUES (%(request)s, 'default', 'q', 'a', 'geography', 'small', 256, 0, 1, 'router', 0.5, 1, 'v', 'packaged', 'h',
        array_fill(0::real, ARRAY[128]), '{}', '{}', '{}', %(writer)s, 1, 0, 1, 0, '{}', 1, '{}', 1, '[]', %(quality)s,
        %(source)s,
        now() - %(age)s::interval)
"""


def filled(database: Database) -> None:
    for i in range(6):
        store(database, f"r{i}", "ann", i % 2)
    store(database, "old", "ann", 1.0, "40 days")
    store(database, "unscored", "bob", None)


def test_users_and_outcomes_are_counted_in_their_time(database: Database) -> None:
    filled(database)
    record = read_record(database)
    assert dict(record.requests) == {"ann": 6, "bob": 1}
    assert record.accuracy[GEOGRAPHY] == pytest.approx(0.5)
    assert all(math.isnan(v) for i, v in enumerate(record.accuracy) if i != GEOGRAPHY)
    assert record.corpus_size == 0


def test_before_the_first_reading_nothing_is_known_and_after_it_all(database: Database) -> None:
    filled(database)
    live = Live(database, Clock())
    assert math.isnan(live.now("ann").user_frequency)
    live.refresh_if_old()
    known = live.now("ann")
    assert (known.user_frequency, known.corpus_size) == (6, 0)
    assert live.now("nobody").user_frequency == 0
    assert math.isnan(live.now("").user_frequency)  # without a user there is nothing to count
    assert known.memory_available_gb > 0
    assert math.isnan(known.battery) or 0 <= known.battery <= 1


def test_new_outcomes_show_after_half_a_minute(database: Database) -> None:
    filled(database)
    clock = Clock()
    live = Live(database, clock)
    live.refresh_if_old()
    store(database, "later", "ann", 1.0)
    live.refresh_if_old()
    assert live.now("ann").user_frequency == 6
    clock.at += REFRESH_S
    live.refresh_if_old()
    assert live.now("ann").user_frequency == 7


def test_an_outage_leaves_it_unknown_and_raises_nothing() -> None:
    live = Live(Database("postgresql://nobody@127.0.0.1:1/none"), Clock())
    live.refresh_if_old()
    assert math.isnan(live.now("ann").corpus_size)
    assert live.now("ann").memory_available_gb > 0  # the machine is still there


def test_an_outage_keeps_what_was_read_until_it_is_stale(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(database)
    clock = Clock()
    live = Live(database, clock)
    live.refresh_if_old()

    def away(_: Database) -> None:
        raise DatabaseError("away")

    monkeypatch.setattr("ruvllm.router.live.read_record", away)
    clock.at += STALE_S
    live.refresh_if_old()
    assert live.now("ann").user_frequency == 6
    clock.at += 1
    assert math.isnan(live.now("ann").user_frequency)


def test_names_join_the_domain_that_they_mean_and_few_answers_say_nothing() -> None:
    found = by_domain([("geography", 3.0, 3), ("Geography", 0.0, 3), ("People and Society", 2.0, 4), ("", 5.0, 5)])
    assert found[GEOGRAPHY] == pytest.approx(0.5)
    assert math.isnan(found[PEOPLE])
    assert found[OTHER] == 1.0


def test_requests_in_flight_are_counted_also_when_they_fail() -> None:
    counter = InFlight()
    with counter.one_more(), counter.one_more():
        assert counter.count == 2
    with pytest.raises(ValueError, match="x"), counter.one_more():
        raise ValueError("x")
    assert counter.count == 0
