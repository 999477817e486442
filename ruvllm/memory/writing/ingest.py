"""A user's own files into memory: Markdown, text and JSONL. Knows nothing of the CLI that calls it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ruvllm.errors import InputError
from ruvllm.memory.edges import Edge
from ruvllm.memory.linker import link_nodes
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.progress import Progress, silent
from ruvllm.text import chunk_text, clean_text

CHUNK = 600  # characters, about 150 tokens: what the encoder and the small context bins take in one piece
MAX_FILE = 32 * 2**20  # bytes; a larger file is refused by name
_FLUSH = 256  # nodes gathered before memory writes them
_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t#]*$")
_FENCE = re.compile(r"[ \t]*(```|~~~)")
_BY = "link:order"  # what made the edges between pieces of a document; see ruvllm/memory/linking.py


@dataclass(frozen=True)
class IngestReport:
    """`files` were read whole; each of `bad` is (path, reason), and nothing of it was written.

    `links` counts new edges by what made them, as `ruvllm/memory/linking.py` lists it.
    """

    files: int
    nodes_written: int
    nodes_skipped: int
    bad: tuple[tuple[str, str], ...]
    links: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A piece of a document under one heading; `context` is "title > heading > heading"."""

    context: str
    text: str


@dataclass(frozen=True)
class _Found:
    """A file to read, and the name it is stored under: relative to what the user named, so no machine's path."""

    path: Path
    source: str


@dataclass
class _Tally:
    files: int = 0
    written: int = 0
    skipped: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    links: Counter[str] = field(default_factory=Counter)
    to_link: list[int] = field(default_factory=list)


def ingest_paths(memory: Memory, paths: Sequence[Path | str], progress: Progress = silent) -> IngestReport:
    """Read files, and folders through and through; what memory holds already is skipped, a bad file is named.

    What is new is linked at the end, with what is near it in memory; a run that adds nothing links nothing.

    Raises:
        DatabaseError: Postgres is out of reach. Files before that are in memory; running it again goes on, and
            `ruvllm memory link` links what a run that was cut short did not.
    """
    tally = _Tally()
    found = list(_found([Path(path) for path in paths], tally))
    waiting: list[list[NewNode]] = []
    for done, file in enumerate(found, start=1):
        try:
            waiting += _documents(file)
            tally.files += 1
        except (InputError, OSError) as error:
            tally.bad.append((str(file.path), _reason(error)))
        if sum(map(len, waiting)) >= _FLUSH:
            _flush(memory, waiting, tally)
            waiting = []
        progress(done, len(found), file.source)
    _flush(memory, waiting, tally)
    tally.links.update(link_nodes(memory, tally.to_link).made)
    return IngestReport(
        tally.files, tally.written, tally.skipped, tuple(tally.bad), dict(sorted((+tally.links).items()))
    )


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _flush(memory: Memory, documents: Sequence[Sequence[NewNode]], tally: _Tally) -> None:
    report = memory.add([node for document in documents for node in document])
    follows: list[Edge] = []
    start = 0
    for document in documents:
        ids = report.ids[start : start + len(document)]
        follows += [(b, a, "Follows", 1.0) for a, b in pairwise(ids) if a != b]
        start += len(document)
    tally.links[_BY] += memory.link_all(follows, _BY)
    tally.to_link += report.ids if report.written else ()
    tally.written += report.written
    tally.skipped += report.skipped


def _found(paths: Iterable[Path], tally: _Tally) -> Iterator[_Found]:
    for path in paths:
        if path.is_dir():
            inside = list(_walk(path, tally))
            if not inside:
                tally.bad.append((str(path), f"no file of a known kind in it; known are {_KINDS}"))
            yield from inside
        elif path.suffix.lower() in _READERS:
            yield _Found(path, path.name)
        else:
            reason = f"not a known kind; known are {_KINDS}" if path.exists() else "no such file"
            tally.bad.append((str(path), reason))


def _walk(folder: Path, tally: _Tally) -> Iterator[_Found]:
    def unreadable(error: OSError) -> None:
        tally.bad.append((str(error.filename), _reason(error)))

    for here, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(here) / name
            if path.suffix.lower() in _READERS and not name.startswith("."):
                yield _Found(path, (Path(folder.resolve().name) / path.relative_to(folder)).as_posix())


def _documents(file: _Found) -> list[list[NewNode]]:
    """The nodes of each document in a file, in order. All or nothing: a bad line refuses the file."""
    if file.path.stat().st_size > MAX_FILE:
        raise InputError(f"over {MAX_FILE // 2**20} MiB; split it")
    try:
        text = file.path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}") from error
    return _READERS[file.path.suffix.lower()](clean_text(text, "file", MAX_FILE), file)


def _markdown(text: str, file: _Found) -> list[list[NewNode]]:
    return [_nodes(sections(text, file.path.stem), file.source)]


def _plain(text: str, file: _Found) -> list[list[NewNode]]:
    return [_nodes([Section(file.path.stem, text)], file.source)]


def _jsonl(text: str, file: _Found) -> list[list[NewNode]]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [_record(number, line, file.source) for number, line in lines]


def _record(number: int, line: str, source: str) -> list[NewNode]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f'line {number}: got {type(record).__name__}, want an object with "text"')
    tags = record.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(f'line {number}: "tags" must be a list of strings')
    text = clean_text(_string(record, "text", number), f"line {number}: text", MAX_FILE)
    title, named = _string(record, "title", number, ""), _string(record, "source", number, source)
    return _nodes(
        [Section(_one_line(title, number), text)], _one_line(named, number), tuple(_tag(t, number) for t in tags)
    )


def _string(record: dict[str, object], key: str, number: int, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise InputError(f'line {number}: "{key}" must be a string, got {type(value).__name__}')
    return value


def _one_line(text: str, number: int) -> str:
    return " ".join(clean_text(text, f"line {number}", 200).split()) if text else ""


def _tag(text: str, number: int) -> str:
    return clean_text(text, f"line {number}: tag", 200)


_READERS = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".txt": _plain,
    ".text": _plain,
    ".jsonl": _jsonl,
}
_KINDS = " ".join(_READERS)


def sections(markdown: str, title: str) -> list[Section]:
    """A Markdown text by its headings; `title` stands where there is no first-level one. A # in a fence is text."""
    found: list[Section] = []
    path: list[tuple[int, str]] = []  # (level, heading) from the outermost
    body: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= _FENCE.match(line) is not None
        heading = None if fenced else _HEADING.match(line)
        if heading is None:
            body.append(line)
            continue
        found.append(Section(_context(path, title), "\n".join(body)))
        body = []
        level = len(heading[1])
        path = [*((depth, name) for depth, name in path if depth < level), (level, heading[2])]
    found.append(Section(_context(path, title), "\n".join(body)))
    return [section for section in found if section.text.strip()]


def _context(path: Sequence[tuple[int, str]], title: str) -> str:
    names = [name for _, name in path]
    return " > ".join(names if path and path[0][0] == 1 else [title, *names])


def _nodes(parts: Sequence[Section], source: str, tags: tuple[str, ...] = ()) -> list[NewNode]:
    """Each section in chunks, each chunk behind its context: alone it would not say what it is about."""
    return [
        NewNode(
            text=f"{part.context}\n\n{chunk}" if part.context else chunk,
            source=source,
            tags=tags,
            metadata={"context": part.context} if part.context else {},
        )
        for part in parts
        for chunk in chunk_text(part.text, CHUNK)
    ]
