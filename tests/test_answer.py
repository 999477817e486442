"""One request from text to stored interaction, with a real Postgres and models that a unit test can foretell."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ruvllm.answer import Answerer, Ask, Perception
from ruvllm.database.dsn import with_database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import BackendError, BundleError, InputError, UnknownTierError, WorkerDiedError
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.interactions import Interactions
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import DOMAINS, LAYOUT
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


def test_what_is_known_of_users_and_history_reaches_the_router(answerer, database):
    for _ in range(5):
        answerer.answer(Ask(QUESTION, gold=("Accra",), domain="geography", writer="ann"))
    before = one(database, "SELECT features FROM serving.interactions ORDER BY asked_at DESC, id DESC LIMIT 1")[0]
    assert before[LAYOUT["user_frequency"].start] == 0  # unknown
    assert before[LAYOUT["concurrent_requests"].start] > 0  # itself
    answerer.settle_outbox()
    answerer.live = Live(answerer.interactions.database)  # half a minute later
    answerer.settle_outbox()
    answerer.answer(Ask(QUESTION, writer="ann"))
    after = one(database, "SELECT features FROM serving.interactions ORDER BY asked_at DESC, id DESC LIMIT 1")[0]
    assert after[LAYOUT["user_frequency"].start] > 0
    assert after[LAYOUT["historical_accuracy"].start + DOMAINS.index("geography")] > 0
    assert after[LAYOUT["memory_available"].start] > 0
    assert after[LAYOUT["graph_depth"].start] > before[LAYOUT["graph_depth"].start] == 0
