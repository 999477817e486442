"""The table and the picture of one question's graph; the verbs that show and link."""

from __future__ import annotations

from pathlib import Path

import pytest

from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.explain import draw, explained
from ruvllm.attention.stage import Ranked, Retriever
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import InputError
from tests.attention.test_model import SMALL, model

EMBEDDER = EmbeddingAdapter(HashingEncoder())
TEXTS = ("Velm\nVelm is a harbour.", "Ida\nIda built Velm.", "Camber\nCamber has clocks.")
TITLES = {0: "Velm", 1: "Ida", 2: "Camber"}


@pytest.fixture
def source(tmp_path: Path) -> ArraySource:
    edges = ((1, 0, "Cites", 0.9), (1, 2, "SameTopic", 0.25))
    return ArraySource(TEXTS, EMBEDDER.embed(TEXTS), edges, tmp_path / "words")


def ranked(source: ArraySource, attention: bool = True) -> Ranked:
    from dataclasses import replace

    used = model(replace(SMALL, embedding=384)) if attention else None
    return Retriever(source, "test-encoder", used).rank("Velm?", EMBEDDER.embed_one("Velm?"))


def test_rows_say_before_and_after_and_by_way_of_what(source: ArraySource) -> None:
    found = ranked(source)
    rows = explained(found, TITLES)
    assert [row.id for row in rows] == found.ids.tolist()
    assert sorted(row.before for row in rows) == [1, 2, 3]
    assert sum(row.share for row in rows) == pytest.approx(1.0, abs=1e-5)
    assert {row.title for row in rows} == set(TITLES.values())
    assert len(explained(found, TITLES, most=2)) == 2
    plain = explained(ranked(source, attention=False), TITLES)
    assert [(row.after, row.share) for row in plain] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert [row.before for row in plain] == [1, 2, 3]
    place = {row.title: row.after for row in plain}
    later = max(("Velm", "Ida"), key=lambda title: place[title])
    earlier = min(place["Velm"], place["Ida"])
    assert plain[place[later] - 1].via == f"<- {earlier} Cites 0.90"


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_picture_is_drawn_and_the_same_twice_in_size(source: ArraySource, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"graph{ending}"
    draw(ranked(source), TITLES, path, "Velm?")
    content = path.read_bytes()
    assert content[:5] in (b"\x89PNG\r", b"<?xml")
    assert len(content) > 1000


def test_another_ending_is_refused_before_anything_is_drawn(source: ArraySource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        draw(ranked(source), TITLES, tmp_path / "graph.exe", "Velm?")
    assert not (tmp_path / "graph.exe").exists()
