"""Memory out into files and back: equal, whole or not at all, gone on with after a kill, and no bad row let in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ruvllm.database.dsn import with_database
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import ArtifactError, EncoderMismatchError, InputError, RuvllmError
from ruvllm.memory.exchange import dump, restore, transfer
from ruvllm.memory.exchange.rowcheck import NodeCheck
from ruvllm.memory.exchange.transfer import ImportOptions, export_memory, import_memory
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge
from ruvllm.settings import Settings

_numbers = itertools.count()
FORMATS = pytest.mark.parametrize("format", dump.FORMATS)

# Everything that an export carries, by uuid: ids differ.
NODES = """
    SELECT n.uuid::text, n.kind, n.domain, n.trust, n.content_hash, n.embedding::text, n.confidence, n.version,
           h.uuid::text, n.archived_at, n.created_at, n.updated_at, n.span_start, n.span_end, t.text, t.source,
           t.writer, t.tags, t.metadata::text, u.uses, u.last_used_at,
           (SELECT count(*) FROM memory.minhash_bands b WHERE b.node = n.id)
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id LEFT JOIN memory.node_usage u ON u.node = n.id
    LEFT JOIN memory.nodes h ON h.id = n.superseded_by ORDER BY n.uuid
"""
EDGES = """
    SELECT e.uuid::text, s.uuid::text, d.uuid::text, e.rel, e.weight, e.confidence, e.created_by, e.created_at,
           e.last_used_at, e.uses, e.decayed_at
    FROM memory.edges e JOIN memory.nodes s ON s.id = e.src JOIN memory.nodes d ON d.id = e.dst ORDER BY e.uuid
"""
PACKED = """
    SELECT n.uuid::text,
           (SELECT array_agg(m.uuid::text ORDER BY m.uuid) FROM memory.nodes m WHERE m.id = ANY(a.neighbours))
    FROM memory.adjacency a JOIN memory.nodes n ON n.id = a.node WHERE a.neighbours <> '{}' ORDER BY n.uuid
