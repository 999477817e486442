"""What a text names: proper names, rare words, titles, and what it links to. Knows nothing of nodes or of the database.

Names are found by capitals, without a model: a run of capitalised words of one sentence, joined over "of" and the like.
Scripts without capitals have no names here; their rare words still connect them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from ruvllm.memory.retrieval.words import STOP_WORDS, tokens

MOST_WORDS = 8  # of a name or a title
_TITLE = 120  # characters of a first line that still is a title
_TOKEN = re.compile(r"\w[\w'’&-]*|[^\w\s]|\n")
_WITHIN = frozenset("of the de la von van du der da di del al".split())  # noqa: SIM905
_MARKDOWN_LINK = re.compile(r"\[[^\]\n]{0,300}\]\(([^)\s]{1,500})[^)\n]{0,200}\)")
_WIKI_LINK = re.compile(r"\[\[([^\]|\n]{1,200})")
_IN_BRACKETS = re.compile(r"\s*\([^)]*\)\s*$")


def title_of(text: str, context: str = "") -> str:
    """The last heading of `context` ("title > heading"), else a short first line that more text follows, else ''."""
    if context:
        return context.rsplit(" > ", 1)[-1].strip()
    first, newline, rest = text.partition("\n")
    return first.strip() if newline and rest.strip() and len(first) <= _TITLE else ""


def normal(name: str) -> str:
    """A name as names are compared: case-folded words between single spaces, without what stands in brackets."""
    bare = _IN_BRACKETS.sub("", name) or name
    return " ".join(word.casefold() for word in _TOKEN.findall(bare) if word[0].isalnum())


def names(text: str) -> Iterator[str]:
    """Names in `text`, normalised, one for each time it stands there."""
    for run in _runs(text):
        while run and run[-1].casefold() in _WITHIN:
            run.pop()
        while run and run[0].casefold() in STOP_WORDS | _WITHIN:
            run.pop(0)
        if run and len(run) <= MOST_WORDS and (len(run) > 1 or len(run[0]) > 2):
            yield " ".join(word.casefold().removesuffix("'s").removesuffix("’s") for word in run)


def _runs(text: str) -> Iterator[list[str]]:
    """Neighbouring capitalised words, with the small words inside."""
    run: list[str] = []
    for token in _TOKEN.findall(text):
        inside = bool(run) and token in _WITHIN
        if inside or token[0].isupper():
            run.append(token)
            continue
        if run:
            yield run
        run = []
    if run:
        yield run


def keys(text: str) -> set[str]:
    """What a text can share with another one: its names and its words."""
    return set(names(text)) | set(tokens(text))


def mentions(text: str, titles: dict[str, Sequence[int]]) -> Iterator[str]:
    """Titles (normalised) that stand in `text` as a run of its words, beginning with a capital or a digit.

    The longest wins at each place: "New York City" does not mention "New York".
    """
    words = [token for token in _TOKEN.findall(text) if token[0].isalnum()]
    folded = [word.casefold() for word in words]
    place = 0
    while place < len(words):
        found = _longest(folded, place, titles) if _may_begin(words[place]) else 0
        if found:
            yield " ".join(folded[place : place + found])
        place += found or 1


def _may_begin(word: str) -> bool:
    return not word[0].islower()


def _longest(folded: Sequence[str], place: int, titles: dict[str, Sequence[int]]) -> int:
    for length in range(min(MOST_WORDS, len(folded) - place), 0, -1):
        if " ".join(folded[place : place + length]) in titles:
            return length
    return 0


def targets(text: str) -> Iterator[str]:
    """What the links in Markdown `text` point to, as file stems or titles, normalised; addresses of the web are not."""
    for found in _MARKDOWN_LINK.findall(text):
        path = found.split("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            yield normal(PurePosixPath(path).stem)
    for found in _WIKI_LINK.findall(text):
        yield normal(found.split("#")[0])


def stem_of(source: str) -> str:
    """The stem of a document's path, normalised as `targets` gives it; '' without a source."""
    return normal(PurePosixPath(source).stem) if source else ""
