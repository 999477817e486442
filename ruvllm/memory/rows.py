"""Nodes to rows and back: the SQL that writes and reads them. Knows nothing of encoders or of duplicates.

The tenant is the transaction's (app.tenant): row-level security hides every other one's rows from each statement here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg import Connection
from psycopg.sql import SQL
from psycopg.types.json import Jsonb

from ruvllm.memory.minhash import signed
from ruvllm.memory.records import Hit, NewNode, Node, Vector

# The columns of Node, in its order, of memory.nodes n and memory.node_texts t.
NODE = SQL(
    "n.id, n.uuid::text, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata, n.confidence,"
    " n.version"
)
_WIDTH = 12

_INSERT = """
    WITH node AS (
        INSERT INTO memory.nodes (id, tenant, kind, domain, trust, content_hash, embedding, confidence, version)
        OVERRIDING SYSTEM VALUE
        VALUES (%(id)s, current_setting('app.tenant'), %(kind)s, %(domain)s, %(trust)s, %(hash)s, %(embedding)s,
                %(confidence)s, %(version)s)
        ON CONFLICT (tenant, content_hash) WHERE archived_at IS NULL DO NOTHING
        RETURNING id, tenant
    ), texts AS (
        INSERT INTO memory.node_texts (node, tenant, text, source, writer, tags, metadata)
        SELECT id, tenant, %(text)s, %(source)s, %(writer)s, %(tags)s, %(metadata)s FROM node
    ), bands AS (
        INSERT INTO memory.minhash_bands (node, tenant, band, hash, scheme)
        SELECT id, tenant, b.place - 1, b.hash, %(scheme)s
        FROM node, unnest(%(bands)s::bigint[]) WITH ORDINALITY AS b (hash, place)
    )
    SELECT id FROM node
"""

_IDS = "SELECT nextval('memory.nodes_id_seq') FROM generate_series(1, %(count)s)"

# What lives under a content hash; a text that was merged away lives on in the node that took it in.
_LIVE = """
    WITH RECURSIVE heir AS (
        SELECT content_hash, id, superseded_by FROM memory.nodes
        WHERE content_hash = ANY(%(hashes)s) AND (archived_at IS NULL OR superseded_by IS NOT NULL)
        UNION
        SELECT heir.content_hash, n.id, n.superseded_by FROM heir JOIN memory.nodes n ON n.id = heir.superseded_by
    )
    SELECT heir.content_hash, n.id, n.trust, t.writer
    FROM heir JOIN memory.nodes n ON n.id = heir.id JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL
    ORDER BY (n.content_hash = heir.content_hash), n.id  -- a row's own text comes last and so wins in a dictionary
"""

_GET = SQL(
    "SELECT {node} FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id WHERE n.id = ANY(%(ids)s)"
    " AND t.node = ANY(%(ids)s)"  # for the planner: without statistics it would read every text
).format(node=NODE)


@dataclass(frozen=True)
class Ready:
    """A node that can be written: clean text, its hash, its unit vector (d,)."""

    node: NewNode
    hash: bytes
    vector: Vector
    version: int = 1


@dataclass(frozen=True)
class Known:
    """A live row that already holds a content."""

    id: int
    trust: str
    writer: str


def content_hash(kind: str, text: str) -> bytes:
    """32 bytes that two live nodes of a tenant never share."""
    return hashlib.sha256(f"{kind}\n{text}".encode()).digest()


def insert(connection: Connection, ready: Sequence[Ready]) -> list[int | None]:
    """Write nodes with their texts and MinHash bands; None where a live row holds the content already.

    Ids are in the order of `ready`, rows are written in the order of their hashes: two writers of the same nodes in
    another order would otherwise wait for each other for ever.
    """
    if not ready:
        return []
    ids = sorted(row[0] for row in connection.execute(_IDS, {"count": len(ready)}))
    rows = sorted((_to_row(id, each) for id, each in zip(ids, ready, strict=True)), key=lambda row: row["hash"])
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, rows, returning=True)
        written = {row[0] for result in cursor.results() if (row := result.fetchone())}
    return [id if id in written else None for id in ids]


def live(connection: Connection, hashes: Sequence[bytes]) -> dict[bytes, Known]:
    """By content hash, the live row that holds that content or took it in."""
    found = connection.execute(_LIVE, {"hashes": list(hashes)})
    return {bytes(hash): Known(id, trust, writer) for hash, id, trust, writer in found}


def get(connection: Connection, ids: Sequence[int]) -> list[Node]:
    """In the order of `ids`; archived nodes too, for stored interactions name them; unknown ids are left out."""
    found = {row[0]: from_row(row) for row in connection.execute(_GET, {"ids": list(ids)})}
    return [found[id] for id in ids if id in found]


def by_index(connection: Connection, ef_search: int) -> None:
    """For this transaction: nearest neighbours through HNSW with `ef_search` candidates.

    A fresh table has no statistics, and the planner then sorts all of it (measured: 4 ms instead of 1 at 2,500 nodes).
    """
    connection.execute(
        "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_sort', 'off', true)", [str(ef_search)]
    )


def half(vector: Vector) -> HalfVector:
    return HalfVector(np.asarray(vector, dtype=np.float16))


def from_row(row: Sequence[Any]) -> Node:
    id, uuid, kind, domain, trust, text, source, writer, tags, metadata, confidence, version = row[:_WIDTH]
    return Node(id, uuid, kind, domain, trust, text, source, writer, tuple(tags), metadata, float(confidence), version)


def hit_from_row(row: Sequence[Any]) -> Hit:
    """A row of NODE, similarity, embedding."""
    return Hit(from_row(row), float(row[_WIDTH]), row[_WIDTH + 1].to_numpy().astype(np.float32))


def _to_row(id: int, ready: Ready) -> dict[str, Any]:
    node = ready.node
    bands = signed(node.text)
    return {
        "id": id,
        "kind": node.kind,
        "domain": node.domain,
        "trust": node.trust,
        "hash": ready.hash,
        "embedding": half(ready.vector),
        "confidence": node.confidence,
        "version": ready.version,
        "text": node.text,
        "source": node.source,
        "writer": node.writer,
        "tags": list(node.tags),
        "metadata": Jsonb(dict(node.metadata)),
        "bands": list(bands.hashes),
        "scheme": bands.scheme,
    }
