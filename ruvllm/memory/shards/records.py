"""Shards as data: names, addresses, what a search over them hands out. Opens no connection."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ruvllm.database.dsn import check_dsn, shown
from ruvllm.errors import SettingsError
from ruvllm.memory.records import Node

ID_BITS = 40  # a shard's own ids: 1.1e12 of them, and 2^23 shards above
_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
_MOST = 256


@dataclass(frozen=True)
class Shard:
    """A plain Postgres server with our schema. `dsn` is its owner's: it migrates, and makes the reader's login."""

    name: str
    dsn: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SettingsError(f"shard {self.name!r}: want a name of a-z and 0-9, at most 20, a letter first")
        check_dsn(self.dsn)

    def __str__(self) -> str:
        return f"shard {self.name} ({shown(self.dsn)})"


@dataclass(frozen=True)
class ShardSet:
    """The coordinator's database and its shards, in an order that is never changed: new shards come last.

    A shard's place gives its nodes their ids, so ids are unique over the set.
    """

    coordinator: str  # DSN, its owner's
    shards: tuple[Shard, ...]
    ef_search: int = 64
    fetch_size: int = 1000  # rows a round trip: a branch never needs more than k

    def __post_init__(self) -> None:
        names = [shard.name for shard in self.shards]
        if not 1 <= len(names) <= _MOST or len(set(names)) != len(names):
            raise SettingsError(f"shards: got {', '.join(names) or 'none'}; want 1 to {_MOST} with different names")
        check_dsn(self.coordinator)

    def __getitem__(self, name: str) -> Shard:
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise SettingsError(f"shard {name!r}: not in this set; it has {', '.join(s.name for s in self.shards)}")

    def of_id(self, id: int) -> Shard:
        """The shard that gave a node its id."""
        place = id >> ID_BITS
        if not 0 <= place < len(self.shards):
            raise SettingsError(f"node {id}: of shard number {place}, this set has {len(self.shards)} shards")
        return self.shards[place]


@dataclass(frozen=True)
class ShardHit:
    """A search result and where it lies; `node.id` is unique over the set."""

    shard: str
    node: Node
    similarity: float  # inner product of unit vectors


@dataclass(frozen=True)
class BranchPlan:
    """What one shard is asked: the SQL that the coordinator sends it."""

    shard: str
    remote_sql: str

    @property
    def pushed(self) -> bool:
        """Whether the shard itself sorts and cuts; else it would send all its rows."""
        return bool(re.search(r"ORDER BY \(+embedding OPERATOR\(\S+<#>\).* LIMIT ", self.remote_sql, re.DOTALL))


@dataclass(frozen=True)
class ShardStatus:
    """`error` is empty where the shard answered; then `nodes` is the planner's estimate, `bytes` of the database."""

    name: str
    nodes: int
    bytes: int
    error: str = ""


def load(path: Path) -> ShardSet:
    """A ShardSet from a TOML file: `coordinator = "postgresql://…"`, then `[shards]` with `name = "postgresql://…"`.

    Raises:
        SettingsError: it is missing, or does not say what a set has to.
    """
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
        coordinator, shards = str(text["coordinator"]), dict(text["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f'{path}: no shard set ({error}); want coordinator = "…" and [shards] name = "…"'
        ) from error
    return ShardSet(coordinator, tuple(Shard(str(name), str(dsn)) for name, dsn in shards.items()))
