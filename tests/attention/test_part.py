"""The attention part of a bundle: what goes into one, what is refused or carried, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.attention.graph import Subgraph
from ruvllm.attention.model import AttentionModel, to_bytes
from ruvllm.attention.part import FILE, PASSED, carried
from ruvllm.errors import ArtifactError, BundleError
from ruvllm.learning.attention import AttentionConfig, Lesson
from ruvllm.learning.attention_gate import AttentionPolicy
from ruvllm.learning.attention_lessons import HeldOut, Lessons
from ruvllm.learning.attention_part import (
    NEW,
    NONE,
    UNCHANGED,
    Champion,
    champion_part,
    choose_part,
    pack,
    part_in,
)
from ruvllm.router.bundle import bundle_files, read_bundle
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from tests.attention.made import SMALL, network
from tests.attention.test_training import QUICK, SHAPE, answer_of, puzzle

FEW = AttentionPolicy(least_questions=20)
ENCODER = "test-encoder"


def held(count: int) -> tuple[HeldOut, ...]:
    """Puzzles whose answer only an edge tells; the plain search has the order before attention."""
    return tuple(_held(puzzle(1000 + n)) for n in range(count))


def _held(graph: Subgraph) -> HeldOut:
    plain = graph.ids[np.argsort(-graph.prior, kind="stable")].tolist()
    return HeldOut(graph, (answer_of(graph),), tuple(plain))


def lessons(train: int = 48, judged: int = 30) -> Lessons:
    made = [puzzle(n) for n in range(train)]
    return Lessons(tuple(Lesson.of(each, {answer_of(each): 1.0}) for each in made), held(judged))


@pytest.fixture(scope="module")
def learnt():  # type: ignore[no-untyped-def]
    return choose_part(lessons(), None, ENCODER, SHAPE.embedding, "night-1", FEW, QUICK)


def random_champion() -> Champion:
    """One that has learnt nothing, and says that it passed."""
    model = AttentionModel(SHAPE, network(SHAPE).arrays(), ENCODER, "night-0", {PASSED: 1.0})
    return Champion(model, to_bytes(model))


def test_what_beats_the_order_before_it_becomes_the_part(learnt) -> None:  # type: ignore[no-untyped-def]
    assert learnt.kind == NEW
    assert learnt.figures["gain_low"] > 0
    assert "plain search" in learnt.tables["new"] or "before attention" in learnt.tables["new"]


def test_what_does_not_beat_it_is_refused() -> None:
    blind = replace(lessons(), train=lessons().train[:8])
    untaught = AttentionConfig(epochs=1, rate=1e-9, batch=8)
    part = choose_part(blind, None, ENCODER, SHAPE.embedding, "night-1", FEW, untaught)
    assert (part.kind, part.content) == (NONE, None)
    assert "does not beat" in part.why


def test_too_few_to_judge_by_is_no_pass() -> None:
    few = lessons(judged=FEW.least_questions - 1)
    part = choose_part(few, None, ENCODER, SHAPE.embedding, "night-1", FEW, QUICK)
    assert (part.kind, part.content) == (NONE, None)
    champion = random_champion()
    stays = choose_part(few, champion, ENCODER, SHAPE.embedding, "night-1", FEW, QUICK)
    assert (stays.kind, stays.content) == (UNCHANGED, champion.content)


def test_a_champion_that_no_longer_passes_is_dropped() -> None:
    untaught = AttentionConfig(epochs=1, rate=1e-9, batch=8)
    part = choose_part(lessons(), random_champion(), ENCODER, SHAPE.embedding, "night-2", FEW, untaught)
    assert part.kind == NONE
    assert "no longer passes" in part.why


def test_a_champion_that_is_as_good_stays(learnt) -> None:  # type: ignore[no-untyped-def]
    from ruvllm.attention.model import from_bytes

    champion = Champion(from_bytes(learnt.content), learnt.content)
    again = choose_part(lessons(), champion, ENCODER, SHAPE.embedding, "night-2", FEW, QUICK)
    assert (again.kind, again.content) == (UNCHANGED, learnt.content)


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_random_bundle(tmp_path / "plain")
    return tmp_path / "plain"


def content(passed: float = 1.0) -> bytes:
    return to_bytes(AttentionModel(SMALL, network().arrays(), ENCODER, "night-1", {PASSED: passed}))


def test_a_part_changes_nothing_else_in_the_bundle(plain: Path, tmp_path: Path) -> None:
    digest = pack(plain, content(), tmp_path / "whole")
    before, after = (bundle_files(path, read_bundle(path).sha256) for path in (plain, tmp_path / "whole"))
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: value for name, value in before.items() if name != "manifest.json"
    }
    assert after[FILE] == content()
    assert digest != read_bundle(plain).sha256
    found = carried(RouterRuntime.load(tmp_path / "whole", digest))
    assert found is not None
    assert found.version == "night-1"
    assert (part_in(tmp_path / "whole"), part_in(plain)) == (content(), None)


def test_a_bundle_without_a_part_carries_none(plain: Path) -> None:
    assert carried(RouterRuntime.load(plain)) is None
    assert carried(None) is None
    assert champion_part(RouterRuntime.load(plain), ENCODER) is None


def test_a_part_of_another_encoder_is_not_the_champions(plain: Path, tmp_path: Path) -> None:
    pack(plain, content(), tmp_path / "whole")
    router = RouterRuntime.load(tmp_path / "whole")
    assert champion_part(router, ENCODER) is not None
    assert champion_part(router, "another-encoder") is None


def test_an_altered_part_makes_the_bundle_unsound(plain: Path, tmp_path: Path) -> None:
    pack(plain, content(), tmp_path / "whole")
    path = tmp_path / "whole" / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=FILE):
        RouterRuntime.load(tmp_path / "whole")


def test_what_could_not_be_read_back_is_not_packed(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="attention model"):
        pack(plain, b"no model", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
