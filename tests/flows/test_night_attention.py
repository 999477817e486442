"""The night's attention goes with the router as one bundle, and the router as it was trained stays beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ruvllm.attention.model import AttentionModel, to_bytes
from ruvllm.attention.part import PASSED, carried
from ruvllm.errors import BundleError
from ruvllm.learning.attention_part import pack
from ruvllm.nightly import attending
from ruvllm.router.bundle import read_bundle
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.runtime import RouterRuntime
from tests.attention.made import SMALL, network

PART = to_bytes(AttentionModel(SMALL, network().arrays(), "test-encoder", "night-1", {PASSED: 1.0}))


def cycle(folder: Path, seed: int = 0, part: bytes | None = None) -> Path:
    write_random_bundle(folder / attending.ROUTER, version=folder.name, seed=seed)
    if part is not None:
        pack(folder / attending.ROUTER, part, folder / attending.WHOLE)
    return folder


def test_what_goes_to_review_has_the_part_where_there_is_one(tmp_path: Path) -> None:
    without, with_one = cycle(tmp_path / "night-1"), cycle(tmp_path / "night-2", part=PART)
    assert attending.proposed(without) == without / attending.ROUTER
    assert carried(RouterRuntime.load(attending.proposed(with_one))) is not None


def test_a_refinement_carries_the_champions_part_unchanged(tmp_path: Path) -> None:
    champion, refined = cycle(tmp_path / "night-1", part=PART), cycle(tmp_path / "refine-1", seed=1)
    trained = read_bundle(refined / attending.ROUTER).sha256
    assert attending.carry(champion, refined)
    found = carried(RouterRuntime.load(attending.proposed(refined)))
    assert found is not None
    assert to_bytes(found) == PART
    assert read_bundle(attending.proposed(refined)).manifest.version == "refine-1"
    assert read_bundle(refined / attending.ROUTER).sha256 == trained


def test_a_refinement_of_a_champion_without_a_part_has_none(tmp_path: Path) -> None:
    champion, refined = cycle(tmp_path / "night-1"), cycle(tmp_path / "refine-1", seed=1, part=PART)
    assert not attending.carry(champion, refined)  # what a killed run left behind goes, too
    assert attending.proposed(refined) == refined / attending.ROUTER


def test_a_damaged_champion_is_named(tmp_path: Path) -> None:
    champion, refined = cycle(tmp_path / "night-1", part=PART), cycle(tmp_path / "refine-1", seed=1)
    (champion / attending.WHOLE / "attention.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"attention\.safetensors"):
        attending.carry(champion, refined)


def test_a_reader_sees_what_it_came_to() -> None:
    table = "| questions | N |\n|---|---|\n| nDCG@10 | 57 |\n"
    text = attending.markdown({
        "part": "none", "why": "the new one was refused", "tables": {"new": table}, "held": 57,
        "lessons": {"oracle train": 105}, "figures": {},
    })  # fmt: skip
    assert "none" in text
    assert "refused" in text
    assert "105 oracle train" in text
    assert table in text
