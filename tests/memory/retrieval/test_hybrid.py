"""Hybrid search, and which face of memory is read: replica, Postgres where it cannot answer, the cache before both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import ReplicaUnavailable
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, NewNode, Walk
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.retrieval import hybrid
from ruvllm.memory.store import Memory
from ruvllm.serving.build import LateMemory
from ruvllm.serving.metrics import Metrics
from ruvllm.settings import Settings

TEXTS = [f"the capital of country{i} is city{i}" for i in range(60)]


def found(*ids: int) -> Found:
    return Found(np.array(ids, dtype=np.int64), np.linspace(1, 0.5, len(ids), dtype=np.float32))


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    fused = hybrid.fused([found(1, 2, 3), found(3, 4)], 10, constant=60)
    assert fused.ids.tolist() == [3, 1, 2, 4]
    assert_allclose(fused.similarities, [1 / 63 + 1 / 61, 1 / 61, 1 / 62, 1 / 62], rtol=1e-6)
    assert hybrid.fused([found(1, 2, 3), found(3, 4)], 2, constant=60).ids.tolist() == [3, 1]
    assert hybrid.fused([found(), found()], 5).ids.tolist() == []


@pytest.fixture
def stored(memory: Memory) -> Memory:
    memory.add([NewNode(text, tags=("geo",)) for text in TEXTS])
    return memory


@pytest.fixture
def replica(stored: Memory, tmp_path: Path) -> Iterator[Replica]:
    replica = Replica.open(stored.database, tmp_path / "replica", ReplicaOptions(poll_s=0, max_staleness_s=3600))
    yield replica
    replica.close()


@pytest.fixture(params=["postgres", "replica"])
def faced(request: pytest.FixtureRequest, stored: Memory) -> Memory:
    """The same memory, read through either face."""
    if request.param == "replica":
        stored.use_replica(request.getfixturevalue("replica"))
    return stored


def test_either_face_finds_the_same(faced: Memory, stored: Memory) -> None:
    vector = stored.embedder.embed_one("capital of country7")
    wanted = stored.search(vector, 5, exact=True)
    assert [hit.node for hit in faced.search(vector, 5)] == [hit.node for hit in wanted]
    assert_allclose(faced.search(vector, 1)[0].embedding, wanted[0].embedding, atol=1e-6)
    assert faced.search_batch(vector[None], 5)[0].ids.tolist() == [hit.node.id for hit in wanted]
    assert faced.search_words("what is city7?", 3)[0].node.text == TEXTS[7]
    assert_allclose(faced.vectors([wanted[0].node.id])[0], wanted[0].embedding, atol=1e-6)
    assert faced.reading.fallbacks == {}


def test_hybrid_finds_what_only_words_or_only_meaning_find(faced: Memory) -> None:
    texts = [hit.node.text for hit in faced.hybrid("city41", 3)]
    assert texts[0] == TEXTS[41]
    hits = faced.hybrid("the capital of country3 is city3", 4)
    assert hits[0].node.text == TEXTS[3]
    assert_allclose(hits[0].similarity, 1.0, atol=1e-3)  # the cosine, not the fused score
    assert len(faced.hybrid("zebra", 10)) == 10  # no word in common: by meaning alone
    assert faced.hybrid("zebra", 10, Filter(tags=("none",))) == []


def test_words_obey_the_filter_and_the_reader(faced: Memory) -> None:
    faced.add([NewNode("gold in obuasi", trust="untrusted", writer="ann"), NewNode("gold in tarkwa", kind="Fact")])
    assert [hit.node.text for hit in faced.search_words("gold", 5)] == ["gold in tarkwa"]
    assert len(faced.search_words("gold", 5, Filter(reader="ann"))) == 2
    assert faced.search_words("gold", 5, Filter(exclude_kinds=("Fact",))) == []
    assert faced.search_words("the of is", 5) == []  # stop words
    assert faced.search_words("\\ ' & | ! <-> :* '", 5) == []  # no operators


def test_a_rare_word_weighs_more_than_a_common_one(faced: Memory) -> None:
    assert faced.search_words("capital capital country9", 60)[0].node.text == TEXTS[9]


def test_a_changed_text_is_found_by_its_new_words(stored: Memory) -> None:
    [id] = stored.add([NewNode("gold")]).ids
    with stored.database.transaction() as connection:
        connection.execute("UPDATE memory.node_texts SET text = 'silver' WHERE node = %s", [id])
    assert stored.search_words("gold", 5) == []
    assert [hit.node.id for hit in stored.search_words("silver", 5)] == [id]
    with stored.database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [id])
    assert stored.search_words("silver", 5) == []


def test_a_memory_reads_its_own_writes(stored: Memory, replica: Replica) -> None:
    stored.use_replica(replica)
    report = stored.add([NewNode("copper from zambia")])
    assert stored.search_text("copper from zambia", 1)[0].node.id == report.ids[0]
    assert stored.search_words("copper", 1)[0].node.id == report.ids[0]
    stored.add([NewNode("tin from bolivia")])
    assert (
        stored.search_batch(stored.embedder.embed(["tin from bolivia"]), 1)[0].ids[0]
        == stored.search_words("tin", 1)[0].node.id
    )
    stored.write_back("Who mines zinc?", "Namibia", 0.9, "gold")
    assert stored.search_words("zinc namibia", 1)[0].node.source == "qa_pair"
    assert stored.reading.fallbacks == {}


def test_a_token_makes_another_memory_see_the_write(stored: Memory, replica: Replica, database_url: str) -> None:
    elsewhere = Database(database_url)
    reader = Memory(elsewhere, stored.embedder, stored.settings)
    reader.use_replica(replica)
    vector = stored.embedder.embed_one("copper from zambia")
    before = reader.search(vector, 1)[0].node.id
    report = stored.add([NewNode("copper from zambia")])
    assert reader.search(vector, 1)[0].node.id == before  # nothing has woken the replica yet
    assert reader.search(vector, 1, token=report.token)[0].node.id == report.ids[0]
    assert stored.add([NewNode("copper from zambia")]).token > report.token  # skipped, and still to be seen
    elsewhere.close()


def test_a_replica_that_cannot_answer_costs_nothing_but_time(
    stored: Memory, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    stored.use_replica(replica)
    vector = stored.embedder.embed_one("capital of country7")
    wanted = [hit.node.id for hit in stored.search(vector, 5)]
    replica.close()
    with caplog.at_level(logging.WARNING, "ruvllm.memory.retrieval.reading"):
        for _ in range(3):
            assert [hit.node.id for hit in stored.search(vector, 5)] == wanted
    assert len([record for record in caplog.records if "read from Postgres" in record.message]) == 1
    assert stored.reading.fallbacks["not_ready"] >= 3
    with pytest.raises(ReplicaUnavailable):
        replica.search(vector, 5)
    stored.use_replica(None)
    assert stored.reading.replica is None


def test_a_search_asked_again_comes_from_the_cache_until_something_is_written(stored: Memory, replica: Replica) -> None:
    stored.use_replica(replica)
    replica.follow()
    vector = stored.embedder.embed_one("capital of country7")
    first = stored.search(vector, 5)
    hits = stored.reading.cache.hits
    assert stored.search(vector, 5)[0] is first[0]
    assert stored.reading.cache.hits == hits + 1
    assert [hit.node for hit in stored.search(vector, 4)] == [hit.node for hit in first[:4]]  # another question
    stored.search(vector, 5, filter=Filter(tags=("none",)))
    assert stored.reading.cache.hits == hits + 1
    with stored.database.transaction() as connection:  # behind this memory's back
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [first[0].node.id])
    replica.follow()
    assert [hit.node.id for hit in stored.search(vector, 5)][:4] == [hit.node.id for hit in first[1:]]


def test_the_cache_outlives_transactions_that_change_nothing_here(stored: Memory, replica: Replica) -> None:
    stored.use_replica(replica)
    replica.follow()
    vector = stored.embedder.embed_one("capital of country7")
    stored.search(vector, 5)
    before = replica.state
    with stored.database.transaction("another") as connection:
        connection.execute("SELECT pg_current_xact_id()")  # as every stored interaction takes one
    replica.follow()
    assert replica.state.position > before.position
    hits = stored.reading.cache.hits
    stored.search(vector, 5)
    assert stored.reading.cache.hits == hits + 1


def test_concepts_lead_to_their_members(stored: Memory) -> None:
    hits = stored.search_text("capital of country7", 60)
    far = hits[-1].node.id
    concept = NewNode("summary", kind="Concept", embedding=hits[0].embedding)
    [concept_id] = stored.add([concept]).ids
    stored.link(concept_id, far, "Contains", 1.0, "test")
    vector = hits[0].embedding
    plain = [hit.node.id for hit in stored.search(vector, 10)]
    by_concept = [hit.node.id for hit in stored.concept_first(vector, 10)]
    assert far not in plain
    assert far in by_concept
    assert stored.concept_first(vector, 10, Filter(tags=("none",))) == []


def test_a_walk_is_the_same_on_either_face(stored: Memory, replica: Replica) -> None:
    ids = [hit.node.id for hit in stored.search_text("capital", 5)]
    stored.link_all([(ids[0], ids[1], "Cites", 0.5), (ids[1], ids[2], "Follows", 0.8)], "test")
    from_postgres = stored.walk([ids[0]])
    stored.use_replica(replica)
    from_replica = stored.walk([ids[0]])
    assert from_postgres.ids.tolist() == from_replica.ids.tolist() == ids[:3]
    assert from_postgres.edges == from_replica.edges
    assert stored.walk([ids[0]], Walk(hops=1)).ids.tolist() == ids[:2]
    assert stored.reading.fallbacks == {}


def test_the_gateway_reads_in_process_and_shows_it(settings: Settings, database_url: str, database: Database) -> None:
    embedder = EmbeddingAdapter(HashingEncoder())
    late = LateMemory(replace(settings, database_url=database_url), database, embedder, in_process=True)
    metrics = Metrics()
    metrics.watch_memory(late.reading)
    assert b"ruvllm_memory" not in metrics.render()  # not open yet
    memory = late.open()
    [id] = memory.add([NewNode("copper from zambia")]).ids
    vector = embedder.embed_one("copper from zambia")
    assert late.search(vector, 1)[0].node.id == id  # by whichever face
    late._replica.rebuild()
    before = dict(memory.reading.fallbacks)
    assert late.search(vector, 1)[0].node.id == id
    assert memory.reading.fallbacks == before
    text = metrics.render().decode()
    assert "ruvllm_memory_nodes 1.0" in text
    assert "ruvllm_memory_replica_ready 1.0" in text
    late.close()
    late.search(vector, 2)
    text = metrics.render().decode()
    assert "ruvllm_memory_replica_ready 0.0" in text
    assert 'ruvllm_memory_replica_fallbacks_total{reason="not_ready"}' in text