"""


def content(database: Database) -> list[list[tuple[object, ...]]]:
    with database.transaction() as connection:
        return [connection.execute(query).fetchall() for query in (NODES, EDGES, PACKED)]


@pytest.fixture
def filled(memory: Memory) -> Memory:
    """Live, archived, merged and used nodes of every trust, edges between them, one Concept with a span."""
    nasty = '\'"\\ \u2028 %s {"a"} \x07 é 中 🎈'
    ids = memory.add(
        [
            NewNode("Ghana's capital is Accra", "Fact", "atlas", "geography", tags=("a", "b, c"), confidence=0.25),
            NewNode("The capital of Ghana is Accra", "Fact", "atlas", writer="w", trust="untrusted"),
            NewNode(nasty, "Document", nasty, nasty, metadata={"deep": [1.5, None, {"é": True}], "": "x"}),
            *(NewNode(f"node number {i}", "Query", "numbers") for i in range(40)),
            NewNode("all of it", "Concept"),
        ]
    ).ids
    memory.link_all(
        [(ids[0], ids[2], "Cites", 0.3), (ids[1], ids[3], "Follows", 0.9), (ids[-1], ids[4], "Contains", 1.0)], "t"
    )
    memory.touch([ids[0], ids[5]])
    memory.touch([ids[0]])
    with memory.database.transaction() as connection:
        merge.absorb(connection, ids[0], ids[1])
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [ids[7]])
        connection.execute("DELETE FROM memory.minhash_bands WHERE node = %s", [ids[7]])
        connection.execute(
            "UPDATE memory.nodes SET span_start = '2025-01-01Z', span_end = '2025-02-01Z', version = 3 WHERE id = %s",
            [ids[-1]],
        )
    return memory


@pytest.fixture
def empty(template: str) -> Iterator[Callable[[], Database]]:
    """Makes empty, migrated databases on the same server."""
    made: list[Database] = []
    names = []

    def make() -> Database:
        names.append(f"transfer_{next(_numbers)}")
        with psycopg.connect(with_database(template, "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {names[-1]} TEMPLATE migrated")
        made.append(Database(with_database(template, names[-1])))
        return made[-1]

    yield make
    for database in made:
        database.close()
    with psycopg.connect(with_database(template, "postgres"), autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@FORMATS
def test_a_round_trip_gives_the_same_memory(
    filled: Memory, empty: Callable[[], Database], tmp_path: Path, format: str
) -> None:
    seen: list[tuple[int, int, str]] = []
    report = export_memory(filled.database, tmp_path / "out", format, lambda *step: seen.append(step))
    assert (report.nodes, report.edges) == (44, 3)
    assert seen[-1][:2] == (47, 47)
    target = empty()
    imported = import_memory(target, tmp_path / "out")
    assert (imported.nodes, imported.there, imported.edges, imported.bad) == (44, 0, 3, ())
    assert content(target) == content(filled.database)
    again = import_memory(target, tmp_path / "out")
    assert (again.nodes, again.there, again.same_text, again.edges, again.edges_there) == (0, 44, 0, 0, 3)
    assert content(target) == content(filled.database)


def test_what_was_imported_is_found(filled: Memory, empty: Callable[[], Database], tmp_path: Path) -> None:
    export_memory(filled.database, tmp_path / "out")
    target = empty()
    import_memory(target, tmp_path / "out")
    there = Memory(target, filled.embedder, filled.settings)
    ours, theirs = (m.search_text("node number 17", 5) for m in (filled, there))
    assert [hit.node.uuid for hit in ours] == [hit.node.uuid for hit in theirs]
    assert there.add([NewNode("node number 3", "Query")]).skipped == 1


def test_a_text_that_is_there_already_becomes_that_node(
    filled: Memory, empty: Callable[[], Database], tmp_path: Path
) -> None:
    export_memory(filled.database, tmp_path / "out")
    target = Memory(empty(), filled.embedder, filled.settings)
    [mine] = target.add([NewNode("Ghana's capital is Accra", "Fact")]).ids
    report = import_memory(target.database, tmp_path / "out")
    assert (report.nodes, report.there, report.same_text) == (43, 1, 1)
    with target.database.transaction() as connection:
        [(ends,)] = connection.execute("SELECT neighbours FROM memory.adjacency WHERE node = %s", [mine]).fetchall()
        [(heir,)] = connection.execute(
            "SELECT superseded_by FROM memory.nodes WHERE superseded_by IS NOT NULL"
        ).fetchall()
    assert len(ends) == 2  # its own edge and the one of the row that it took in
    assert heir == mine


def test_a_killed_import_goes_on(
    filled: Memory, empty: Callable[[], Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_memory(filled.database, tmp_path / "out")
    monkeypatch.setattr(dump, "SLAB", 8)
    target = empty()
    steps = itertools.count()

    def die(done: int, total: int, note: str = "") -> None:
        if note == "writing nodes" and next(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_memory(target, tmp_path / "out", progress=die)
    report = import_memory(target, tmp_path / "out")
    assert (report.nodes, report.there) == (20, 24)
    assert content(target) == content(filled.database)


def test_a_killed_export_leaves_no_folder_and_is_not_in_the_way(filled: Memory, tmp_path: Path) -> None:
    def die(done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_memory(filled.database, tmp_path / "out", progress=die)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out.partial").mkdir()  # of one killed harder
    (tmp_path / "out.partial" / "nodes.parquet").write_text("half")
    assert export_memory(filled.database, tmp_path / "out").nodes == 44
    with pytest.raises(InputError, match="is there already"):
        export_memory(filled.database, tmp_path / "out")
    with pytest.raises(InputError, match="want one of parquet, jsonl"):
        export_memory(filled.database, tmp_path / "other", "csv")


def test_into_another_tenant_of_the_same_database(filled: Memory, database_url: str, tmp_path: Path) -> None:
    """Uuids and edges' uuids are taken there, by rows that this tenant cannot see."""
    export_memory(filled.database, tmp_path / "out")
    other = Database(database_url, tenant="other")
    before = content(filled.database)
    for nodes in (44, 0):
        report = import_memory(other, tmp_path / "out")
        assert (report.nodes, report.nodes + report.there, report.same_text) == (nodes, 44, 0)
        assert report.edges + report.edges_there == 3
    assert content(filled.database) == before
    texts = [sorted((row[14], row[8] is None) for row in content(each)[0]) for each in (filled.database, other)]
    assert texts[0] == texts[1]
    other.close()


