"""What the shards of the tests hold, and what one server with all of it would answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.memory.rows import Ready, content_hash, insert
from ruvllm.memory.shards import Shard, ShardSet, route_node

NAMES = ("a", "b", "c", "d")
TENANTS = ("acme", "b\\ob's 日本")  # the second is what libpq's options would split and SQL would end
PER_TENANT = 240


@dataclass(frozen=True)
class Filled:
    """A shard set and, by tenant, what was written: row i of `vectors` is the node of text `texts[i]`."""

    shards: ShardSet
    vectors: dict[str, NDArray[np.float32]]
    texts: dict[str, list[str]]

    def exact(self, tenant: str, vector: NDArray[np.float32], k: int) -> list[str]:
        """The texts nearest to `vector`, as one server with all rows would sort them."""
        nearest = np.argsort(-(self.vectors[tenant] @ vector), kind="stable")[:k]
        return [self.texts[tenant][i] for i in nearest]


def units(seed: int, n: int) -> NDArray[np.float32]:
    """(n, 384) random unit vectors that half precision holds exactly."""
    vectors = np.random.default_rng(seed).standard_normal((n, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def ready(text: str, vector: NDArray[np.float32], trust: str = "system", writer: str = "") -> Ready:
    node = NewNode(text, "Fact", "test", trust=trust, writer=writer)
    return Ready(node, content_hash("Fact", text), vector)


def write(shard: Shard, tenant: str, rows: list[Ready]) -> None:
    database = Database(shard.dsn, tenant)
    with database.transaction() as connection:
        insert(connection, rows)
    database.close()


def fill(shards: ShardSet, tenant: str, texts: list[str], vectors: NDArray[np.float32]) -> None:
    """Each node on the shard of its content."""
    for shard in shards.shards:
        mine = [i for i, text in enumerate(texts) if route_node(shards, "Fact", text) == shard]
        write(shard, tenant, [ready(texts[i], vectors[i]) for i in mine])
