"""What filters and walks ask of every node, as arrays in memory: about 40 bytes a node. Knows nothing of vectors.

Nodes go by name here: a small number that an id is given when it is first heard of and keeps as long as the base lives.
The rows of the graph are the first names. A name whose node is archived, deleted or not yet seen is not live.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.filters import Filter
from ruvllm.memory.records import KINDS, TRUSTS, NodeColumns
from ruvllm.memory.replica.source import NodeRow

Names = NDArray[np.int64]
Mask = NDArray[np.bool_]

_DTYPES: dict[str, type[np.generic]] = {
    "ids": np.int64,  # 0: a row of the graph that no node has any more
    "shown": np.uint8,  # 0: not live, 1: to everybody, 2: to its writer alone
    "kind": np.uint8,
    "trust": np.uint8,
    "domain": np.int32,
    "writer": np.int32,
    "confidence": np.float32,
    "created": np.int64,  # microseconds since 1970
    "tagged": np.bool_,  # whether it has tags: most nodes need not be looked for among them
}
_TAGS: dict[str, type[np.generic]] = {"owner": np.int32, "tag": np.int32}  # one row a node and tag; owner -1: no more
_WORDS = "words.json"
_KIND = {kind: code for code, kind in enumerate(KINDS)}
_TRUST = {trust: code for code, trust in enumerate(TRUSTS)}
_TO_ALL, _TO_WRITER = 1, 2
_UNTRUSTED = _TRUST["untrusted"]
_CLOSE = 4  # a table of int32 is then no larger than what sorted ids take
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Growing:
    """Arrays of one length that rows are appended to. What a reader holds of them stays as it was where they move."""

    def __init__(self, dtypes: dict[str, type[np.generic]], arrays: dict[str, NDArray[Any]] | None = None) -> None:
        self._dtypes = dtypes
        self._arrays = arrays or {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}
        self.count = len(next(iter(self._arrays.values())))

    @classmethod
    def mapped(cls, folder: Path, dtypes: dict[str, type[np.generic]]) -> Growing:
        """Saved arrays, copied page by page where they are written to; the files stay as they are."""
        # as plain arrays: indexing numpy's own class for mapped ones costs three times as much
        load = partial(np.load, mmap_mode="c", allow_pickle=False)
        return cls(dtypes, {name: np.asarray(load(folder / f"{name}.npy")) for name in dtypes})

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: self.count]

    def extend(self, rows: int) -> slice:
        """Room for `rows` more, zeros; returns where they are."""
        wanted = self.count + rows
        if wanted > len(self._arrays["ids" if "ids" in self._dtypes else next(iter(self._dtypes))]):
            room = max(wanted, self.count + self.count // 4, 64)
            for name, dtype in self._dtypes.items():
                grown = np.zeros(room, dtype)
                grown[: self.count] = self._arrays[name][: self.count]
                self._arrays[name] = grown
        self.count = wanted
        return slice(wanted - rows, wanted)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())


class Vocabulary:
    """Strings as numbers."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words = list(words)
        self._codes = {word: code for code, word in enumerate(self.words)}
        self._frozen: tuple[str, ...] = ()

    def code(self, word: str) -> int:
        """Its number; a new word gets the next."""
        code = self._codes.setdefault(word, len(self.words))
        if code == len(self.words):
            self.words.append(word)
        return code

    def frozen(self) -> tuple[str, ...]:
        """The words by their numbers, as they are now."""
        if len(self._frozen) != len(self.words):
            self._frozen = tuple(self.words)
        return self._frozen

    def find(self, words: Iterable[str]) -> list[int]:
        """Numbers of those that are known; an unknown one is on no node."""
        return [code for word in words if (code := self._codes.get(word)) is not None]