def test_vectors_of_another_encoder(
    filled: Memory, empty_database_url: str, settings: Settings, tmp_path: Path
) -> None:
    from ruvllm.database.migrate import upgrade

    export_memory(filled.database, tmp_path / "out")
    upgrade(empty_database_url, "small", 64)
    target, small = Database(empty_database_url), EmbeddingAdapter(HashingEncoder(64, "small"))
    with pytest.raises(
        EncoderMismatchError, match=r"test-encoder \(384 .* small \(64 dimensions\); import with --re-embed"
    ):
        import_memory(target, tmp_path / "out")
    report = import_memory(target, tmp_path / "out", lambda: small, ImportOptions(re_embed=True))
    assert (report.nodes, report.edges) == (44, 3)
    hits = Memory(target, small, settings).search_text("node number 17", 1)
    assert hits[0].node.text == "node number 17"
    target.close()


@FORMATS
def test_harmed_files_are_named(filled: Memory, tmp_path: Path, format: str) -> None:
    folder = tmp_path / "out"
    export_memory(filled.database, folder, format)
    for name, harm in itertools.product(("nodes", "edges", "manifest"), ("truncated", "altered", "emptied", "missing")):
        path = folder / ("manifest.json" if name == "manifest" else f"{name}.{format}")
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes({"truncated": whole[:-20], "altered": flipped, "emptied": b"", "missing": b""}[harm])
        if harm == "missing":
            path.unlink()
        with pytest.raises(ArtifactError, match=str(path.name)):
            import_memory(filled.database, folder)
        path.write_bytes(whole)
    assert import_memory(filled.database, folder).nodes == 0  # whole again


