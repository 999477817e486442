"""Memory on several Postgres servers: which node lies where, and one search over all of them.

Two placements. By tenant: all of a tenant's nodes and edges lie on one shard, and the whole of Memory works there as it
does on one machine; nothing fans out. By node, for a tenant that is too big for one shard: a node lies where its
content's hash says, so that equal contents still meet; a search asks every shard through postgres_fdw, and edges stay
within a shard. Replicas and standbys of a shard are ruvllm/database/standby.py's.
"""

from __future__ import annotations

from ruvllm.memory.shards.layout import create, open_tenant
from ruvllm.memory.shards.records import BranchPlan, Shard, ShardHit, ShardSet, ShardStatus, load
from ruvllm.memory.shards.routing import route, route_node
from ruvllm.memory.shards.search import Shards
from ruvllm.memory.shards.simulation import SimulationReport, simulate

__all__ = [
    "BranchPlan",
    "Shard",
    "ShardHit",
    "ShardSet",
    "ShardStatus",
    "Shards",
    "SimulationReport",
    "create",
    "load",
    "open_tenant",
    "route",
    "route_node",
    "simulate",
]
