"""Memory over a real Postgres: write, find, link, walk, count."""

import threading
from dataclasses import replace

import numpy as np
import psycopg
import pytest
from numpy.testing import assert_allclose

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import EncoderMismatchError, InputError, TooLargeError
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings

CITIES = [NewNode(f"The capital of country{i} is city{i}", source="atlas", tags=("geo",)) for i in range(100)]


def test_what_was_added_is_found_with_everything_that_belongs_to_it(memory: Memory) -> None:
    node = replace(CITIES[0], domain="geography", metadata={"page": 7}, confidence=0.5, trust="corroborated")
    report = memory.add([node, *CITIES[1:]])
    assert (report.written, report.skipped, len(set(report.ids))) == (100, 0, 100)
    hits = memory.search_text("capital of country0, is it city0?", 5)
    assert hits[0].node.id == report.ids[0]
    found = hits[0].node
    assert (found.text, found.domain, found.tags, found.metadata) == (node.text, "geography", ("geo",), {"page": 7})
    assert (found.kind, found.trust, found.confidence, found.version, found.source) == (
        "Document", "corroborated", 0.5, 1, "atlas",
    )  # fmt: skip
    similarities = [hit.similarity for hit in hits]
    assert similarities == sorted(similarities, reverse=True)
    vector = memory.embedder.embed([node.text])[0]
    assert hits[0].embedding.dtype == np.float32
    assert_allclose(hits[0].embedding, vector, atol=1e-3)  # halfvec keeps 11 bits
    assert_allclose(
        hits[0].similarity, memory.embedder.embed_one("capital of country0, is it city0?") @ vector, atol=2e-3
    )


def test_k_hits_come_whatever_is_filtered(memory: Memory) -> None:
    facts = [NewNode(f"Fact {i} of the capital", kind="Fact") for i in range(300)]
    memory.add([*facts, *CITIES])
    assert len(memory.search_text("the capital", 64)) == 64
    hits = memory.search_text("Fact of the capital", 64, exclude_kinds=("Fact",))
    assert [hit.node.kind for hit in hits] == ["Document"] * 64
    assert len(memory.search_text("the capital", 1000)) == 400
    for k in (0, 1001):
        with pytest.raises(InputError, match=f"k: got {k}, want 1 to 1000"):
            memory.search_text("x", k)


def test_adding_again_writes_nothing_and_gives_the_same_ids(memory: Memory) -> None:
    seen: list[tuple[int, int]] = []
    first = memory.add(CITIES, lambda done, total, note="": seen.append((done, total)))
    second = memory.add([*CITIES, NewNode("new"), NewNode("new"), NewNode(" new\x07"), NewNode("new", kind="Concept")])
    assert seen == [(64, 100), (100, 100)]
    assert second.ids[:100] == first.ids
    assert (second.written, second.skipped) == (2, 102)  # "new" as Document and as Concept
    assert second.ids[100] == second.ids[101] == second.ids[102] != second.ids[103]
    assert memory.add([]).ids == ()


def test_two_writers_at_once_write_each_text_once(memory: Memory) -> None:
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(memory.add(CITIES))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.written for report in reports) == memory.counts()["nodes"] == 100
    assert len({report.ids for report in reports}) == 1


@pytest.mark.parametrize("text", ["", " \n", "a\x00b", "a\ud800"])
def test_unacceptable_text_is_refused_before_anything_is_written(memory: Memory, text: str) -> None:
    with pytest.raises(InputError, match="text of a Document from atlas"):
        memory.add([NewNode("good"), NewNode(text, source="atlas")])
    assert memory.counts()["nodes"] == 0


def test_what_postgres_cannot_hold_is_refused_in_every_word_and_filter(memory: Memory) -> None:
    for bad in ({"tags": ("a\0b",)}, {"domain": "\0"}, {"source": "\0"}, {"writer": "\0"}):
        with pytest.raises(InputError, match="got a NUL"):
            memory.add([CITIES[1], replace(CITIES[0], **bad)])
    assert memory.counts()["nodes"] == 0
    for bad in ({"tags": ("a\0b",)}, {"domains": ("\0",)}, {"reader": "\0"}):
        with pytest.raises(InputError, match="got a NUL"):
            Filter(**bad)


def test_the_least_confidence_a_filter_asks_for_may_be_smaller_than_a_single_holds(memory: Memory) -> None:
    memory.add([CITIES[0]])
    vector = memory.embedder.embed_one("city0")
    assert len(memory.search(vector, 1, filter=Filter(min_confidence=5e-324))) == 1


def test_limits_of_text_and_embedding(memory: Memory) -> None:
    assert memory.add([NewNode("é" * 20_000)]).written == 1
    with pytest.raises(TooLargeError):
        memory.add([NewNode("é" * 20_001)])
    unit = np.eye(384, dtype=np.float32)[0]
    assert memory.add([NewNode("given", embedding=unit)]).written == 1
    assert memory.search(unit, 1)[0].node.text == "given"
    for broken in (unit[:-1], unit * 2, unit * np.nan):
        with pytest.raises(InputError, match="embedding: got"):
            memory.add([NewNode("broken", embedding=broken)])
        with pytest.raises(InputError, match="vector: got"):
            memory.search(broken, 1)


def test_text_is_data_never_sql(memory: Memory) -> None:
    nasty = "'); DROP TABLE memory.nodes; -- %s %(id)s \\ $1"
    [id] = memory.add([NewNode(nasty, source=nasty, writer=nasty, tags=(nasty, "{a,b}"), metadata={nasty: nasty})]).ids
    [node] = memory.get([id])
    assert (node.text, node.source, node.tags, dict(node.metadata)) == (nasty, nasty, (nasty, "{a,b}"), {nasty: nasty})


