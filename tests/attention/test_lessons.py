"""What a night knows becomes lessons, read from a real Postgres: gold passages, answers, and what is left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ruvllm.answering.answer import Answerer, Ask, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.learning.attention_lessons import read_lessons
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.layout import LAYOUT
from ruvllm.settings import Settings
from tests.attention.made import graph

PLACES = {"Ghana": "Accra", "Togo": "Lome", "Mali": "Bamako"}
GOLD = {f"capital/{country}": (f"{country}/1",) for country in PLACES}


@pytest.fixture
def memory(settings: Settings, database: Database) -> Memory:
    made = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    made.add([NewNode(f"{country} - Geography. Capital: {capital}.", source="test", metadata={"key": f"{country}/1"})
              for country, capital in PLACES.items()])  # fmt: skip
    return made


def enrol(memory: Memory, country: str, split: str, key: str = "") -> None:
    with memory.database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,"
            " history, layout_hash, features, embedding, retrieved)"
            " VALUES (%s, %s, 'night', %s, %s, 'capital', 'geography', %s, %s, %s, %s, %s, '{}', '{}')",
            (key or f"capital/{country}", memory.database.tenant, f"What is the capital of {country}?",
             [PLACES.get(country, "?")], split, country, json.dumps([]), LAYOUT.hash, [0.0] * 128),
        )  # fmt: skip


def node_of(memory: Memory, country: str) -> int:
    (hit,) = memory.search_text(f"{country} Geography Capital", 1)
    assert country in hit.node.text
    return hit.node.id


def answered(memory: Memory, settings: Settings, request_id: str, ask: str, said: str, **more: object) -> None:
    """Asked of a model that says this, scored, and written back where it is good."""
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(settings, ladder, start=lambda tier: FakeModel(answer=lambda text: said))
    perception = Perception(settings, memory.embedder, memory)  # type: ignore[arg-type]
    answerer = Answerer(settings, perception, pool, Interactions(memory.database), seed=1)
    answerer.answer(Ask(ask, request_id=request_id, **more))  # type: ignore[arg-type]
    answerer.settle_outbox()


def test_questions_of_the_oracle_teach_or_judge_by_their_split(memory: Memory) -> None:
    enrol(memory, "Ghana", "train")
    enrol(memory, "Togo", "test")
    found = read_lessons(memory, GOLD)
    assert found.counts == {"oracle test": 1, "oracle train": 1}
    (lesson,), (held,) = found.train, found.held
    useful = dict(zip(lesson.graph.ids.tolist(), lesson.useful.tolist(), strict=True))
    assert useful == {**dict.fromkeys(useful, 0.0), node_of(memory, "Ghana"): 1.0}
    assert held.gold == (node_of(memory, "Togo"),)
    assert held.plain[0] == node_of(memory, "Togo")
    assert set(held.gold) <= set(held.graph.ids.tolist())


def test_a_question_whose_passage_is_not_in_memory_says_nothing(memory: Memory) -> None:
    enrol(memory, "Mali", "train", key="capital/elsewhere")  # no gold is known of it
    enrol(memory, "Togo", "test")
    gold = {"capital/Togo": ("Togo/1", "Togo/2")}  # half of its gold is not here
    found = read_lessons(memory, gold)
    assert (found.train, found.held, found.counts) == ((), (), {"unknown": 2})


def run(memory: Memory, key: str, context_bin: int, used: list[int], answer: str, quality: float) -> None:
    with memory.database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.oracle_runs (tenant, query, ladder, tier, model_sha256, prompt_version, context_bin,"
            " cycle_id, used, answer, quality, latency_s, spent_s, prompt_tokens, completion_tokens, cost)"
            " VALUES (%s, %s, 'packaged', 'smollm2-135m', 'a', 'b', %s, 'night', %s, %s, %s, 1, 1, 1, 1, 0.1)",
            (memory.database.tenant, key, context_bin, used, answer, quality),
        )


def test_a_wider_context_that_was_right_teaches_what_it_had_more(memory: Memory) -> None:
    ghana, togo, mali = (node_of(memory, country) for country in PLACES)
    for country, key in (("Mali", "asked/1"), ("Togo", "asked/2"), ("Ghana", "asked/3")):
        enrol(memory, country, "train", key=key)
    run(memory, "asked/1", 256, [togo], "Lome", 0.0)
    run(memory, "asked/1", 512, [togo, mali], "Bamako", 1.0)
    run(memory, "asked/1", 1024, [togo, mali, ghana], "Bamako", 1.0)  # no better: Ghana was not needed
    run(memory, "asked/2", 256, [togo, mali], "Lome", 1.0)  # right at once: by the words that it shares
    run(memory, "asked/3", 256, [togo], "Lome", 0.0)  # never right: nothing is known
    found = read_lessons(memory, {})
    assert found.counts == {"oracle runs": 2, "unknown": 1}
    taught = sorted(lesson.graph.ids[lesson.useful > 0].tolist() for lesson in found.train)
    assert taught == sorted([[mali], [togo]])


def test_a_merged_passage_is_found_where_it_lives_on(memory: Memory) -> None:
    enrol(memory, "Ghana", "train")
    ghana, togo = node_of(memory, "Ghana"), node_of(memory, "Togo")
    with memory.database.transaction() as connection:
        connection.execute(
            "UPDATE memory.nodes SET superseded_by = %s, archived_at = now() WHERE id = %s", (togo, ghana)
        )
    (lesson,) = read_lessons(memory, GOLD).train
    assert lesson.graph.ids[lesson.useful > 0].tolist() == [togo]


def test_a_good_answer_teaches_what_it_came_from_and_not_what_it_became(memory: Memory, settings: Settings) -> None:
    answered(memory, settings, "user-1", "What is the capital of Ghana?", "Accra", gold=("Accra",))
    written = [hit.node.id for hit in memory.search_text("capital of Ghana", 8) if hit.node.source == "qa_pair"]
    assert len(written) == 1
    found = read_lessons(memory, {})
    (lesson,) = found.train
    assert found.counts == {"answers": 1}
    assert lesson.graph.ids[lesson.useful > 0].tolist() == [node_of(memory, "Ghana")]
    assert written[0] not in lesson.graph.ids


def test_a_bad_answer_teaches_nothing_unless_its_gold_passage_is_known(memory: Memory, settings: Settings) -> None:
    answered(memory, settings, "night-1:capital/Ghana", "What is the capital of Ghana?", "Paris", gold=("Accra",))
    assert read_lessons(memory, {}).counts == {"unknown": 1}
    (lesson,) = read_lessons(memory, GOLD).train
    assert lesson.graph.ids[lesson.useful > 0].tolist() == [node_of(memory, "Ghana")]


def test_a_question_that_judges_never_teaches_whoever_asks_it(memory: Memory, settings: Settings) -> None:
    enrol(memory, "Ghana", "test")
    answered(memory, settings, "user-1", "what is the capital of Ghana", "Accra", gold=("Accra",))
    found = read_lessons(memory, GOLD)
    assert (len(found.train), len(found.held)) == (0, 1)
    assert found.counts == {"left out, they judge": 1, "oracle test": 1}


def test_what_an_answer_cites_counts_before_what_it_shares(memory: Memory, settings: Settings) -> None:
    answered(memory, settings, "user-1", "What is the capital of Ghana?", "Accra [2]", gold=("Accra [2]",))
    with memory.database.transaction() as connection:
        (used,) = connection.execute("SELECT used FROM serving.interactions").fetchone() or ([],)
    (lesson,) = read_lessons(memory, {}).train
    assert lesson.graph.ids[lesson.useful > 0].tolist() == [used[1]]


def test_the_latest_are_read_and_no_more(memory: Memory) -> None:
    for country in PLACES:
        enrol(memory, country, "train")
    assert len(read_lessons(memory, GOLD, most=2).train) == 2


def test_an_empty_night_has_no_lessons(memory: Memory) -> None:
    found = read_lessons(memory, GOLD)
    assert (found.train, found.held, found.counts) == ((), (), {})


def test_a_graph_without_nodes_keeps_the_rest_as_it_was() -> None:
    whole = graph(9, 20)
    gone = whole.ids[[1, 4]].tolist()
    less = whole.without(gone)
    assert less.ids.tolist() == [id for id in whole.ids.tolist() if id not in gone]
    assert (np.diff(less.target) >= 0).all()
    left = {
        (whole.ids[s], whole.ids[t], c, *m) for s, t, c, m in _said(whole) if not {whole.ids[s], whole.ids[t]} & {*gone}
    }
    assert {(less.ids[s], less.ids[t], c, *m) for s, t, c, m in _said(less)} == left
    assert whole.without([]).ids.tolist() == whole.ids.tolist()


def _said(made):  # type: ignore[no-untyped-def]
    rows = zip(made.source, made.target, made.code, made.messages, strict=True)
    return [(int(s), int(t), int(c), tuple(m.tolist())) for s, t, c, m in rows]