@FORMATS
def test_files_that_are_of_no_format_or_of_the_future(filled: Memory, tmp_path: Path, format: str) -> None:
    folder = tmp_path / "out"
    export_memory(filled.database, folder, format)
    (folder / f"nodes.{format}").write_bytes(b"neither\xff\x00 nor\n")
    with pytest.raises(
        (ArtifactError, InputError), match=r"nodes\.parquet: is no whole Parquet|nodes row 1: is no JSON"
    ):
        import_memory(filled.database, folder, options=ImportOptions(edited=True))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(ArtifactError, match=r"version 2.*upgrade it"):
        import_memory(filled.database, folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": "../../../etc/passwd"}))
    with pytest.raises(ArtifactError, match="format"):
        import_memory(filled.database, folder)


def edited(folder: Path, name: str, change: Callable[[list[dict[str, object]]], None]) -> None:
    path = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


BAD_NODES: list[tuple[dict[str, object], str]] = [
    ({"kind": "Rumour"}, "kind: got 'Rumour', want one of Query"),
    ({"trust": 7}, "trust: got int, want a text"),
    ({"uuid": "7"}, "uuid: got '7', want a UUID"),
    ({"text": "a\x00b"}, "got a NUL"),
    ({"text": "x" * 20_001}, "20001 characters, want at most 20000"),
    ({"text": " "}, "empty text"),
    ({"source": "\ud800"}, "source: got a NUL or a lone surrogate"),
    ({"tags": "a"}, "tags: got str, want a list"),
    ({"metadata": {"a": float("nan")}}, "metadata: holds NUL, NaN"),
    ({"metadata": []}, "metadata: got list, want an object"),
    ({"confidence": 1.5}, "confidence: got 1.5, want a number from 0 to 1"),
    ({"version": 0}, "version: got 0, want 1 or more"),
    ({"uses": -1}, "uses: got -1"),
    ({"created_at": "2026-01-01"}, "created_at: got 2026-01-01 00:00:00, want a time with its zone"),
    ({"created_at": "noon"}, "is no JSON of a row: Invalid isoformat"),
    ({"superseded_by": "0189a3c0-0000-7000-8000-000000000000"}, "superseded_by: is set, and archived_at is not"),
    ({"embedding": [1.0, 0.0]}, r"embedding: got shape \(2,\), want \(384,\)"),
    ({"embedding": [0.0] * 384}, "embedding: got length 0, want a unit vector"),
    ({"embedding": [float("nan")] * 384}, "embedding: got length nan"),
    ({"embedding": None}, "embedding: got shape None"),
]  # fmt: skip


def test_bad_nodes_are_named_and_nothing_is_written(
    filled: Memory, empty: Callable[[], Database], tmp_path: Path
) -> None:
    folder, target, options = tmp_path / "out", empty(), ImportOptions(edited=True)
    export_memory(filled.database, folder, "jsonl")
    original = (folder / "nodes.jsonl").read_text()
    for harm, message in BAD_NODES:
        (folder / "nodes.jsonl").write_text(original)
        edited(folder, "nodes", lambda rows, harm=harm: rows[4].update(harm))  # type: ignore[misc]
        with pytest.raises(InputError, match=f"bad rows, so nothing was written.*(?s:.*)nodes row 5: .*{message}"):
            import_memory(target, folder, options=options)
    assert content(target) == [[], [], []]
    report = import_memory(target, folder, options=replace(options, skip_bad=True))
    assert report.nodes == 43
    assert [(bad.file, bad.row) for bad in report.bad] == [("nodes", 5), ("edges", 2)]  # the edge that ends there, too


def test_bad_edges_and_rows_that_come_twice(filled: Memory, empty: Callable[[], Database], tmp_path: Path) -> None:
    folder, target = tmp_path / "out", empty()
    export_memory(filled.database, folder, "jsonl")
    edited(folder, "nodes", lambda rows: rows.append(rows[0]))
    edited(
        folder,
        "edges",
        lambda rows: rows.extend(
            [
                {**rows[0], "uuid": rows[0]["src"], "dst": rows[0]["src"]},
                {**rows[0], "rel": "Knows"},
                {**rows[0], "uuid": rows[0]["dst"], "dst": "0189a3c0-0000-7000-8000-000000000000"},
                {**rows[0], "weight": 2},
                rows[0],
                {},
            ]
        ),
    )
    report = import_memory(target, folder, options=ImportOptions(edited=True, skip_bad=True))
    assert [str(bad).split(": ", 1)[1].split(" ")[0] for bad in report.bad] == [
        "uuid", "src", "rel:", "dst:", "weight:", "uuid", "column",
    ]  # fmt: skip
    assert content(target) == content(filled.database)


def test_edits_are_refused_unless_they_were_meant(filled: Memory, tmp_path: Path) -> None:
    export_memory(filled.database, tmp_path / "out", "jsonl")
    edited(tmp_path / "out", "nodes", lambda rows: rows.pop())
    with pytest.raises(ArtifactError, match=r"nodes\.jsonl: sha256 is .* --edited"):
        import_memory(filled.database, tmp_path / "out")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(dump.NODE_COLUMNS)), value=json_values)
@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_what_the_check_lets_through_the_database_takes(database: Database, name: str, value: object) -> None:
    row = {
        "uuid": "0189a3c0-0000-7000-8000-000000000000", "kind": "Fact", "domain": "", "trust": "system", "text": "t",
        "source": "", "writer": "", "tags": [], "metadata": {}, "confidence": 1.0, "version": 1, "superseded_by": None,
        "archived_at": None, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "span_start": None, "span_end": None, "uses": 0, "last_used_at": None, "embedding": [1.0] + [0.0] * 383,
    }  # fmt: skip
    parsed = dump.parse_line(json.dumps({**row, name: value}).encode(), dump.NODE_COLUMNS)
    problem = NodeCheck(384, with_vectors=True).problem(parsed)
    if problem is None:
        with database.transaction() as connection:
            connection.execute(restore._INSERT, restore._values(parsed, parsed["embedding"]))
            raise psycopg.Rollback
    else:
        assert name in problem or "broken" in parsed or name == "text"


def test_nothing_of_the_database_is_needed_to_refuse_a_file(tmp_path: Path) -> None:
    with pytest.raises(RuvllmError, match="export"):
        dump.read_manifest(tmp_path)


def test_edges_to_nodes_that_came_during_the_export_are_left_out() -> None:
    ids = np.array([2, 5, 9], np.int64)
    pairs = np.array([[2, 9], [2, 3], [10, 5], [9, 5]], np.int64)
    assert transfer._among(pairs, ids) == [True, False, False, True]
    assert transfer._among(pairs, ids[:0]) == [False] * 4
