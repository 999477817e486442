"""`ruvllm memory …` and `ruvllm db analyst …` from the door: they teach, show, speak JSON, and refuse in one line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from ruvllm import embedding
from ruvllm.cli import app
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.settings import load_settings

VERBS = (
    "stats", "search", "neighbours", "embed", "calibrate", "export", "import", "forget", "audit", "dedup", "compact",
    "archive", "decay", "undo", "runs", "reindex", "shards status", "shards create", "shards search", "shards simulate",
)  # fmt: skip


@dataclass
class Door:
    """The command with this test's database and the deterministic encoder."""

    runner: CliRunner

    def __call__(self, *arguments: str, code: int = 0) -> str:
        result: Result = self.runner.invoke(app, list(arguments))
        assert result.exit_code == code, result.output + str(result.exception)
        assert "Traceback" not in result.output
        return result.output

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What stdout holds: JSON and nothing else, whatever progress is shown."""
        result = self.runner.invoke(app, [*arguments, "--json"])
        assert result.exit_code == code, result.output + str(result.exception)
        return json.loads(result.stdout)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Door:
    for name in [name for name in os.environ if name.startswith("RUVLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUVLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RUVLLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(embedding._ENCODERS, "minilm", lambda settings: HashingEncoder())
    return Door(CliRunner())


@pytest.fixture
def memory(door: Door, database: Database, tmp_path: Path) -> Memory:
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), load_settings({}, state_dir=tmp_path / "state"))
    ids = memory.add(
        [
            NewNode("The capital of Ghana is Accra", "Fact", "atlas", "geography", tags=("africa",)),
            NewNode("The capital of Ghana  is Accra", "Fact", "atlas"),
            NewNode("Mount Everest is the highest mountain", "Document", "atlas", confidence=0.5),
            NewNode("mallory says so", "Fact", trust="untrusted", writer="mallory"),
        ]
    ).ids
    memory.link(ids[0], ids[2], "Cites", 0.5, "test")
    return memory


def uuid_of(memory: Memory, text: str) -> str:
    return memory.search_text(text, 1, reader="mallory")[0].node.uuid


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    output = CliRunner().invoke(app, ["memory", *verb.split(), "--help"], env={"COLUMNS": "200"}).output
    assert "Usage" in output
    assert "--json" in output


def test_stats(door: Door, memory: Memory) -> None:
    found = door.json("memory", "stats")
    assert (found["nodes"], found["Fact"], found["edges"], found["archived"]) == (4, 3, 1, 0)
    assert found["index"]["parameters"] == found["index"]["wanted"] == "m=16, ef_construction=100"
    assert (found["replica"], found["waiting"], found["runs"]) == (
        None,
        {"outbox": 0, "outbox_failed": 0, "burst": 0},
        [],
    )
    shown = door("memory", "stats")
    assert "nodes_embedding" in shown
    assert "replica: none is saved" in shown


def test_stats_name_a_saved_replica(door: Door, memory: Memory, tmp_path: Path) -> None:
    replica = pytest.importorskip("ruvllm.memory.replica")
    opened = replica.Replica.open(memory.database, load_settings({}, state_dir=tmp_path / "state").replica_dir)
    opened.close()
    assert door.json("memory", "stats")["replica"]["nodes"] == 4


def test_search_by_meaning_words_both_and_exactly(door: Door, memory: Memory) -> None:
    for how in ([], ["--words"], ["--hybrid"], ["--exact"]):
        found = door.json("memory", "search", "highest mountain", "-k", "1", *how)
        assert [each["text"] for each in found] == ["Mount Everest is the highest mountain"], how
        assert "Everest" in door("memory", "search", "highest mountain", *how)


FILTERS: list[tuple[list[str], int]] = [
    (["--kind", "Document"], 1),
    (["--kind", "Fact", "--kind", "Document"], 3),
    (["--domain", "geography"], 1),
    (["--tag", "africa"], 1),
    (["--min-confidence", "0.9"], 2),
    (["--since", "2000-01-01"], 3),
    (["--until", "2000-01-01T00:00+02:00"], 0),
    (["--reader", "mallory", "--trust", "untrusted"], 1),
]


def test_search_filters(door: Door, memory: Memory) -> None:
    for options, count in FILTERS:
        assert len(door.json("memory", "search", "the capital", "-k", "10", *options)) == count, options


def test_neighbours(door: Door, memory: Memory) -> None:
    node = uuid_of(memory, "highest mountain")
    found = door.json("memory", "neighbours", node)
    assert [(each["hop"], each["text"][:5]) for each in found["nodes"]] == [(0, "Mount"), (1, "The c")]
    assert [(each["dst"], each["relation"]) for each in found["edges"]] == [(node, "Cites")]
    assert len(door.json("memory", "neighbours", node, "--relation", "Follows")["nodes"]) == 1


def test_embed_gives_what_sql_takes(door: Door, memory: Memory, database_url: str) -> None:
    literal = door("memory", "embed", "highest mountain").strip()
    with psycopg.connect(database_url) as connection:
        [(text,)] = connection.execute(
            "SELECT t.text FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id"
            " ORDER BY n.embedding <#> %s::halfvec LIMIT 1", [literal],
        ).fetchall()  # fmt: skip
    assert text == "Mount Everest is the highest mountain"
    assert len(door.json("memory", "embed", "x")["vector"]) == 384


def test_duplicates_are_shown_first_merged_then_and_given_back(door: Door, memory: Memory) -> None:
    dry = door.json("memory", "dedup")
    assert (dry["dry_run"], dry["would_merge_exact"]) == (True, 1)
    assert "ruvllm memory dedup --apply" in door("memory", "dedup", "--dry-run", "--everything")
    run = door.json("memory", "dedup", "--apply", "--everything")
    assert door.json("memory", "stats")["archived"] == 1
    assert door.json("memory", "runs", "--limit", "1")[0]["id"] == run["run"]
    assert "dedup (dry)" in door("memory", "runs")
    assert door.json("memory", "undo", str(run["run"]))["run"] == run["run"]
    assert door.json("memory", "stats")["archived"] == 0
    assert "run 999" in door("memory", "undo", "999", code=1)


def test_the_other_runs_are_dry_at_first(door: Door, memory: Memory) -> None:
    for verb in ("compact", "archive", "decay"):
        assert door.json("memory", verb)["dry_run"], verb
        assert f"ruvllm memory {verb} --apply" in door("memory", verb, "--dry-run")


def test_audit_and_reindex(door: Door, memory: Memory) -> None:
    assert door.json("memory", "audit")["recall"] == 1.0
    assert door.json("memory", "reindex")["outcome"] == "done"
    assert "not due" in door("memory", "reindex", "--if-due")


def test_export_and_import(door: Door, memory: Memory, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    assert "4 nodes and 1 edges" in door("memory", "export", folder)
    report = door.json("memory", "import", folder)
    assert (report["nodes"], report["there"], report["bad"]) == (0, 4, [])
    assert "is there already" in door("memory", "export", folder, code=1)
    assert "want one of parquet, jsonl" in door("memory", "export", str(tmp_path / "x"), "--format", "csv", code=1)
    (tmp_path / "out" / "nodes.parquet").write_bytes(b"")
    assert "truncated or altered" in door("memory", "import", folder, code=1)
    assert "manifest.json" in door("memory", "import", str(tmp_path), code=1)


def test_forget_counts_first(door: Door, memory: Memory) -> None:
    node = uuid_of(memory, "highest mountain")
    assert door.json("memory", "forget", node)["counts"]["nodes"] == 1
    assert "nothing was: --yes does it" in door("memory", "forget", "--writer", "mallory")
    assert memory.counts()["nodes"] == 4
    assert "Deleted for good" in door("memory", "forget", "--writer", "mallory", "--yes")
    assert door.json("memory", "forget", node, "--yes")["missing"] == []
    assert f"not in memory: {node}" in door("memory", "forget", node)
    assert memory.counts()["nodes"] == 2


WRONG: list[tuple[list[str], str]] = [
    (["search", "x", "--kind", "Rumour"], "filter kinds: got 'Rumour'"),
    (["search", "x", "--since", "yesterday"], "time: got 'yesterday', want one like"),
    (["search", "x", "--words", "--exact"], "want at most one"),
    (["search", " "], "empty text"),
    (["neighbours", "7"], "node: got '7', want a uuid"),
    (["neighbours", "0189a3c0-0000-7000-8000-000000000000"], "memory holds no such node"),
    (["neighbours", "0189a3c0-0000-7000-8000-000000000000", "--relation", "Knows"], "relation: got 'Knows'"),
    (["forget"], "forget: want nodes' uuids, or --writer NAME"),
    (["forget", "7", "--writer", "x"], "and not both"),
    (["forget", "7"], "forget: got '7'"),
    (["shards", "status", "missing.toml"], "missing.toml"),
]


def test_what_is_wrong_is_one_line(door: Door) -> None:
    for arguments, message in WRONG:
        output = door("memory", *arguments, code=1)
        assert message in output
        assert output.count("\n") == 1, output


def test_analysts(door: Door, memory: Memory, tmp_path: Path) -> None:
    try:
        made = door.json("db", "analyst", "add", "ana_cli")
        assert (made["login"], made["tenant"], made["made"], "password" in made) == ("ana_cli", "default", True, False)
        secret = door.json("db", "analyst", "add", "ana_cli", "--show-password")["password"]
        shown = door("db", "analyst", "add", "ana_cli")
        assert secret not in shown
        assert "was there already" in shown
        with psycopg.connect(shown.strip().split("psql ")[1].strip('"')) as session:  # the line that it prints
            assert session.execute("SELECT count(*) FROM nodes").fetchone() == (4,)
        assert [each["login"] for each in door.json("db", "analyst", "list")] == ["ana_cli"]
    finally:
        assert door.json("db", "analyst", "remove", "ana_cli")["removed"]
    assert "is no analyst" in door("db", "analyst", "remove", "ana_cli", code=1)
    assert "want a name of a-z" in door("db", "analyst", "add", "Ana", code=1)


def test_tables_hold_what_others_wrote_as_text(door: Door, memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    memory.add([NewNode("[bold red]markup[/bold red] [link=x]y", "Fact", "[dim]")])
    assert "[bold red]markup" in door("memory", "search", "markup", "-k", "1")
