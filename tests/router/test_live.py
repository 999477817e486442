"""What a service knows of itself, from a real Postgres: counted, kept while it is away, forgotten when it is old."""

import math

import numpy as np
import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.router.layout import DOMAINS, HISTORY, LAYOUT, N_FEATURES
from ruvllm.router.live import PAST_REFRESH_S, REFRESH_S, STALE_S, InFlight, Live, read_past, read_record

GEOGRAPHY, PEOPLE = (DOMAINS.index(name) for name in ("geography", "people"))
TIERS = ("small", "big")
D = 384


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def features_in(domain: int) -> list[float]:
    features = [0.0] * N_FEATURES
    features[LAYOUT["domain_encoding"].start + domain] = 0.9
    return features


def store(
    database: Database,
    request: str,
    writer: str,
    quality: float | None,
    age: str = "1 minute",
    layout: str = LAYOUT.hash,
    tier: str = "small",
) -> None:
    with database.transaction() as connection:
        connection.execute(
            _INSERT,
            {
                "request": request,
                "writer": writer,
                "quality": quality,
                "source": "gold" if quality is not None else None,
                "age": age,
                "layout": layout,
                "tier": tier,
                "features": features_in(GEOGRAPHY),
            },
        )


_INSERT = """
    INSERT INTO serving.interactions (request_id, tenant, question, answer, domain, tier, context_bin, temperature,
        top_p, decided_by, confidence, propensity, router_version, ladder, layout_hash, features, retrieved,
        similarities, used, writer, prompt_tokens, cached_tokens, completion_tokens, cost, stage_ms, total_ms, degraded,
        turn, history, quality, quality_source, asked_at)
    VALUES (%(request)s, 'default', 'q', 'a', '', %(tier)s, 256, 0, 1, 'router', 0.5, 1, 'v', 'packaged', %(layout)s,
        %(features)s::real[], '{}', '{}', '{}', %(writer)s, 1, 0, 1, 0, '{}', 1, '{}', 1, '[]', %(quality)s,
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
    assert record.corpus_size == 0


def enrolled(database: Database, key: str, vector: list[float], domain: int, layout: str = LAYOUT.hash) -> None:
    values = {"key": key, "vector": vector, "features": features_in(domain), "layout": layout}
    with database.transaction() as connection:
        connection.execute(_QUESTION, values)


def ran(
    database: Database, key: str, tier: str, quality: float, context_bin: int = 256, sha: str = "a", version: str = ""
) -> None:
    given = {"key": key, "tier": tier, "quality": quality, "bin": context_bin, "sha": sha}
    with database.transaction() as connection:
        connection.execute(_RUN, {**given, "version": version or PROMPT_VERSION})


_QUESTION = """
    INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,
        layout_hash, features, embedding, retrieved)
    VALUES (%(key)s, 'default', 'c', 'q', '{}', 'k', '', 'train', 'g', %(layout)s, %(features)s::real[],
        %(vector)s::real[], '{}')
"""
_RUN = """
    INSERT INTO learning.oracle_runs (tenant, query, ladder, tier, model_sha256, prompt_version, context_bin, cycle_id,
        answer, quality, latency_s, spent_s, prompt_tokens, completion_tokens, cost)
    VALUES ('default', %(key)s, 'packaged', %(tier)s, %(sha)s, %(version)s, %(bin)s, 'c', 'a', %(quality)s, 1, 1, 1, 1,
        1)
"""


def axis(place: int) -> list[float]:
    return [float(at == place) for at in range(D)]


def test_outcomes_of_questions_are_read_by_tier_of_the_newest_model(database: Database) -> None:
    enrolled(database, "first", axis(0), GEOGRAPHY)
    enrolled(database, "second", axis(1), PEOPLE)
    enrolled(database, "of another layout", axis(2), PEOPLE, layout="f" * 64)
    ran(database, "first", "big", 0.1, sha="old")
    ran(database, "first", "small", 0.2)
    ran(database, "first", "small", 0.4, context_bin=512)
    ran(database, "first", "big", 0.9, sha="new")
    ran(database, "second", "small", 0.7, version="0")  # prompted otherwise
    ran(database, "second", "gone", 1.0)  # of no tier of this ladder
    past = read_past(database, TIERS)
    by_axis = {int(vector.argmax()): quality for vector, quality in zip(past.embedding, past.quality, strict=True)}
    assert set(by_axis) == {0, 1}
    assert by_axis[0][:2].tolist() == pytest.approx([0.3, 0.9])
    assert math.isnan(by_axis[0][2])
    assert all(map(math.isnan, by_axis[1]))


def test_scored_answers_count_in_the_domain_that_their_features_name(database: Database) -> None:
    filled(database)  # six of 30 days, by "small", half of them right
    store(database, "of another layout", "ann", 1.0, layout="f" * 64)
    store(database, "of another ladder", "ann", 1.0, tier="huge")
    past = read_past(database, TIERS)
    assert past.domain_count[GEOGRAPHY].tolist() == [6, 0, 0, 0]
    assert past.domain_sum[GEOGRAPHY, 0] == 3
    assert past.domain_count.sum() == 6


def test_the_table_of_outcomes_is_read_every_five_minutes_and_forgotten_when_old(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(database)
    clock = Clock()
    live = Live(database, clock, TIERS)
    assert live.now("ann").past is None
    live.refresh_if_old()
    first = live.now("ann").past
    clock.at += REFRESH_S
    live.refresh_if_old()
    assert first is not None
    assert live.now("ann").past is first
    clock.at += PAST_REFRESH_S
    live.refresh_if_old()
    assert live.now("ann").past not in (None, first)

    def away(*_: object) -> None:
        raise DatabaseError("away")

    monkeypatch.setattr("ruvllm.router.live.read_past", away)
    clock.at += STALE_S
    live.refresh_if_old()
    assert live.now("ann").past is not None
    clock.at += 1
    assert live.now("ann").past is None
    assert live.now("ann").user_frequency == 6  # this was read


def test_without_a_ladder_no_outcome_is_read(database: Database) -> None:
    live = Live(database, Clock())
    live.refresh_if_old()
    assert live.now("ann").past is None


def test_a_large_memory_is_estimated_and_not_counted(database: Database, database_url: str) -> None:
    """The planner's figure stands for the count: it says a million though the table is empty."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("UPDATE pg_class SET reltuples = 1e6 WHERE oid = 'memory.nodes'::regclass")
    assert read_record(database).corpus_size == 1_000_000


def test_a_place_of_history_comes_from_postgres(database: Database) -> None:
    for at in range(6):
        enrolled(database, f"q{at}", axis(at), GEOGRAPHY)
        ran(database, f"q{at}", "big", 1.0)
    live = Live(database, Clock(), TIERS)
    live.refresh_if_old()
    past = live.now("ann").past
    assert past is not None
    found = dict(zip(HISTORY, past.places(np.array([axis(0)]), np.array([GEOGRAPHY]))[0].tolist(), strict=True))
    assert found["duplicates.tier2"] == found["neighbours.tier2"] == found["domain.tier2"] == pytest.approx(1)
    assert found["duplicates.tier1"] == found["domain.tier1"] == 0


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


def test_requests_in_flight_are_counted_also_when_they_fail() -> None:
    counter = InFlight()
    with counter.one_more(), counter.one_more():
        assert counter.count == 2
    with pytest.raises(ValueError, match="x"), counter.one_more():
        raise ValueError("x")
    assert counter.count == 0
