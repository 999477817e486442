"""The table and the picture of one question's graph; the verbs that show and link."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ruvllm import embedding
from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.explain import draw, explained
from ruvllm.attention.model import to_bytes
from ruvllm.attention.part import PASSED
from ruvllm.attention.stage import Ranked, Retriever
from ruvllm.cli import app
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import InputError
from ruvllm.learning.attention_part import pack
from ruvllm.registry import ledger
from ruvllm.registry.ledger import NewRow
from ruvllm.router.fake import write_random_bundle
from tests.attention.test_model import SMALL, model

EMBEDDER = EmbeddingAdapter(HashingEncoder())
TEXTS = ("Velm\nVelm is a harbour.", "Ida\nIda built Velm.", "Camber\nCamber has clocks.")
TITLES = {0: "Velm", 1: "Ida", 2: "Camber"}


@pytest.fixture
def source(tmp_path: Path) -> ArraySource:
    edges = ((1, 0, "Cites", 0.9), (1, 2, "SameTopic", 0.25))
    return ArraySource(TEXTS, EMBEDDER.embed(TEXTS), edges, tmp_path / "words")


def ranked(source: ArraySource, attention: bool = True) -> Ranked:
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


# -- the verbs, on a database


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Path:
    """This test's database and state directory, and the deterministic encoder."""
    for name in [name for name in os.environ if name.startswith("RUVLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(embedding._ENCODERS, "minilm", lambda settings: HashingEncoder())
    return tmp_path / "state"


def said(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


def test_what_was_ingested_is_linked_explained_and_drawn(state: Path, tmp_path: Path) -> None:
    (tmp_path / "velm.md").write_text("# Velm\n\nVelm is a harbour.")
    (tmp_path / "ida.md").write_text("# Ida Torsen\n\nIda Torsen built Velm, as [said](velm.md).")
    assert said("ingest", str(tmp_path / "velm.md"), str(tmp_path / "ida.md"))["written"] == 2
    linked = said("memory", "link")
    assert (linked["nodes"], linked["written"]) == (2, 0)
    assert linked["found"]["link:target"] == 1
    plain = said("memory", "explain", "Who built Velm?", "--image", str(tmp_path / "graph.svg"))
    assert plain["attention"] is None
    assert {row["title"] for row in plain["nodes"]} == {"Velm", "Ida Torsen"}
    assert [row["via"] for row in plain["nodes"]] == ["", "<- 1 Cites 1.00"]
    assert "Ida Torsen" in (tmp_path / "graph.svg").read_text()


def test_explain_says_which_attention_model_ranked(
    state: Path, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUVLLM_LADDER", "packaged")
    monkeypatch.setenv("RUVLLM_ACCEPT_GEMMA_TERMS", "true")
    (tmp_path / "velm.md").write_text("# Velm\n\nVelm is a harbour.")
    said("ingest", str(tmp_path / "velm.md"))
    promote(state / "cycles" / "night-7", database_url)
    shown = said("memory", "explain", "Velm?")
    assert shown["attention"] == "night-7"
    assert shown["nodes"][0]["share"] == pytest.approx(1.0)


def promote(cycle: Path, database_url: str) -> None:
    """A router whose bundle carries an attention part, as champion."""
    write_random_bundle(cycle / "bundle", encoder_id=EMBEDDER.id)
    used = model(replace(SMALL, embedding=384))
    part = replace(used, version="night-7", encoder=EMBEDDER.id, metrics={PASSED: 1.0})
    digest = pack(cycle / "bundle", to_bytes(part), cycle / "attended")
    with closing(Database(database_url)) as database, database.transaction() as connection:
        row = NewRow("promote", "1", digest, str(cycle / "attended"), "test")
        ledger.append(connection, ledger.current(connection), row)
