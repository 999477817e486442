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

from ruvllm.memory.likeness.minhash import signed
from ruvllm.memory.records import Hit, NewNode, Node, Vector

# The columns of Node, in its order, of memory.nodes n and memory.node_texts t.
NODE = SQL(
    "n.id, n.uuid::text, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata, n.confidence,"
    " n.version"
)
_WIDTH = 12

# One statement for all: triggers and plans cost once, not a row. In the order of hashes, as `insert` says.
_INSERT = """
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest(
            %(id)s::bigint[], %(kind)s::text[], %(domain)s::text[], %(trust)s::text[], %(hash)s::bytea[],
            %(embedding)b::halfvec[], %(confidence)s::real[], %(version)s::int[], %(text)s::text[], %(source)s::text[],
            %(writer)s::text[], %(tags)s::jsonb[], %(metadata)s::jsonb[]
        ) WITH ORDINALITY AS new (id, kind, domain, trust, hash, embedding, confidence, version, text, source, writer,
                                  tags, metadata, place)
    ), node AS (
        INSERT INTO memory.nodes (id, tenant, kind, domain, trust, content_hash, embedding, confidence, version)
        OVERRIDING SYSTEM VALUE
        SELECT id, current_setting('app.tenant'), kind, domain, trust, hash, embedding, confidence, version
        FROM new ORDER BY hash
        ON CONFLICT (tenant, content_hash) WHERE archived_at IS NULL DO NOTHING
        RETURNING id, tenant
    ), texts AS (
        INSERT INTO memory.node_texts (node, tenant, text, source, writer, tags, metadata)
        SELECT id, tenant, text, source, writer, ARRAY(SELECT jsonb_array_elements_text(new.tags)), metadata
        FROM node JOIN new USING (id)
    ), bands AS (
        INSERT INTO memory.minhash_bands (node, tenant, band, hash, scheme)
        SELECT id, tenant, b.place - 1, b.hash, %(scheme)s
        FROM node JOIN new USING (id)
        CROSS JOIN unnest((%(bands)b::bigint[])[new.place:new.place]) WITH ORDINALITY AS b (hash, place)
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
    written = {row[0] for row in connection.execute(_INSERT, _to_columns(ids, ready))}
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
    Who writes afterwards calls `by_any_plan` first.
    """
    connection.execute(
        "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_sort', 'off', true)", [str(ef_search)]
    )


def by_any_plan(connection: Connection) -> None:
    """Ends `by_index`, for who writes in the same transaction.

    Without sorts the triggers of a write read all nodes in the order of an index instead of sorting one row (measured:
    7 ms a node at 20,000 nodes, and in proportion to them), and a session keeps that plan.
    """
    connection.execute("SELECT set_config('enable_sort', 'on', true)")


def half(vector: Vector) -> HalfVector:
    return HalfVector(np.asarray(vector, dtype=np.float16))


def from_row(row: Sequence[Any]) -> Node:
    id, uuid, kind, domain, trust, text, source, writer, tags, metadata, confidence, version = row[:_WIDTH]
    return Node(id, uuid, kind, domain, trust, text, source, writer, tuple(tags), metadata, float(confidence), version)


def hit_from_row(row: Sequence[Any]) -> Hit:
    """A row of NODE, similarity, embedding."""
    return Hit(from_row(row), float(row[_WIDTH]), row[_WIDTH + 1].to_numpy().astype(np.float32))


def _to_columns(ids: Sequence[int], ready: Sequence[Ready]) -> dict[str, Any]:
    nodes = [each.node for each in ready]
    bands = [signed(node.text) for node in nodes]
    return {
        "id": list(ids),
        "kind": [node.kind for node in nodes],
        "domain": [node.domain for node in nodes],
        "trust": [node.trust for node in nodes],
        "hash": [each.hash for each in ready],
        "embedding": [half(each.vector) for each in ready],
        "confidence": [node.confidence for node in nodes],
        "version": [each.version for each in ready],
        "text": [node.text for node in nodes],
        "source": [node.source for node in nodes],
        "writer": [node.writer for node in nodes],
        "tags": [Jsonb(list(node.tags)) for node in nodes],
        "metadata": [Jsonb(dict(node.metadata)) for node in nodes],
        "bands": [list(each.hashes) for each in bands],
        "scheme": bands[0].scheme,  # one signer an installation
    }
