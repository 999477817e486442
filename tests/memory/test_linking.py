"""Edges where there are none: which are made, why, how heavy, how many; and that a memory gets exactly these."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm.errors import InputError
from ruvllm.memory import naming
from ruvllm.memory.linker import link_nodes, link_used, shared_ids
from ruvllm.memory.linking import SHARED, Link, Linkable, Linking, linked, touching, used_together
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory


def texts(*given_: str, **more: str) -> list[Linkable]:
    return [Linkable(i, text, naming.title_of(text), **more) for i, text in enumerate(given_)]  # type: ignore[arg-type]


def by(found, provenance: str) -> list[tuple[int, int]]:  # type: ignore[no-untyped-def]
    return [(link.src, link.dst) for link in found.links if link.by == provenance]


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_runs_of_capitals_joined_over_small_words() -> None:
    text = "The Journal of Psychotherapy Integration is published by the American Psychological Association's press."
    assert list(naming.names(text)) == ["journal of psychotherapy integration", "american psychological association"]


def test_a_name_ends_at_a_mark_and_small_words_do_not_hang_over() -> None:
    assert list(naming.names("In Paris, Victor Hugo of the")) == ["paris", "victor hugo"]


def test_titles_come_from_the_context_or_a_short_first_line() -> None:
    assert naming.title_of("text", "Guide > Part > Clocks") == "Clocks"
    assert naming.title_of("Velm\nA harbour.") == "Velm"
    assert naming.title_of("One line only.") == ""
    assert naming.title_of("x" * 200 + "\nmore") == ""


def test_the_longest_title_wins_and_a_small_word_is_no_mention() -> None:
    titles = {"new york": (1,), "new york city": (2,), "home": (3,)}
    assert list(naming.mentions("He left New York City for home.", titles)) == ["new york city"]


def test_links_in_markdown_and_wikis() -> None:
    text = "See [the guide](docs/Set-Up.md#start), [web](https://x.org/a), [mail](mailto:a@b) and [[Clock Tower|it]]."
    assert list(naming.targets(text)) == ["set-up", "clock tower"]


# --- edges ------------------------------------------------------------------------------------------------------------


def test_a_text_cites_the_title_that_it_names() -> None:
    found = linked(texts("Velm\nVelm is a town.", "Ida Torsen\nShe built Velm and left.", "Camber\nClocks."))
    assert by(found, "link:title") == [(1, 0)]
    (cites,) = [link for link in found.links if link.by == "link:title"]
    assert (cites.rel, cites.weight) == ("Cites", 1.0)


def test_a_title_that_many_name_weighs_less() -> None:
    many = [f"Person{i}\nBorn in Velm as child {i}." for i in range(5)]
    weights = [link.weight for link in linked(texts("Velm\nA town.", *many)).links if link.by == "link:title"]
    assert weights == [pytest.approx(1 / (1 + math.log(5)))] * 5


def test_a_word_that_everyone_names_is_no_title() -> None:
    many = [f"Person{i}\nBorn in Velm {i}." for i in range(30)]
    assert by(linked(texts("Velm\nA town.", *many), how=Linking(named_at_most=20)), "link:title") == []


def test_shared_rare_words_connect_and_weigh_by_rarity() -> None:
    given_ = texts("one zygote here", "two zygote there", "three plain", "four simple")
    (link,) = linked(given_).links
    rarity = math.log(4 / 2)
    assert (link.src, link.dst, link.rel, link.by) == (0, 1, "SameTopic", "link:shared")
    assert link.weight == pytest.approx(rarity / (rarity + SHARED))


def test_a_common_word_connects_nothing() -> None:
    many = texts(*(f"clock number{i}x" for i in range(30)))
    assert linked(many, how=Linking(common=24)).links == ()


def test_a_hub_is_cut_to_the_fan() -> None:
    many = texts(*(f"alpha{i // 2} beta{i % 3} gamma rareword" for i in range(20)))
    found = linked(many, how=Linking(fan=3, common=24))
    degrees = np.bincount([link.src for link in found.links] + [link.dst for link in found.links])
    assert len(found.links) <= 3 * len(many)
    assert degrees.max() < 20


def test_pieces_of_a_document_follow_one_another() -> None:
    parts = [Linkable(i, f"piece{i}", source="a.md", place=i) for i in range(3)]
    other = Linkable(9, "elsewhere", source="b.md")
    assert by(linked([parts[2], other, parts[0], parts[1]]), "link:order") == [(1, 0), (2, 1)]


def test_a_link_cites_the_first_piece_of_its_document() -> None:
    guide = [Linkable(i, f"part{i} of it", source="docs/guide.md", place=i) for i in range(2)]
    reader = Linkable(7, "See [this](../docs/guide.md).", source="index.md")
    assert by(linked([*guide, reader]), "link:target") == [(7, 0)]


def test_near_vectors_connect_from_the_threshold_on() -> None:
    vectors = np.array([[1, 0], [0.9, math.sqrt(1 - 0.81)], [0, 1]], np.float32)
    found = linked([Linkable(i, f"t{i}") for i in range(3)], vectors, Linking(near=0.85))
    (link,) = found.links
    assert (link.src, link.dst, link.by) == (0, 1, "link:near")
    assert link.weight == pytest.approx(0.9, abs=1e-6)


def test_of_two_reasons_the_heavier_stays() -> None:
    same = np.array([[1, 0], [1, 0]], np.float32)
    found = linked(texts("one zygote", "two zygote"), same)
    assert [(link.by, link.weight) for link in found.links] == [("link:near", 1.0)]


def test_broken_vectors_are_near_nothing() -> None:
    vectors = np.full((3, 4), np.nan, np.float32)
    assert linked([Linkable(i, f"t{i}") for i in range(3)], vectors).links == ()


def test_co_use_grows_with_every_answer() -> None:
    found = used_together([[1, 2], [2, 1, 3], [4]])
    assert {(link.src, link.dst): link.weight for link in found.links} == {(1, 2): 0.75, (1, 3): 0.5, (2, 3): 0.5}
    assert found.counts == {"link:co-use": 3}
    assert used_together([[1, 2], [2, 1, 3]], least=2).counts == {"link:co-use": 1}


def test_only_what_touches_new_nodes_is_new() -> None:
    found = used_together([[1, 2], [2, 3], [3, 4]])
    assert [(link.src, link.dst) for link in touching(found, [1]).links] == [(1, 2)]


@given(st.lists(st.text("abcA BC.\n[]()", max_size=40), max_size=8))
@settings(max_examples=60, deadline=None)
def test_whatever_the_texts_edges_are_sound(given_: list[str]) -> None:
    vectors = np.ones((len(given_), 3), np.float32) / np.float32(math.sqrt(3))
    found = linked(texts(*given_), vectors)
    for link in found.links:
        assert link.src != link.dst
        assert 0 <= link.weight <= 1
        assert isinstance(link, Link)
    keys = [(link.src, link.dst, link.rel) for link in found.links]
    assert len(keys) == len(set(keys))
    assert sum(found.counts.values()) == len(found.links)


def test_the_order_of_texts_does_not_count() -> None:
    given_ = texts("Velm\nA town of Ida.", "Ida\nShe built Velm, zygote.", "Camber\nClocks zygote of Ida.")
    assert linked(given_).links == linked(list(reversed(given_))).links


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        linked([Linkable(1, "a"), Linkable(1, "b")])
    with pytest.raises(InputError, match="vectors of shape"):
        linked([Linkable(1, "a")], np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match="linking"):
        Linking(fan=0)


def test_nothing_to_link() -> None:
    assert linked([]).links == ()
    assert linked([Linkable(1, "alone")], np.ones((1, 2), np.float32)).links == ()


# --- in a memory ------------------------------------------------------------------------------------------------------

PASSAGES = (
    "Velm\nVelm is a harbour town founded in 1911.",
    "Ida Torsen\nIda Torsen built the lighthouse of Velm.",
    "Camber\nCamber is known for clocks.",
)


def edges_of(memory: Memory) -> set[tuple[int, int, str, str]]:
    with memory.database.transaction() as connection:
        return set(connection.execute("SELECT src, dst, rel, created_by FROM memory.edges").fetchall())  # type: ignore[arg-type]


def test_a_memory_is_linked_with_provenance_and_only_once(memory: Memory) -> None:
    ids = memory.add([NewNode(text) for text in PASSAGES]).ids
    report = link_nodes(memory, ids)
    assert (ids[1], ids[0], "Cites", "link:title") in edges_of(memory)
    assert report.written == sum(report.found.values()) == len(edges_of(memory))
    assert "by link:title" in str(report)
    assert link_nodes(memory, ids).written == 0


def test_a_new_node_is_linked_with_what_was_there(memory: Memory) -> None:
    old = memory.add([NewNode(PASSAGES[0])]).ids
    new = memory.add([NewNode(PASSAGES[1])]).ids
    assert link_nodes(memory, new).written > 0
    assert (new[0], old[0], "Cites", "link:title") in edges_of(memory)


def test_pieces_that_meet_by_nearness_alone_do_not_follow_one_another(memory: Memory) -> None:
    """Linked piece by piece, as a later ingest does, with the middle one far from both: 3 must not follow 1."""
    texts = ("Velm\n\nIda Torsen built Velm.", "Velm\n\nclocks", "Velm\n\nIda Torsen left Velm.")
    ids = memory.add([NewNode(text, source="a.md", metadata={"context": "Velm"}) for text in texts]).ids
    other = memory.add([NewNode("Velm\n\nIda Torsen.", source="a.md", metadata={"context": "Camber"})]).ids
    for id in (*ids, *other):
        link_nodes(memory, [id])
    follows = {(a, b) for a, b, rel, _ in edges_of(memory) if rel == "Follows"}
    assert follows <= {(ids[1], ids[0]), (ids[2], ids[1])}


def test_texts_of_users_are_not_linked(memory: Memory) -> None:
    ids = memory.add([NewNode(PASSAGES[0]), NewNode(PASSAGES[1], trust="untrusted", writer="ida")]).ids
    assert link_nodes(memory, ids).written == 0
    assert shared_ids(memory) == [ids[0]]


def test_co_use_is_written(memory: Memory) -> None:
    ids = memory.add([NewNode(text) for text in PASSAGES]).ids
    assert link_used(memory, [[ids[0], ids[2]]]).written == 1
    assert edges_of(memory) == {(ids[0], ids[2], "Derived", "link:co-use")}
