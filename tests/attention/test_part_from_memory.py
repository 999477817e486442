"""From a real Postgres to a bundle: what memory's edges tell becomes a part; what the plain search knows does not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ruvllm.attention.part import carried
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.learning.attention import AttentionConfig
from ruvllm.learning.attention_lessons import read_lessons
from ruvllm.learning.attention_part import NEW, NONE, Part, choose_part
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.nightly import attending
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.layout import LAYOUT
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings

TRAIN, HELD = 24, 52  # the gate wants 50 to judge by
QUICK = AttentionConfig(epochs=12, batch=8)


def word(n: int) -> str:
    """One that nothing else shares."""
    return hashlib.sha256(str(n).encode()).hexdigest()[:10]


@pytest.fixture
def memory(settings: Settings, database: Database) -> Memory:
    """Registers, each of which cites an entry that shares no word with any question."""
    made, numbers = Memory(database, EmbeddingAdapter(HashingEncoder()), settings), range(TRAIN + HELD)
    registers = [NewNode(f"Register {word(n)} of the town", source="test", metadata={"key": f"register/{n}"})
                 for n in numbers]  # fmt: skip
    entries = [NewNode(f"{word(1000 + n)} {word(2000 + n)}", source="test", metadata={"key": f"entry/{n}"})
               for n in numbers]  # fmt: skip
    ids = made.add([*registers, *entries]).ids
    made.link_all([(ids[n], ids[len(numbers) + n], "Cites", 1.0) for n in numbers], "test")
    with database.transaction() as connection:
        for n in numbers:
            connection.execute(
                "INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split,"
                " grouping, history, layout_hash, features, embedding, retrieved)"
                " VALUES (%s, %s, 'night', %s, '{x}', 'entry', 'town', %s, %s, '[]', %s, %s, '{}', '{}')",
                (f"question/{n}", database.tenant, f"What does register {word(n)} of the town say?",
                 "train" if n < TRAIN else "test", str(n), LAYOUT.hash, [0.0] * 128),
            )  # fmt: skip
    return made


def chosen(memory: Memory, passage: str) -> Part:
    """The night's choice where `passage` of the question's number holds its answer."""
    lessons = read_lessons(memory, {f"question/{n}": (f"{passage}/{n}",) for n in range(TRAIN + HELD)})
    assert (len(lessons.train), len(lessons.held)) == (TRAIN, HELD)
    return choose_part(lessons, None, memory.embedder.id, memory.embedder.dimension, "night-1", config=QUICK)


def test_what_only_edges_tell_becomes_a_part_of_the_bundle(memory: Memory, tmp_path: Path) -> None:
    part = chosen(memory, "entry")
    assert part.kind == NEW, part.why
    assert part.figures["gain_low"] > 0
    served = packed(tmp_path, part)
    assert served.manifest.version == "night-1"
    model = carried(served)
    assert model is not None
    assert model.metrics["held"] == HELD


def test_what_the_plain_search_knows_is_refused_and_the_bundle_goes_without(memory: Memory, tmp_path: Path) -> None:
    part = chosen(memory, "register")
    assert (part.kind, part.content) == (NONE, None)
    assert "does not beat" in part.why
    assert carried(packed(tmp_path, part)) is None


def packed(folder: Path, part: Part) -> RouterRuntime:
    """What goes to review, as the step leaves it."""
    write_random_bundle(folder / attending.ROUTER, version="night-1")
    result = attending.packed(folder, part)
    return RouterRuntime.load(attending.proposed(folder), result["sha256"])