class Places:
    """Where each of many ids stands: through a table where the ids lie close together, else by halving."""

    def __init__(self, ids: Names) -> None:
        """`ids` (n,), each once; those of 0 are nowhere."""
        here = np.flatnonzero(ids > 0)
        self._least = int(ids[here].min()) if len(here) else 0
        span = int(ids[here].max()) - self._least + 1 if len(here) else 0
        close = span <= _CLOSE * len(here)
        self._table = np.full(span if close else 0, -1, dtype=np.int32)
        if close:
            self._table[ids[here] - self._least] = here
        self._order = here[:0] if close else here[np.argsort(ids[here])]
        self._sorted = ids[self._order]

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._order.nbytes + self._sorted.nbytes

    def find(self, wanted: Names) -> Names:
        """(m,) the place of each of `wanted` (m,); -1 for one that is nowhere."""
        if len(self._table):
            at = wanted - self._least
            known = (at >= 0) & (at < len(self._table))
            if known.all():
                return self._table[at].astype(np.int64)
            return np.where(known, self._table[np.where(known, at, 0)], -1).astype(np.int64)
        if not len(self._sorted):
            return np.full(wanted.shape, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1).astype(np.int64)


class Columns:
    """By name. One writer at a time; readers and the writer are kept apart by their caller."""

    def __init__(
        self, rows: Growing | None = None, tags: Growing | None = None, words: dict[str, list[str]] | None = None
    ) -> None:
        self.rows, self._tags = rows or Growing(_DTYPES), tags or Growing(_TAGS)
        words = words or {}
        self._domains, self._writers = Vocabulary(words.get("domains", ())), Vocabulary(words.get("writers", ()))
        self._tag_words = Vocabulary(words.get("tags", ()))
        self.settle()

    @classmethod
    def open(cls, folder: Path) -> Columns:
        """Map what `save` wrote; hashes were verified before."""
        words = json.loads((folder / _WORDS).read_bytes())
        return cls(Growing.mapped(folder, _DTYPES), Growing.mapped(folder, _TAGS), words)

    def save(self, folder: Path) -> None:
        folder.mkdir()
        for dtypes, growing in ((_DTYPES, self.rows), (_TAGS, self._tags)):
            for name in dtypes:
                np.save(folder / f"{name}.npy", growing[name], allow_pickle=False)
        words = {"domains": self._domains.words, "writers": self._writers.words, "tags": self._tag_words.words}
        (folder / _WORDS).write_text(json.dumps(words))

    @property
    def count(self) -> int:
        return self.rows.count

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self._tags.nbytes + self._places.nbytes + 100 * len(self._later)

    def names(self, ids: Sequence[int] | Names) -> Names:
        """(n,) the name of each id; -1 for one that was never heard of."""
        wanted = np.asarray(ids, dtype=np.int64)
        found = self._places.find(wanted)
        if self._later:
            for place in np.flatnonzero(found < 0):
                found[place] = self._later.get(int(wanted[place]), -1)
        return found

    def named(self, ids: Sequence[int] | Names) -> Names:
        """As `names`; an id that is new gets a name, not live."""
        wanted = np.asarray(ids, dtype=np.int64)
        names = self.names(wanted)
        new = np.unique(wanted[names < 0])
        if len(new):
            place = self.rows.extend(len(new))
            self.rows["ids"][place] = new
            self._later.update(zip(new.tolist(), range(place.start, place.stop), strict=True))
            names = self.names(wanted)
        return names

    def place(self, names: Names, ids: Sequence[int]) -> None:
        """Give ids names of the caller's choice; names between that nobody gets stay without a node."""
        self.rows.extend(max(0, int(names.max(initial=-1)) + 1 - self.count))
        self.rows["ids"][names] = ids
        self._later.update(zip(ids, names.tolist(), strict=True))

    def settle(self) -> None:
        """Order what was named so far, so that many ids are looked up at once."""
        self._places = Places(self.rows["ids"])
        self._later: dict[int, int] = {}  # names since

    def fill(self, names: Names, nodes: Sequence[NodeRow]) -> None:
        """Write the nodes (n) to their names (n,): they are live from here on."""
        if not nodes:
            return
        records = [node.record for node in nodes]
        rows = self.rows
        rows["kind"][names] = [_KIND[record[2]] for record in records]
        rows["domain"][names] = [self._domains.code(record[3]) for record in records]
        rows["trust"][names] = [_TRUST[record[4]] for record in records]
        rows["writer"][names] = [self._writers.code(record[7]) for record in records]
        rows["confidence"][names] = [record[10] for record in records]
        rows["created"][names] = [node.created for node in nodes]
        self._drop_tags(names)
        self._add_tags([(n, tag) for n, r in zip(names.tolist(), records, strict=True) for tag in set(r[8])])
        rows["shown"][names] = np.where(rows["trust"][names] == _UNTRUSTED, _TO_WRITER, _TO_ALL)

    def bury(self, names: Names) -> None:
        """No search and no walk finds them from here on."""
        self.rows["shown"][names] = 0

    def live(self, names: Names | slice = slice(None)) -> Mask:
        """Whether each of `names`, or every name, is a live node's."""
        live: Mask = self.rows["shown"][names] > 0
        return live

    def of(self, names: Names) -> NodeColumns:
        """(n,) of each column."""
        rows = self.rows
        return NodeColumns(
            ids=rows["ids"][names],
            kind=rows["kind"][names],
            trust=rows["trust"][names],
            domain=rows["domain"][names],
            confidence=rows["confidence"][names],
            created=rows["created"][names],
            domains=self._domains.frozen(),
        )

    def seen_by(self, reader: str, names: Names) -> Mask:
        """(n,) whether each of `names` is live and may be seen by `reader`."""
        shown = self.rows["shown"][names]
        seen: Mask = shown == _TO_ALL
        hidden = np.flatnonzero(shown == _TO_WRITER)
        if len(hidden):
            seen[hidden] = self.rows["writer"][names[hidden]] == self._writer(reader)
        return seen

    def mask(self, wanted: Filter) -> Mask:
        """(count,) whether each name's node passes."""
        rows = self.rows
        mask: Mask = rows["shown"] == _TO_ALL
        writer = self._writer(wanted.reader)
        if writer >= 0:
            mask |= (rows["shown"] == _TO_WRITER) & (rows["writer"] == writer)
        if wanted.plain:
            return mask
        for column, codes, keep in (
            ("kind", [_KIND[kind] for kind in wanted.kinds] if wanted.kinds else None, True),
            ("kind", [_KIND[kind] for kind in wanted.exclude_kinds], False),
            ("trust", [_TRUST[trust] for trust in wanted.trusts] if wanted.trusts else None, True),
            ("domain", self._domains.find(wanted.domains) if wanted.domains else None, True),
        ):
            if codes is not None and (codes or keep):
                mask &= _among(rows[column], codes, keep)
        for tag in wanted.tags:
            mask &= self._tagged(tag)
        if wanted.since is not None:
            mask &= rows["created"] >= microseconds(wanted.since)
        if wanted.until is not None:
            mask &= rows["created"] < microseconds(wanted.until)
        if wanted.min_confidence > 0:
            mask &= rows["confidence"] >= np.float32(wanted.min_confidence)
        return mask

    def _writer(self, reader: str) -> int:
        return next(iter(self._writers.find([reader])), -1)

    def _tagged(self, tag: str) -> Mask:
        mask = np.zeros(self.count, dtype=bool)
        for code in self._tag_words.find([tag]):
            owners = self._tags["owner"][self._tags["tag"] == code]
            mask[owners[owners >= 0]] = True
        return mask

    def _drop_tags(self, names: Names) -> None:
        tagged = names[self.rows["tagged"][names]]
        if len(tagged):
            owners = self._tags["owner"]
            owners[np.isin(owners, tagged)] = -1
            self.rows["tagged"][tagged] = False

    def _add_tags(self, pairs: Sequence[tuple[int, str]]) -> None:
        if not pairs:
            return
        place = self._tags.extend(len(pairs))
        self._tags["owner"][place] = [name for name, _ in pairs]
        self._tags["tag"][place] = [self._tag_words.code(tag) for _, tag in pairs]
        self.rows["tagged"][[name for name, _ in pairs]] = True


def _among(column: NDArray[Any], codes: Sequence[int], keep: bool) -> Mask:
    """(n,) whether each code is one of `codes`, or with `keep` False none; by a table, for codes are small."""
    table = np.full(int(column.max(initial=0)) + 1, not keep)
    table[[code for code in codes if code < len(table)]] = keep
    mask: Mask = table[column]
    return mask


def microseconds(when: datetime) -> int:
    """Since 1970, exactly."""
    return (when - _EPOCH) // _MICROSECOND
