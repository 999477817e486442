"""A user's own files: read, chunked, once; a bad one is named and nothing of it is written."""

import os
from pathlib import Path

import pytest

from ruvllm.memory.store import Memory
from ruvllm.memory.writing.ingest import Section, ingest_paths, sections

GUIDE = """# Harbours

Intro to harbours.

## Tema

Tema is near Accra.

```python
# not a heading
```

### Depth ##

Twelve metres.

## Takoradi

Takoradi is in the west.
"""


def test_sections_carry_their_headings() -> None:
    assert [(s.context, s.text.strip()) for s in sections(GUIDE, "file")] == [
        ("Harbours", "Intro to harbours."),
        ("Harbours > Tema", "Tema is near Accra.\n\n```python\n# not a heading\n```"),
        ("Harbours > Tema > Depth", "Twelve metres."),
        ("Harbours > Takoradi", "Takoradi is in the west."),
    ]
    assert sections("No heading.\n\n## Later\nx", "file") == [
        Section("file", "No heading.\n"),
        Section("file > Later", "x"),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "hidden.md").write_text("# hidden\nnot read")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "guide.md").write_text(GUIDE)
    (folder / "deep" / "er" / "notes.txt").write_bytes("\ufeffFirst line.\r\nSecond line, é.\r\n".encode())
    (folder / "facts.jsonl").write_text(
        '{"text": "Gold is mined at Obuasi.", "title": "Gold", "source": "survey", "tags": ["mine", "gold"]}\n\n'
        '{"text": "Cocoa grows in Ashanti."}\n'
    )
    return folder


def test_a_folder_is_read_through_and_a_second_run_adds_nothing(memory: Memory, folder: Path) -> None:
    report = ingest_paths(memory, [folder])
    assert (report.files, report.nodes_written, report.nodes_skipped, report.bad) == (3, 7, 0, ())
    counts = memory.counts()
    assert (counts["Document"], counts["edges"]) == (7, sum(report.links.values()))
    assert report.links["link:order"] == 3
    again = ingest_paths(memory, [str(folder), folder / "guide.md"])
    assert (again.files, again.nodes_written, again.nodes_skipped, again.bad) == (4, 0, 11, ())
    assert memory.counts() == counts
    assert again.links == {}


def test_what_is_new_is_linked_with_what_was_there_and_the_report_says_by_what(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "velm.md").write_text("# Velm\n\nVelm is a harbour town.\n")
    assert ingest_paths(memory, [tmp_path / "velm.md"]).links == {}
    (tmp_path / "ida.md").write_text(
        "# Ida Torsen\n\nIda Torsen built Velm, see [there](velm.md).\n\n## Later\n\nShe left.\n"
    )
    report = ingest_paths(memory, [tmp_path])
    assert {name: report.links[name] for name in ("link:order", "link:target")} == {"link:order": 1, "link:target": 1}
    with memory.database.transaction() as connection:
        rows = connection.execute("SELECT created_by, count(*) FROM memory.edges GROUP BY 1 ORDER BY 1").fetchall()
    assert dict(rows) == report.links


def test_records_of_one_source_do_not_follow_one_another(memory: Memory, tmp_path: Path) -> None:
    """Two notes of one survey that lie near each other are no pieces of one text."""
    lines = [f'{{"text": "Note {word} of the survey.", "source": "survey"}}' for word in ("amber", "beryl", "coral")]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    assert "link:order" not in ingest_paths(memory, [tmp_path]).links


def test_nodes_say_where_they_come_from(memory: Memory, folder: Path) -> None:
    ingest_paths(memory, [folder])
    depth = memory.search_text("Depth twelve metres", 1)[0].node
    assert depth.text == "Harbours > Tema > Depth\n\nTwelve metres."
    assert (depth.source, depth.trust, dict(depth.metadata)) == (
        "docs/guide.md", "system", {"context": "Harbours > Tema > Depth"},
    )  # fmt: skip
    gold = memory.search_text("gold mined at obuasi", 1)[0].node
    assert (gold.text, gold.source, gold.tags) == ("Gold\n\nGold is mined at Obuasi.", "survey", ("mine", "gold"))
    assert memory.search_text("second line é", 1)[0].node.source == "docs/deep/er/notes.txt"
    cocoa = memory.search_text("cocoa ashanti", 1)[0].node
    assert cocoa.text == "Cocoa grows in Ashanti."
    near = memory.neighbours([depth.id], hops=1)
    assert [rel for *_, rel, _ in near].count("Follows") == 2


def test_long_text_is_chunked_each_behind_its_heading(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "long.md").write_text("# Long\n\n" + " ".join(f"Sentence number {i} of many." for i in range(200)))
    report = ingest_paths(memory, [tmp_path / "long.md"])
    nodes = [hit.node for hit in memory.search_text("sentence", 100)]
    assert report.nodes_written == len(nodes) == report.links["link:order"] + 1 > 7
    assert all(node.text.startswith("Long\n\n") and len(node.text) <= 606 for node in nodes)


BAD = {
    "latin.txt": (b"caf\xe9", "not UTF-8 at byte 3"),
    "nul.md": (b"a\x00b", "NUL at character 1"),
    "empty.txt": (b"", "empty"),
    "blank.md": (b" \n\n ", "empty"),
    "broken.jsonl": (b'{"text": "good"}\n{"text": \n', "line 2: not JSON"),
    "list.jsonl": (b'["text"]', 'line 1: got list, want an object with "text"'),
    "notext.jsonl": (b'{"title": "x"}', 'line 1: "text" must be a string'),
    "surrogate.jsonl": (b'{"text": "a\\ud800"}', "line 1: text: got a lone surrogate"),
    "blank.jsonl": (b'{"text": " "}', "line 1: text: got an empty text"),
    "tags.jsonl": (b'{"text": "x", "tags": "mine"}', '"tags" must be a list of strings'),
    "tag.jsonl": (b'{"text": "x", "tags": ["a\\u0000"]}', "line 1: tag: got a NUL"),
    "deep.jsonl": (b"[" * 100_000, "line 1: not JSON"),
    "kind.pdf": (b"%PDF", "not a known kind"),
}


def test_a_bad_file_is_named_and_the_others_are_read(memory: Memory, tmp_path: Path, folder: Path) -> None:
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.md").mkdir()
    paths = [*(tmp_path / name for name in BAD), tmp_path / "missing.md", tmp_path / "gone.md", tmp_path / "folder.md"]
    report = ingest_paths(memory, [*paths, folder])
    reasons = {Path(path).name: reason for path, reason in report.bad}
    for name, (_, said) in BAD.items():
        assert said in reasons[name], name
    assert reasons["missing.md"] == reasons["gone.md"] == "No such file or directory"
    assert "no file of a known kind in it" in reasons["folder.md"]
    assert len(report.bad) == len(paths)
    assert (report.files, report.nodes_written, memory.counts()["nodes"]) == (3, 7, 7)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(memory: Memory, folder: Path) -> None:
    (folder / "guide.md").chmod(0)
    report = ingest_paths(memory, [folder])
    assert report.bad == ((str(folder / "guide.md"), "Permission denied"),)
    assert report.files == 2