def test_untrusted_rows_are_found_by_their_writer_only(memory: Memory) -> None:
    memory.add([NewNode("the secret of mallory", trust="untrusted", writer="mallory")])
    assert memory.search_text("the secret of mallory", 5) == []
    assert memory.search_text("the secret of mallory", 5, reader="bob") == []
    assert len(memory.search_text("the secret of mallory", 5, reader="mallory")) == 1


def test_a_second_writer_or_the_system_corroborates(memory: Memory) -> None:
    mallory = NewNode("claim", trust="untrusted", writer="mallory")
    memory.add([mallory])
    memory.add([mallory])
    assert memory.search_text("claim", 5, reader="bob") == []
    memory.add([replace(mallory, writer="bob")])
    assert memory.search_text("claim", 5)[0].node.trust == "corroborated"
    memory.add([NewNode("another", trust="untrusted", writer="mallory"), NewNode("another")])
    assert memory.search_text("another", 1)[0].node.trust == "system"  # squatting a text does not hide it


def test_tenants_do_not_see_each_other(memory: Memory, database_url: str, settings: Settings) -> None:
    [mine] = memory.add([NewNode("shared text")]).ids
    database = Database(database_url, tenant="other")
    other = Memory(database, memory.embedder, settings)
    assert (other.search_text("shared text", 5), other.get([mine]), other.counts()["nodes"]) == ([], [], 0)
    [theirs] = other.add([NewNode("shared text")]).ids
    other.link(theirs, mine, "Cites", 1.0, "test")
    assert theirs != mine
    assert other.neighbours([theirs]) == []
    database.close()


def test_neighbourhood_two_hops_both_ways_bounded(memory: Memory) -> None:
    a, b, c, d, e = memory.add([NewNode(text) for text in ("a a", "b b", "c c", "d d", "e e")]).ids
    memory.link_all(
        [(a, b, "Cites", 0.5), (c, b, "Follows", 0.9), (c, d, "Derived", 0.4), (a, e, "SameTopic", 0.7)], "t"
    )
    memory.link(a, b, "Cites", 0.1, "again")  # stays as it is
    near = memory.neighbours([a])
    assert [(src, dst, rel) for src, dst, rel, _ in near] == [
        (a, e, "SameTopic"), (a, b, "Cites"), (c, b, "Follows"),
    ]  # fmt: skip
    assert_allclose([weight for *_, weight in near], [0.7, 0.5, 0.9])
    assert len(memory.neighbours([a], hops=1)) == 2
    assert len(memory.neighbours([a], hops=3)) == 4
    assert memory.neighbours([a], limit=1) == near[:1]
    assert memory.neighbours([]) == []
    with pytest.raises(psycopg.errors.CheckViolation):
        memory.link(a, a, "Cites", 1.0, "test")


def test_neighbourhood_ends_at_nodes_that_the_reader_may_not_see(memory: Memory) -> None:
    a, secret, c = memory.add([NewNode("a"), NewNode("s", trust="untrusted", writer="mallory"), NewNode("c")]).ids
    memory.link_all([(a, secret, "Cites", 1.0), (secret, c, "Cites", 1.0)], "test")
    assert memory.neighbours([a]) == []
    assert len(memory.neighbours([a], reader="mallory")) == 2


def test_a_hub_is_walked_in_bounds(memory: Memory) -> None:
    hub, *spokes = memory.add([NewNode(f"node {i}") for i in range(120)]).ids
    memory.link_all([(hub, spoke, "Cites", i / 200) for i, spoke in enumerate(spokes)], "test")
    near = memory.neighbours([hub], hops=2)
    assert len(near) == 32
    assert near[0][1] == spokes[-1]  # the heaviest


def test_use_is_counted_apart_from_the_node(memory: Memory, database: Database) -> None:
    a, b = memory.add([NewNode("a"), NewNode("b")]).ids
    memory.touch([a, b, a, 10**9])
    memory.touch([a])
    with database.transaction() as connection:
        rows = connection.execute("SELECT node, uses FROM memory.node_usage ORDER BY node").fetchall()
    assert rows == [(a, 2), (b, 1)]


def test_get_keeps_the_order_asked_for(memory: Memory) -> None:
    a, b, c = memory.add([NewNode("a"), NewNode("b"), NewNode("c")]).ids
    assert [node.id for node in memory.get([c, 10**9, a, b])] == [c, a, b]


def test_counts(memory: Memory) -> None:
    a, b = memory.add([NewNode("a"), NewNode("b", kind="Fact")]).ids
    memory.link(a, b, "Cites", 1.0, "test")
    assert memory.counts() == {"Document": 1, "Fact": 1, "nodes": 2, "archived": 0, "edges": 1}


@pytest.mark.parametrize("encoder", [HashingEncoder(id="other"), HashingEncoder(dimension=128)])
def test_vectors_of_different_encoders_never_meet(
    database: Database, settings: Settings, encoder: HashingEncoder
) -> None:
    with pytest.raises(EncoderMismatchError, match=rf"test-encoder \(384 .*{encoder.id} \({encoder.dimension} dim"):
        Memory(database, EmbeddingAdapter(encoder), settings)


def test_what_was_archived_and_comes_again_lives_again(memory: Memory, database: Database) -> None:
    node, other = (
        NewNode("The harbour of Tema lies east of Accra.", source="guide"),
        NewNode("Lome is a port.", source="g"),
    )
    [first, _] = memory.add([node, other]).ids
    with database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [first])
        connection.execute("DELETE FROM memory.minhash_bands WHERE node = %s", [first])
    again = memory.add([node, other])
    assert (again.ids[0], again.written) == (first, 0)
    assert memory.search_text(node.text, 1)[0].node.id == first
    assert memory.counts()["archived"] == 0
