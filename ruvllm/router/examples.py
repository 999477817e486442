"""Labelled sentences for the classifiers of domain and query type: wordings and topics of data/phrases.toml, combined.

Knows nothing of vectors or of models. Every sentence says from which wording and which topics it was made, so that both
can be held out: a classifier that only knew the wordings by heart would be found out.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ruvllm.errors import ArtifactError
from ruvllm.router.layout import DOMAINS, QUERY_TYPES

PHRASES = Path(__file__).parent / "data" / "phrases.toml"
_EACH = 22  # sentences of each domain and query type from wordings that ask of anything
_FILLINGS = 3  # sentences of a domain's own wording that has a slot
_WITHOUT_MARK = 0.3  # share of the sentences that lose case and final mark, as people type
_SLOT = re.compile(r"\{(\w+)\}")

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """`wording` and `topics` are what the sentence was made from; topics are empty for a domain's own wording."""

    text: str
    domain: str
    query_type: str
    wording: str
    topics: Texts = ()


@dataclass(frozen=True)
class Phrases:
    """phrases.toml. Slot -> fillings, query type -> wordings, domain -> topics, both -> own wordings."""

    slots: dict[str, Texts]
    general: dict[str, Texts]
    topics: dict[str, Texts]
    own: dict[tuple[str, str], Texts]


def read_phrases(path: Path = PHRASES) -> Phrases:
    """The file's tables; every domain and query type of the layout has its part.

    Raises:
        ArtifactError: the file is missing or a part of it is; the part is named.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
        return _parsed(tables)
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ArtifactError(
            f"phrases {path.name}: missing or incomplete ({error}); install the package again"
        ) from error


def _parsed(tables: dict[str, Any]) -> Phrases:
    domains = tables["domains"]
    return Phrases(
        slots={name: _list(text, ";\n") for name, text in tables["slots"].items()},
        general={name: _list(tables["types"][name]) for name in QUERY_TYPES},
        topics={name: _list(domains[name]["topics"], ";\n") for name in DOMAINS},
        own={(d, kind): _list(domains[d][kind]) for d in DOMAINS for kind in QUERY_TYPES},
    )


def _list(text: str, separators: str = "\n") -> Texts:
    return tuple(part.strip() for part in re.split(f"[{separators}]", text) if part.strip())


def examples(seed: int = 0, phrases: Phrases | None = None) -> list[Example]:
    """About 3,500 different sentences, the same for the same seed."""
    rng = np.random.default_rng(seed)
    found: dict[str, Example] = {}
    for example in _all(phrases or read_phrases(), rng):
        found.setdefault(example.text, example)
    return list(found.values())


def _all(phrases: Phrases, rng: np.random.Generator) -> Iterator[Example]:
    for domain in DOMAINS:
        for kind in QUERY_TYPES:
            yield from _general(phrases, domain, kind, rng)
            yield from _own(phrases, domain, kind, rng)


def _general(phrases: Phrases, domain: str, kind: str, rng: np.random.Generator) -> Iterator[Example]:
    """Each wording once before any is used twice, topics at random."""
    wordings, topics = phrases.general[kind], phrases.topics[domain]
    for at in rng.permutation(max(_EACH, len(wordings)))[:_EACH]:
        wording = wordings[at % len(wordings)]
        t, u = (topics[place] for place in rng.choice(len(topics), 2, replace=False))
        used = (t, u) if "{u}" in wording else (t,)
        yield Example(_typed(_sentence(wording.format(t=t, u=u)), rng), domain, kind, wording, used)


def _own(phrases: Phrases, domain: str, kind: str, rng: np.random.Generator) -> Iterator[Example]:
    for wording in phrases.own[domain, kind]:
        for _ in range(_FILLINGS if _SLOT.search(wording) else 1):
            text = _SLOT.sub(lambda slot: _drawn(phrases.slots[slot[1]], rng), wording)
            yield Example(_typed(text, rng), domain, kind, wording)


def _drawn(fillings: Sequence[str], rng: np.random.Generator) -> str:
    return fillings[int(rng.integers(len(fillings)))]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _typed(text: str, rng: np.random.Generator) -> str:
    return text.rstrip("?.!").lower() if rng.random() < _WITHOUT_MARK else text


def fold_of(text: str, folds: int) -> int:
    """Fold of a wording or topic, by its text alone: it stays when others come or go."""
    return zlib.crc32(text.encode()) % folds
