"""Which shard a key belongs to: rendezvous hashing, the same on every machine. Opens no connection.

Every shard draws a number for a key and the highest wins (Thaler and Ravishankar 1998), so a shard that is added takes
1/n of the keys, all of them from others to itself, and no other key moves.
"""

from __future__ import annotations

import hashlib

from ruvllm.memory.rows import content_hash
from ruvllm.memory.shards.records import Shard, ShardSet


def route(shards: ShardSet, key: str | bytes) -> Shard:
    """The shard of `key`: a tenant's name where a tenant's whole graph stays together."""
    data = key.encode() if isinstance(key, str) else key
    return max(shards.shards, key=lambda shard: hashlib.sha256(shard.name.encode() + b"\0" + data).digest())


def route_node(shards: ShardSet, kind: str, text: str) -> Shard:
    """The shard of a node of a tenant that is spread; by content, so that the same text twice meets itself."""
    return route(shards, content_hash(kind, text))
