"""Edges where there are none: from what texts name, share, link to and lie near. Knows nothing of the database.

Every edge says what made it (`Link.by`, which becomes memory.edges.created_by):

    link:order    Follows    a piece of a document follows the one before it (weight 1)
    link:target   Cites      a Markdown or wiki link to another document (weight 1)
    link:title    Cites      the text names another one's title; weight 1 / (1 + ln(how many texts name it))
    link:shared   SameTopic  names and rare words in common; weight s / (s + SHARED), s the sum of their rarity
    link:near     SameTopic  vectors at or over the topic threshold; weight the cosine
    link:co-use   Derived    used together in a good answer; weight by how often

No language model reads the texts. Of two reasons for one edge the heavier stays. A hub is cut: a name in more than
`common` texts connects nothing, and of each node only the `fan` heaviest edges of a kind are kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.memory import naming
from ruvllm.memory.records import Edge, Vector

SHARED = 8.0  # sum of rarities (nats) at which a shared edge weighs one half
_BLOCK = 1024  # rows of similarities computed at once


@dataclass(frozen=True)
class Linkable:
    """A text to link. `place` orders the texts of one document, which is what has one source and one `document`;
    `title` as `naming.title_of` has it.
    """

    id: int
    text: str
    title: str = ""
    source: str = ""
    place: int = 0
    document: str = ""


@dataclass(frozen=True)
class Linking:
    """What is linked, and how far. A zero switches a kind off."""

    common: int = 24  # texts that may share a name before it is too common
    fan: int = 12  # edges of one kind that a node keeps of its own
    near: float = 0.80  # cosine from which on vectors are near; over 1: none is
    nearest: int = 8  # such edges of a node
    named_at_most: int = 200  # texts that may name one title: a longer list is a hub, its title a common word

    def __post_init__(self) -> None:
        if self.common < 0 or self.fan < 1 or self.nearest < 0 or not 0.0 < self.near <= 2.0:
            raise InputError(f"linking: got {self}, want counts from 0 on (fan from 1) and a cosine over 0")


@dataclass(frozen=True)
class Link:
    """One edge and what made it."""

    src: int
    dst: int
    rel: str
    weight: float
    by: str

    @property
    def edge(self) -> Edge:
        return self.src, self.dst, self.rel, self.weight


@dataclass(frozen=True)
class Linked:
    """Edges, each (src, dst, rel) once, and how many of each kind by what made them."""

    links: tuple[Link, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(link.by for link in self.links).items()))

    def by_provenance(self) -> Iterator[tuple[str, list[Edge]]]:
        """For `Memory.link_all(edges, created_by)`, one call for each provenance."""
        groups: dict[str, list[Edge]] = defaultdict(list)
        for link in self.links:
            groups[link.by].append(link.edge)
        yield from sorted(groups.items())


def linked(texts: Sequence[Linkable], vectors: Vector | None = None, how: Linking | None = None) -> Linked:
    """All edges among `texts`; `vectors` (n, d) of unit length in their order, or None: then nothing is near.

    Raises:
        InputError: as many vectors as texts are wanted, and an id at most once.
    """
    how = how or Linking()
    _check(texts, vectors)
    found = [*_order(texts), *_targets(texts), *_titles(texts, how), *_shared(texts, how)]
    if vectors is not None and len(texts) > 1:
        found += _near([each.id for each in texts], vectors, how)
    return Linked(_heaviest(found))


def touching(whole: Linked, ids: Iterable[int]) -> Linked:
    """The links with an end among `ids`: what an ingest of these nodes adds to a memory that was linked before."""
    wanted = set(ids)
    return Linked(tuple(link for link in whole.links if link.src in wanted or link.dst in wanted))


def used_together(answers: Iterable[Sequence[int]], least: int = 1) -> Linked:
    """Edges among nodes that good answers were made from together; one answer more halves what is missing to 1."""
    times = Counter(pair for used in answers for pair in combinations(sorted(set(used)), 2))
    return Linked(
        tuple(
            Link(a, b, "Derived", 1.0 - 0.5**count, "link:co-use")
            for (a, b), count in sorted(times.items())
            if count >= least
        )
    )


def _check(texts: Sequence[Linkable], vectors: Vector | None) -> None:
    if len({each.id for each in texts}) != len(texts):
        raise InputError("linking: an id stands there twice, want each text once")
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(texts)):
        raise InputError(f"linking: got vectors of shape {vectors.shape}, want ({len(texts)}, d)")


def _heaviest(found: Iterable[Link]) -> tuple[Link, ...]:
    best: dict[tuple[int, int, str], Link] = {}
    for link in found:
        key = link.src, link.dst, link.rel
        if link.src != link.dst and (key not in best or link.weight > best[key].weight):
            best[key] = link
    return tuple(best[key] for key in sorted(best))


def _order(texts: Sequence[Linkable]) -> Iterator[Link]:
    documents: dict[tuple[str, str], list[Linkable]] = defaultdict(list)
    for each in texts:
        if each.source:
            documents[each.source, each.document].append(each)
    for parts in documents.values():
        for a, b in pairwise(sorted(parts, key=lambda each: each.place)):
            if b.place == a.place + 1:
                yield Link(b.id, a.id, "Follows", 1.0, "link:order")


def _targets(texts: Sequence[Linkable]) -> Iterator[Link]:
    """To the first piece of the document that is linked to."""
    first: dict[str, Linkable] = {}
    for each in sorted(texts, key=lambda each: -each.place):
        for name in (naming.stem_of(each.source), naming.normal(each.title)):
            if name:
                first[name] = each
    for each in texts:
        for target in naming.targets(each.text):
            if target in first:
                yield Link(each.id, first[target].id, "Cites", 1.0, "link:target")


def _titles(texts: Sequence[Linkable], how: Linking) -> Iterator[Link]:
    titles = _titled(texts)
    naming_them: dict[str, list[int]] = defaultdict(list)
    own = {each.id: naming.normal(each.title) for each in texts}
    for each in texts:
        for title in dict.fromkeys(naming.mentions(each.text, titles)):
            if title != own[each.id]:
                naming_them[title].append(each.id)
    found = (
        Link(src, dst, "Cites", 1.0 / (1.0 + math.log(len(sources))), "link:title")
        for title, sources in naming_them.items()
        if len(sources) <= how.named_at_most
        for src in sources
        for dst in titles[title][: how.fan]
    )
    yield from _fan(found, how.fan)


def _titled(texts: Sequence[Linkable]) -> dict[str, Sequence[int]]:
    titles: dict[str, list[int]] = defaultdict(list)
    for each in texts:
        title = naming.normal(each.title)
        if title and len(title) > 2 and len(title.split()) <= naming.MOST_WORDS:
            titles[title].append(each.id)
    return dict(titles)


def _fan(links: Iterable[Link], fan: int) -> Iterator[Link]:
    """Of each source the `fan` heaviest, of equals the lower destination."""
    of: dict[int, list[Link]] = defaultdict(list)
    for link in links:
        of[link.src].append(link)
    for each in of.values():
        yield from sorted(each, key=lambda link: (-link.weight, link.dst))[:fan]


def _shared(texts: Sequence[Linkable], how: Linking) -> Iterator[Link]:
    """By one product of sparse matrices: rarity of what two texts have in common, summed."""
    rarities = rarity([naming.keys(each.text) for each in texts], how.common)
    if not rarities.columns or how.common < 2:
        return
    product = rarities.matrix @ rarities.matrix.T  # (n, n) sparse
    ids = np.array([each.id for each in texts], dtype=np.int64)
    for row in range(len(texts)):
        part = slice(product.indptr[row], product.indptr[row + 1])
        yield from _best_shared(row, product.indices[part], product.data[part], ids, how.fan)


def _best_shared(
    row: int, columns: NDArray[np.int32], sums: NDArray[np.float64], ids: NDArray[np.int64], fan: int
) -> Iterator[Link]:
    others = columns != row
    columns, sums = columns[others], sums[others]
    for at in np.lexsort((ids[columns], -sums))[:fan]:
        a, b = sorted((int(ids[row]), int(ids[columns[at]])))
        yield Link(a, b, "SameTopic", float(sums[at] / (sums[at] + SHARED)), "link:shared")


@dataclass(frozen=True)
class Rarities:
    """(n, c) sparse: root of the rarity of each key that 2 to `common` texts share, so that a product sums rarities."""

    matrix: Any  # scipy has no types
    columns: Mapping[str, int]


def rarity(keys: Sequence[set[str]], common: int) -> Rarities:
    """Rarity of a key is ln(n / texts that have it)."""
    from scipy.sparse import csr_array  # type: ignore[import-untyped]  # 0.2 s: only where something is linked

    holding = Counter(key for each in keys for key in each)
    columns = {key: i for i, key in enumerate(sorted(key for key, n in holding.items() if 2 <= n <= common))}
    pairs = [(row, columns[key]) for row, each in enumerate(keys) for key in sorted(each) if key in columns]
    rows = np.array([row for row, _ in pairs], dtype=np.int32)
    places = np.array([place for _, place in pairs], dtype=np.int32)
    inverse = {place: math.sqrt(math.log(len(keys) / holding[key]) or 0.0) for key, place in columns.items()}
    data = np.array([inverse[place] for place in places.tolist()], dtype=np.float64)
    return Rarities(csr_array((data, (rows, places)), shape=(len(keys), len(columns))), columns)


def _near(ids: Sequence[int], vectors: Vector, how: Linking) -> Iterator[Link]:
    if how.near > 1.0 or not how.nearest:
        return
    k = min(how.nearest + 1, len(ids))
    for start in range(0, len(ids), _BLOCK):
        similarities = vectors[start : start + _BLOCK] @ vectors.T  # (block, n)
        best = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
        for row, columns in enumerate(best, start=start):
            for column in columns.tolist():
                cosine = float(similarities[row - start, column])
                if column != row and cosine >= how.near:  # NaN is not
                    a, b = sorted((ids[row], ids[column]))
                    yield Link(a, b, "SameTopic", min(1.0, cosine), "link:near")
