"""Which nodes a search may find: one record for SQL and for the replica. Knows nothing of how either searches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np

from ruvllm.errors import InputError
from ruvllm.memory.records import KINDS, TRUSTS


@dataclass(frozen=True)
class Filter:
    """Every condition that is set must hold; it is applied before k is cut. Archived nodes are never found."""

    kinds: tuple[str, ...] = ()  # any of these; empty: every kind
    exclude_kinds: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()  # any of these
    tags: tuple[str, ...] = ()  # all of these
    trusts: tuple[str, ...] = ()  # any of these
    since: datetime | None = None  # created_at >= since; with a time zone
    until: datetime | None = None  # created_at < until
    min_confidence: float = 0.0
    reader: str = ""  # whose untrusted nodes are found; nobody else's ever are

    def __post_init__(self) -> None:
        for name, got, known in (
            ("kinds", self.kinds, KINDS),
            ("exclude_kinds", self.exclude_kinds, KINDS),
            ("trusts", self.trusts, TRUSTS),
        ):
            if unknown := sorted(set(got) - set(known)):
                raise InputError(f"filter {name}: got {unknown[0]!r}, want any of {', '.join(known)}")
        for name, when in (("since", self.since), ("until", self.until)):
            if when is not None and when.tzinfo is None:
                raise InputError(f"filter {name}: got {when.isoformat()} without a time zone, want one with it")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise InputError(f"filter min_confidence: got {self.min_confidence}, want a number from 0 to 1")
        if any("\x00" in word for word in (*self.domains, *self.tags, self.reader)):
            raise InputError("filter domains, tags or reader: got a NUL, want text without NUL")
        # as Postgres keeps it: what is too small for that is 0, not an error there
        object.__setattr__(self, "min_confidence", float(np.float32(self.min_confidence)))

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing but what every search asks: live nodes that the reader may see."""
        return self == Filter(reader=self.reader)
