"""One request from text to stored interaction, with a real Postgres and models that a unit test can foretell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ruvllm.answering.answer import Answerer, Ask, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.answering.privacy import LEVELS
from ruvllm.answering.sessions import Session, Sessions, key_of, trimmed
from ruvllm.database.dsn import with_database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import (
    BackendError,
    BundleError,
    CancelledError,
    DatabaseError,
    InferenceError,
    InputError,
    TooLargeError,
    UnknownTierError,
    WorkerDiedError,
)
from ruvllm.inference.fake import FakeModel, prompt_text
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.classifiers import Classifiers, Linear
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import DOMAINS, HISTORY, LAYOUT
from ruvllm.router.live import Live
from ruvllm.router.runtime import RouterRuntime

CAPITAL = "Ghana - Geography. Capital: Accra. Location: Western Africa."
QUESTION = "What is the capital of Ghana?"


@pytest.fixture
def models():
    return [FakeModel(answer=lambda text: "Accra" if "Accra" in text else "unknown") for _ in range(2)]


@pytest.fixture
def answerer(settings, database, models):
    embedder = EmbeddingAdapter(HashingEncoder())
    memory = Memory(database, embedder, settings)
    memory.add([NewNode(CAPITAL, source="test"), NewNode("Togo - Geography. Capital: Lome.", source="test")])
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    by_tier = dict(zip(ladder.names, models, strict=True))
    pool = ModelPool(settings, ladder, start=lambda tier: by_tier[tier.name])
    return Answerer(settings, Perception(settings, embedder, memory), pool, Interactions(database), seed=1)


def test_an_answer_comes_from_memory_and_is_stored_with_its_decision(answerer, database):
    answer = answerer.answer(Ask(QUESTION, gold=("Accra",), domain="geography"))
    assert answer.text == "Accra"
    assert answer.decision.decided_by == "cold-start"
    assert answer.decision.propensity == pytest.approx(1 / 6)  # two tiers, three bins
    assert set(answer.stage_ms) == {"embed", "search", "features", "route", "assemble", "generate", "store"}
    row = one(
        database, "SELECT tier, context_bin, propensity, cardinality(features), question FROM serving.interactions"
    )
    assert row[:2] == (answer.tier, answer.context_bin)
    assert row[2] == pytest.approx(1 / 6)
    assert row[3:] == (128, QUESTION)


def test_what_an_answer_cites_is_told_by_node(answerer, models):
    for model in models:
        model.answer = lambda text: "Accra [2], and [9]"
    answer = answerer.answer(Ask(QUESTION))
    assert len(answer.used) == 2
    assert answer.cited == answer.used[1:]
    assert answer.text == "Accra [2], and [9]"  # what was said stays


def test_the_settings_order_what_the_model_reads(answerer, settings):
    other = Answerer(
        replace(settings, context_order="best-first"), answerer.perception, answerer.pool, answerer.interactions, seed=1
    )
    assert other.answer(Ask(QUESTION)).used == tuple(reversed(answerer.answer(Ask(QUESTION)).used))


def test_a_good_answer_is_written_back_once_and_found_again(answerer, database):
    answerer.answer(Ask(QUESTION, gold=("Accra",)))
    assert answerer.settle_outbox() == 1
    assert answerer.settle_outbox() == 0
    assert one(database, "SELECT quality, quality_source FROM serving.interactions") == (1.0, "gold")
    assert one(database, "SELECT outcome FROM serving.outbox") == ("written",)
    hits = answerer.perception.memory.search_text("the capital of Ghana", 3)
    assert any(hit.node.source == "qa_pair" and "Accra" in hit.node.text for hit in hits)


def test_an_answer_without_gold_or_feedback_is_never_written_back(answerer, database):
    before = answerer.perception.memory.counts()["nodes"]
    answerer.answer(Ask(QUESTION))
    answerer.settle_outbox()
    assert one(database, "SELECT outcome FROM serving.outbox") == ("unscored",)
    assert one(database, "SELECT quality FROM serving.interactions") == (None,)
    assert answerer.perception.memory.counts()["nodes"] == before


def test_feedback_scores_an_answer_that_had_no_score_and_outranks_gold(answerer, database):
    answer = answerer.answer(Ask(QUESTION, gold=("Accra",)))
    answerer.settle_outbox()
    answerer.feedback(answer.request_id, rating=1, correction=None, task_success=None)
    assert answerer.settle_outbox() == 1
    assert one(database, "SELECT quality, quality_source FROM serving.interactions") == (0.0, "feedback")


def test_a_crash_while_writing_back_repeats_nothing_and_loses_nothing(answerer, database, monkeypatch):
    answerer.answer(Ask(QUESTION, gold=("Accra",)))
    memory = answerer.perception.memory
    write_back = memory.write_back

    def dies(**arguments):
        write_back(**arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "write_back", dies)
    with pytest.raises(KeyboardInterrupt):
        answerer.settle_outbox()
    monkeypatch.undo()
    assert one(database, "SELECT count(*) FROM memory.node_texts WHERE source = 'qa_pair'") == (0,)
    assert answerer.settle_outbox() == 1
    assert one(database, "SELECT count(*) FROM memory.node_texts WHERE source = 'qa_pair'") == (1,)


def test_the_same_request_is_stored_once(answerer, database):
    for _ in range(2):
        answerer.answer(Ask(QUESTION, request_id="same"))
    assert one(database, "SELECT count(*) FROM serving.interactions") == (1,)
    assert one(database, "SELECT count(*) FROM serving.outbox") == (1,)


def test_without_a_database_the_answer_comes_and_says_what_is_missing(answerer, database_url):
    with psycopg.connect(with_database(database_url, "postgres"), autocommit=True) as connection:
        name = conninfo_to_dict(database_url)["dbname"]
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # ends every connection, and none can be made again
    answer = answerer.answer(Ask(QUESTION))
    assert answer.text == "unknown"
    assert set(answer.degraded) == {"memory", "interaction-not-stored"}


def test_a_dead_tier_hands_over_to_the_next_and_a_forced_one_does_not(answerer, models):
    models[0].deaths = 10
    answer = answerer.answer(Ask(QUESTION, forced_bin=256))
    while answer.decision.tier != 0:
        answer = answerer.answer(Ask(QUESTION, forced_bin=256))
    assert answer.tier == answerer.ladder.names[1]
    assert f"tier:{answerer.ladder.names[0]}" in answer.degraded
    with pytest.raises(WorkerDiedError):
        answerer.answer(Ask(QUESTION, forced_tier=answerer.ladder.names[0]))


def test_a_model_server_that_answers_garbage_hands_over_to_the_next_tier(answerer, models, monkeypatch):
    def broken(*_):
        raise BackendError("http://127.0.0.1:8101: got status 500")

    monkeypatch.setattr(models[0], "generate", broken)
    answers = [answerer.answer(Ask(QUESTION, forced_bin=256)) for _ in range(8)]
    assert {answer.tier for answer in answers} == {answerer.ladder.names[1]}
    assert any(f"tier:{answerer.ladder.names[0]}" in answer.degraded for answer in answers)


def test_what_is_forced_is_taken_and_what_does_not_exist_is_named(answerer):
    answer = answerer.answer(Ask(QUESTION, forced_tier=answerer.ladder.names[1], forced_bin=512))
    assert (answer.tier, answer.context_bin, answer.decision.decided_by) == (answerer.ladder.names[1], 512, "forced")
    with pytest.raises(UnknownTierError, match="70b"):
        answerer.answer(Ask(QUESTION, forced_tier="70b"))
    with pytest.raises(InputError, match="300"):
        answerer.answer(Ask(QUESTION, forced_bin=300))


@pytest.mark.parametrize("text", ["", "   ", "a\x00b", "\ud800", "x" * 20_001])
def test_poison_is_refused_before_anything_is_done(answerer, database, text):
    with pytest.raises(InputError):
        answerer.answer(Ask(text))
    assert one(database, "SELECT count(*) FROM serving.interactions") == (0,)


def test_a_router_decides_once_it_is_promoted_and_carries_its_state_through_a_session(answerer, tmp_path):
    write_random_bundle(tmp_path / "bundle", version="v7", tiers=(*answerer.ladder.names, "", ""))
    answerer.use_router(RouterRuntime.load(tmp_path / "bundle"))
    first = answerer.answer(Ask(QUESTION, session_id="s", turn=1))
    second = answerer.answer(Ask("And of Togo?", history=((QUESTION, "Accra"),), session_id="s", turn=2))
    alone = answerer.answer(Ask("And of Togo?", history=((QUESTION, "Accra"),), session_id="t", turn=2))
    assert first.decision.router_version == "v7"
    assert not np.allclose(second.decision.hidden, alone.decision.hidden)


def test_a_router_of_another_ladder_is_refused_and_the_old_one_stays(answerer, tmp_path):
    write_random_bundle(tmp_path / "bundle", version="v8", ladder="lfm2", tiers=("lfm2-350m", "", "", ""))
    with pytest.raises(BundleError, match="lfm2"):
        answerer.use_router(RouterRuntime.load(tmp_path / "bundle"))
    assert answerer.router_version == ""


def one(database, query):
    with database.transaction() as connection:
        return connection.execute(query).fetchone()


def test_a_tier_that_was_too_slow_is_not_asked_for_more_than_it_can_do_in_time(answerer, models):
    """A fake model reads 1,000 tokens a second and writes 10."""
    for model in models:
        model.answer = lambda text: "five words are an answer"
    long = " ".join(f"word{i}" for i in range(60))
    for name in answerer.ladder.names:
        answerer.answer(Ask(f"{QUESTION} {long}", forced_tier=name))
    hurried = Ask(QUESTION, max_tokens=2, latency_budget_s=0.56)  # 352 tokens to read at the smallest bin, 2 to write
    decisions = [answerer.route(hurried)[0] for _ in range(20)]
    assert {decision.context_bin for decision in decisions} == {256}
    assert {decision.propensity for decision in decisions} == {0.5}
    assert {answerer.route(Ask(QUESTION))[0].context_bin for _ in range(40)} == {256, 512, 1024}
    assert answerer.route(Ask(QUESTION, max_tokens=2, latency_budget_s=0.56, forced_bin=1024))[0].context_bin == 1024


def test_what_is_known_of_users_and_history_reaches_the_router(answerer, database, monkeypatch):
    geography = np.eye(16)[DOMAINS.index("geography")] * 9
    classifiers = Classifiers(Linear(np.zeros((16, 384)), geography), Linear(np.zeros((6, 384)), np.zeros(6)))
    monkeypatch.setattr("ruvllm.router.features.classifiers_for", lambda encoder_id: classifiers)
    for _ in range(5):
        answerer.answer(Ask(QUESTION, gold=("Accra",), writer="ann", forced_tier=answerer.ladder.names[0]))
    before = one(database, "SELECT features FROM serving.interactions ORDER BY asked_at DESC, id DESC LIMIT 1")[0]
    assert before[LAYOUT["user_frequency"].start] == 0  # unknown
    assert before[LAYOUT["concurrent_requests"].start] > 0  # itself
    answerer.settle_outbox()
    answerer.live = Live(answerer.interactions.database, tiers=answerer.ladder.names)  # half a minute later
    answerer.settle_outbox()
    answerer.answer(Ask(QUESTION, writer="ann"))
    after = one(database, "SELECT features FROM serving.interactions ORDER BY asked_at DESC, id DESC LIMIT 1")[0]
    assert after[LAYOUT["user_frequency"].start] > 0
    assert after[LAYOUT["historical_accuracy"].start + HISTORY.index("domain.tier1")] > 0
    assert after[LAYOUT["memory_available"].start] > 0
    assert after[LAYOUT["graph_depth"].start] > before[LAYOUT["graph_depth"].start] == 0


def test_a_stream_says_the_decision_first_and_the_stored_answer_last(answerer, database, models):
    for model in models:
        model.answer = lambda text: "Accra on the coast"
    with answerer.stream(Ask(QUESTION, request_id="r")) as stream:
        assert stream.decision.decided_by == "cold-start"
        pieces = iter(stream)
        assert next(pieces) == "Accra "
        with pytest.raises(InferenceError, match="pieces"):
            _ = stream.answer
        assert one(database, "SELECT count(*) FROM serving.interactions") == (0,)
        assert list(pieces) == ["on ", "the ", "coast"]
    assert stream.answer.text == "Accra on the coast"
    assert stream.answer.ttft_ms is not None
    assert one(database, "SELECT request_id, answer FROM serving.interactions") == ("r", "Accra on the coast")


def test_a_stream_that_is_taken_back_stores_nothing(answerer, database, models):
    for model in models:
        model.answer = lambda text: "Accra on the coast"
    with answerer.stream(Ask(QUESTION)) as stream:
        pieces = iter(stream)
        next(pieces)
        stream.cancel()
        with pytest.raises(CancelledError):
            list(pieces)
    assert one(database, "SELECT count(*) FROM serving.interactions") == (0,)
    assert answerer._in_flight.count == 0


def test_before_the_first_piece_another_tier_steps_in(answerer, models):
    models[0].deaths = 10**6
    answers = []
    for _ in range(8):
        with answerer.stream(Ask(QUESTION, forced_bin=256)) as stream:
            assert "".join(stream) == "Accra"
        answers.append(stream.answer)
    assert {answer.tier for answer in answers} == {answerer.ladder.names[1]}
    assert any(f"tier:{answerer.ladder.names[0]}" in answer.degraded for answer in answers)


def test_instructions_stand_in_the_prompt_and_allow_several_lines(answerer, models):
    tier = answerer.ladder.names[0]
    answerer.answer(Ask(QUESTION, instructions="Answer in Twi.\nBe brief.", lines=True, forced_tier=tier))
    said = prompt_text(models[0].asked[-1])
    assert "Answer in Twi." in said
    assert "Be brief." in said


def test_a_session_remembers_its_turns_for_who_began_it(answerer, models):
    tier = answerer.ladder.names[0]
    answerer.answer(Ask(QUESTION, session_id="s", writer="ann", kept_history=True, forced_tier=tier))
    answerer.answer(Ask("And of Togo?", session_id="s", writer="ann", kept_history=True, forced_tier=tier))
    assert QUESTION in prompt_text(models[0].asked[-1])
    answerer.answer(Ask("And of Benin?", session_id="s", writer="ben", kept_history=True, forced_tier=tier))
    assert QUESTION not in prompt_text(models[0].asked[-1])


def test_the_conversation_itself_carries_the_routers_state(answerer, tmp_path):
    write_random_bundle(tmp_path / "bundle", version="v7", tiers=(*answerer.ladder.names, "", ""))
    answerer.use_router(RouterRuntime.load(tmp_path / "bundle"))
    answerer.answer(Ask(QUESTION))
    follow_up, told = "And of Togo?", ((QUESTION, "Accra"),)
    goes_on = answerer.route(Ask(follow_up, history=told, turn=2))[0]
    afresh = answerer.route(Ask(follow_up, history=((QUESTION, "Kumasi"),), turn=2))[0]
    assert answerer.sessions.get(key_of("", None, told)).hidden is not None
    assert goes_on.hidden is not None
    assert not np.allclose(goes_on.hidden, afresh.hidden)


def test_sessions_are_bounded_and_expire():
    now = [0.0]
    sessions = Sessions(limit=2, expires_s=10, clock=lambda: now[0])
    for name in "abc":
        sessions.put(name, Session(turns=1))
    assert [sessions.get(name).turns for name in "abc"] == [0, 1, 1]
    now[0] = 10.5
    assert len(sessions) == 0
    long = tuple((f"question {i}", "x" * 1000) for i in range(40))
    assert trimmed(long)[-1] == long[-1]
    assert sum(len(q) + len(a) for q, a in trimmed(long)) <= 16_000


@pytest.mark.parametrize("name", LEVELS)
def test_each_privacy_level_does_what_the_table_says(answerer, database, models, name):
    level = LEVELS[name]
    answerer._offer._remote = frozenset({1})
    answer = answerer.answer(Ask(QUESTION, privacy=name, gold=("Accra",), session_id="s", kept_history=True))
    before = answerer.perception.memory.counts()["nodes"]
    answerer.settle_outbox()
    assert one(database, "SELECT count(*) FROM serving.interactions") == (int(level.stores),)
    assert answerer.perception.memory.counts()["nodes"] - before == int(level.writes_back)
    assert (answer.writeback == "off") == (not level.writes_back)
    assert len(answerer.sessions) == int(level.keeps_session)
    assert (answerer.ladder.names[1] in answerer.excluded(Ask(QUESTION, privacy=name))) == (not level.remote)
    if not level.remote:
        assert not models[1].asked
        with pytest.raises(InputError, match="privacy level"):
            answerer.answer(Ask(QUESTION, privacy=name, forced_tier=answerer.ladder.names[1]))


def test_a_request_with_little_memory_gets_a_tier_that_fits_or_is_told(answerer):
    needs = {tier.name: tier.memory_mb / 1024 for tier in answerer.ladder.tiers}
    small, big = sorted(needs, key=needs.get)
    between = (needs[small] + needs[big]) / 2
    assert {answerer.answer(Ask(QUESTION, memory_gb=between)).tier for _ in range(8)} == {small}
    with pytest.raises(InputError, match="no tier is left"):
        answerer.answer(Ask(QUESTION, memory_gb=0.001))


def test_a_prompt_that_is_too_long_is_asked_with_less_context(answerer, models, database):
    for model in models:
        model.n_ctx = 700
    memory = answerer.perception.memory
    memory.add([NewNode(" ".join(f"capital{i}-{j}" for j in range(110)), source="test") for i in range(12)])
    answers = [answerer.answer(Ask(QUESTION)) for _ in range(12)]
    narrowed = [a for a in answers if "bin:1024" in a.degraded]
    assert narrowed
    assert all(a.context_bin < 1024 for a in narrowed)
    with pytest.raises(TooLargeError):
        answerer.answer(Ask(QUESTION, forced_bin=1024))


def test_what_postgres_cannot_take_is_spooled(answerer, tmp_path, monkeypatch):
    kept = []

    class Kept:
        def append(self, tenant, row):
            kept.append((tenant, row.values["request_id"]))

    def away(row):
        raise DatabaseError("away")

    monkeypatch.setattr(answerer.interactions, "record", away)
    answerer.spool = Kept()
    answer = answerer.answer(Ask(QUESTION, request_id="r"))
    assert (answer.writeback, answer.degraded) == ("spooled", ("write-back-spooled",))
    assert kept == [("default", "r")]


def test_a_candidate_decides_what_it_serves_and_is_heard_for_the_rest(answerer, tmp_path):
    for name, seed in (("champion", 1), ("candidate", 2)):
        write_random_bundle(tmp_path / name, version=name, seed=seed, tiers=(*answerer.ladder.names, "", ""))

    class Trial:
        runtime = RouterRuntime.load(tmp_path / "candidate")

        def serves(self, unit):
            return unit == "mine"

    heard = []
    answerer.use_router(RouterRuntime.load(tmp_path / "champion"))
    answerer.trial = Trial
    answerer.shadow = lambda request_id, decision: heard.append((request_id, decision.router_version))
    assert answerer.answer(Ask(QUESTION, request_id="mine")).decision.router_version == "candidate"
    assert answerer.answer(Ask(QUESTION, request_id="other")).decision.router_version == "champion"
    assert heard == [("other", "candidate")]


def test_a_judges_word_counts_only_where_nobody_else_has_spoken(answerer, database):
    answer = answerer.answer(Ask(QUESTION))
    answerer.settle_outbox()
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO serving.judgements (interaction, tenant, lease, leased_until, judge, quality, done_at)"
            " SELECT id, tenant, gen_random_uuid(), now(), 'a judge', 0.9, now() FROM serving.interactions"
        )
        connection.execute(
            "INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key)"
            " SELECT tenant, 'score', id, 'judge' FROM serving.interactions"
        )
    answerer.settle_outbox()
    assert one(database, "SELECT quality_source FROM serving.interactions") == ("judge",)
    assert one(database, "SELECT count(*) FROM learning.experience") == (1,)
    answerer.feedback(answer.request_id, rating=2, correction=None, task_success=None)
    answerer.settle_outbox()
    assert one(database, "SELECT quality, quality_source FROM serving.interactions") == (0.25, "feedback")
