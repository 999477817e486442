"""States of a model after prompts that come again: the longest that fits, within a budget of bytes.

Knows nothing of models: a state is bytes. A state is restored and appended to, never cut back (see engine.py).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_OVERHEAD = 800  # bytes of Python objects a snapshot: the record, its key, its places in two maps
_PER_TOKEN = 8 + 32  # a place in the tuple and an int; small ints are shared, so this is at most


@dataclass(frozen=True)
class Snapshot:
    """The model's state after `tokens`; `logits` are not part of it, so something must be appended before sampling."""

    tokens: tuple[int, ...]
    state: Any  # ctypes array of bytes

    @property
    def nbytes(self) -> int:
        return len(self.state) + _PER_TOKEN * len(self.tokens) + _OVERHEAD


class Identity(NamedTuple):
    """What a state depends on beside its tokens."""

    file: str = ""  # sha256 of the model
    context: str = ""  # how the context was opened (see Engine.context)
    template: str = ""  # the hash of the prompts' templates

    @property
    def digest(self) -> bytes:
        """Each part behind its length, so that no two identities run into one another."""
        parts = [part.encode() for part in self]
        return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()


@dataclass(frozen=True)
class Counts:
    """Of kept states, since the process started; `count` and `bytes` are as of now."""

    count: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    refused: int = 0  # larger than the budget
    reused_tokens: int = 0


class Snapshots:
    """Keeps the states used last, each under the hash of `identity` and its tokens.

    A budget of 0 keeps none. Not safe for threads, as the engine is not.
    """

    def __init__(self, budget_bytes: int, identity: Identity = Identity()) -> None:  # noqa: B008  # immutable
        self.budget_bytes = budget_bytes
        self.bytes = self.hits = self.misses = self.evictions = self.refused = self.reused_tokens = 0
        self._identity = identity.digest
        self._kept: OrderedDict[bytes, Snapshot] = OrderedDict()  # used last comes last
        self._lengths: dict[int, int] = {}  # how many kept states have that many tokens

    @property
    def count(self) -> int:
        return len(self._kept)

    @property
    def counts(self) -> Counts:
        return Counts(
            self.count, self.bytes, self.hits, self.misses, self.evictions, self.refused, self.reused_tokens
        )  # fmt: skip

    def fits(self, nbytes: int) -> bool:
        """Whether a state of so many bytes may be kept at all, others given up for it."""
        return nbytes + _OVERHEAD <= self.budget_bytes

    def longest(self, tokens: Sequence[int]) -> Snapshot | None:
        """The kept state of the longest beginning of `tokens`; it is used now, so it goes last of all."""
        for length in sorted(self._lengths, reverse=True):
            if length <= len(tokens) and (found := self._find(tokens[:length])) is not None:
                self.hits += 1
                self.reused_tokens += length
                return found
        self.misses += 1
        return None

    def _find(self, tokens: Sequence[int]) -> Snapshot | None:
        key = self._key(tokens)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return self._key(tokens) in self._kept

    def keep(self, snapshot: Snapshot) -> bool:
        """Whether it is kept: not if it alone is over the budget, nor if it stands for no token."""
        if not snapshot.tokens or snapshot.nbytes > self.budget_bytes:
            self.refused += 1
            return False
        key = self._key(snapshot.tokens)
        if key in self._kept:
            self._drop(key)
        while self.bytes + snapshot.nbytes > self.budget_bytes:
            self._drop(next(iter(self._kept)))
            self.evictions += 1
        self._kept[key] = snapshot
        self.bytes += snapshot.nbytes
        length = len(snapshot.tokens)
        self._lengths[length] = self._lengths.get(length, 0) + 1
        return True

    def _drop(self, key: bytes) -> None:
        snapshot = self._kept.pop(key)
        self.bytes -= snapshot.nbytes
        length = len(snapshot.tokens)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def clear(self) -> None:
        while self._kept:
            self._drop(next(iter(self._kept)))

    def _key(self, tokens: Sequence[int]) -> bytes:
        """SHA-256 over identity and tokens: two prompts never share one."""
        return hashlib.sha256(self._identity + array("i", tokens).tobytes()).digest()
