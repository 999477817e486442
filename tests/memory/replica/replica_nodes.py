"""Nodes and edges written straight to Postgres, for tests of the replica."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count

import numpy as np
from psycopg import Connection
from psycopg.types.json import Jsonb

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.memory.replica import ReplicaOptions
from ruvllm.memory.rows import half

# no thread: a test says when it follows and when it builds
ALONE = ReplicaOptions(poll_s=0, max_staleness_s=3600, rebuild_least=10**9, rebuild_most=10**9)
_texts = count()
_INSERT = """
    WITH node AS (
        INSERT INTO memory.nodes (tenant, kind, domain, trust, content_hash, embedding, confidence, created_at)
        VALUES (current_setting('app.tenant'), %s, %s, %s, %s, %s, %s, coalesce(%s, now())) RETURNING id, tenant)
    INSERT INTO memory.node_texts (node, tenant, text, source, writer, tags, metadata)
    SELECT id, tenant, %s, %s, %s, %s, %s FROM node RETURNING node
"""


def units(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, 384) unit vectors as halves hold them."""
    drawn = np.random.default_rng(seed).standard_normal((rows, 384))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn.astype(np.float16).astype(np.float32)


def node(vector: np.ndarray, **fields: object) -> NewNode:
    return replace(NewNode(f"text {next(_texts)}", embedding=vector), **fields)


def insert(connection: Connection, nodes: Sequence[NewNode], created: datetime | None = None) -> list[int]:
    """Ids in order, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [_row(each, created) for each in nodes], returning=True)
        return [result.fetchone()[0] for result in cursor.results()]


def _row(node: NewNode, created: datetime | None) -> tuple:
    hash = hashlib.sha256(f"{node.kind}\n{node.text}".encode()).digest()
    return (node.kind, node.domain, node.trust, hash, half(node.embedding), node.confidence, created,
            node.text, node.source, node.writer, list(node.tags), Jsonb(dict(node.metadata)))  # fmt: skip


def link(connection: Connection, edges: Sequence[tuple[int, int, str, float]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO memory.edges (tenant, src, dst, rel, weight, created_by)"
            " VALUES (current_setting('app.tenant'), %s, %s, %s, %s, 'test')",
            edges,
        )


def archive(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = ANY(%s)", [list(ids)])


@dataclass(frozen=True)
class Written:
    database: Database
    vectors: np.ndarray  # (n, 384)
    ids: list[int]
