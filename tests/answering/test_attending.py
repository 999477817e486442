"""Attention in an answer: it reorders what the model reads where the bundle carries a part, and costs no answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ruvllm.answering.answer import Answerer, Ask, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.attention.model import AttentionModel, to_bytes
from ruvllm.attention.part import FILE, PASSED
from ruvllm.attention.shape import Shape
from ruvllm.attention.stage import Retriever
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import BundleError, DatabaseError
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.learning.attention_part import pack
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings
from tests.attention.made import network

QUESTION = "What is the capital of Ghana?"
TEXTS = ("Ghana - Geography. Capital: Accra.", "Togo - Geography. Capital: Lome.", "Mali - Geography. Capital: Bamako.")
SHAPE = Shape(384, width=16, heads=2)


def part(metrics: dict[str, float] | None = None, seed: int = 0, encoder: str = "hashing") -> AttentionModel:
    """A random one: it changes the order, which is all that these tests want of it."""
    passed = {PASSED: 1.0} if metrics is None else metrics
    return AttentionModel(SHAPE, network(SHAPE, seed).arrays(), encoder, "night-1", passed)


class Place:
    """An answerer on a small memory, and bundles that carry a part."""

    def __init__(self, settings: Settings, database: Database, folder: Path) -> None:
        self.folder, self.embedder = folder, EmbeddingAdapter(HashingEncoder())
        self.memory = Memory(database, self.embedder, settings)
        self.memory.add([NewNode(text, source="test") for text in TEXTS])
        ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
        pool = ModelPool(settings, ladder, start=lambda tier: FakeModel(answer=lambda text: "Accra"))
        self.answerer = Answerer(
            settings, Perception(settings, self.embedder, self.memory), pool, Interactions(database), seed=1
        )

    def bundle(self, model: AttentionModel | None) -> RouterRuntime:
        plain = self.folder / "plain"
        if not plain.exists():
            write_random_bundle(plain, encoder_id=self.embedder.id)
        if model is None:
            return RouterRuntime.load(plain)
        whole = self.folder / f"whole-{len(list(self.folder.iterdir()))}"
        return RouterRuntime.load(whole, pack(plain, to_bytes(replace(model, encoder=self.embedder.id)), whole))


@pytest.fixture
def place(settings: Settings, database: Database, tmp_path: Path) -> Place:
    return Place(settings, database, tmp_path / "bundles")


def test_the_model_reads_in_attentions_order(place: Place) -> None:
    plain = place.answerer.answer(Ask(QUESTION))
    place.answerer.use_router(place.bundle(part()))
    attended = place.answerer.answer(Ask(QUESTION))
    ranked = Retriever(_source(place), place.embedder.id, replace(part(), encoder=place.embedder.id)).rank(
        QUESTION, place.embedder.embed_one(QUESTION)
    )
    assert [hit.node.id for hit in attended.hits] == ranked.ids.tolist()
    assert [each.node for each in attended.attended] == ranked.ids.tolist()
    before = {hit.node.id: at for at, hit in enumerate(plain.hits, start=1)}
    assert [each.before for each in attended.attended] == [before[id] for id in ranked.ids.tolist()]
    assert list(attended.used) == [id for id in reversed(ranked.ids.tolist()) if id in attended.used]  # best last
    assert "attend" in attended.stage_ms
    assert not plain.attended
    assert "attend" not in plain.stage_ms


def _source(place: Place):  # type: ignore[no-untyped-def]
    from ruvllm.attention.source import MemorySource

    return MemorySource(place.memory)


@pytest.mark.parametrize("metrics", [{}, {PASSED: 0.0}], ids=["unjudged", "refused"])
def test_a_part_that_passed_no_gate_is_not_used(place: Place, metrics: dict[str, float]) -> None:
    place.answerer.use_router(place.bundle(part(metrics)))
    answer = place.answerer.answer(Ask(QUESTION))
    assert (answer.attended, answer.degraded) == ((), ())


def test_a_setting_turns_it_off(settings: Settings, database: Database, tmp_path: Path) -> None:
    place = Place(replace(settings, attention="off"), database, tmp_path / "bundles")
    place.answerer.use_router(place.bundle(part()))
    assert place.answerer.answer(Ask(QUESTION)).attended == ()


def test_a_router_with_a_damaged_part_does_not_replace_a_good_one(place: Place) -> None:
    good = place.bundle(part())
    place.answerer.use_router(good)
    bad = place.bundle(part(seed=1))
    assert bad.path is not None
    (bad.path / FILE).write_bytes(b"\0" * 80)
    with pytest.raises(BundleError, match="attention"):
        place.answerer.use_router(bad)
    assert place.answerer.answer(Ask(QUESTION)).attended


def test_a_fault_costs_the_order_and_not_the_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.answerer.use_router(place.bundle(part()))
    monkeypatch.setattr(Retriever, "rank", _away)
    answer = place.answerer.answer(Ask(QUESTION))
    assert answer.text == "Accra"
    assert answer.attended == ()
    assert "attention" in answer.degraded


def _away(*_: object) -> None:
    raise DatabaseError("memory: the server is away")


def test_what_says_the_same_is_read_once(place: Place) -> None:
    long = f"{TEXTS[0]} " + " ".join(f"Fact {n} of Ghana is the number {n * n}." for n in range(30))
    place.memory.add([NewNode(text, source="test") for text in (long, f"{long} And more.")])
    place.answerer.use_router(place.bundle(part()))
    answer = place.answerer.answer(Ask(QUESTION))
    found = {hit.node.id: hit.node.text for hit in answer.hits}
    assert sum("Fact 7" in text for text in found.values()) == 2
    assert sum("Fact 7" in found[id] for id in answer.used) == 1


def test_a_streamed_answer_is_attended_too(place: Place) -> None:
    place.answerer.use_router(place.bundle(part()))
    with place.answerer.stream(Ask(QUESTION)) as stream:
        assert "".join(stream) == "Accra"
        assert stream.answer.attended
