"""Rows that might be duplicates: near by vector or sharing a MinHash band. Does not judge whether they are.

Each statement touches one table and has one sane plan: a table that was just filled has no statistics, and joined
with their texts these same look-ups took minutes instead of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg import Connection

from ruvllm.memory import hnsw, rows
from ruvllm.memory.records import Node, Vector

_PER_BAND = 32  # nodes looked at a band: boilerplate must not make it quadratic

_NEAREST = """
    SELECT id, -(embedding <#> %(vector)s) FROM memory.nodes
    WHERE archived_at IS NULL ORDER BY embedding <#> %(vector)s LIMIT %(k)s
"""

_NEIGHBOURS = """
    SELECT a.id, b.id, b.similarity
    FROM memory.nodes a CROSS JOIN LATERAL (
        SELECT m.id, -(m.embedding <#> a.embedding) AS similarity FROM memory.nodes m
        WHERE m.archived_at IS NULL AND m.id <> a.id
        ORDER BY m.embedding <#> a.embedding LIMIT %(k)s
    ) AS b
    WHERE a.id = ANY(%(ids)s) AND b.similarity >= %(floor)s
"""

_BANDS = "SELECT node, band, hash FROM memory.minhash_bands WHERE node = ANY(%(ids)s)"

_MATES = """
    SELECT DISTINCT mine.node, other.node
    FROM unnest(%(nodes)s::bigint[], %(bands)s::smallint[], %(hashes)s::bigint[]) AS mine (node, band, hash)
    CROSS JOIN LATERAL (
        SELECT node FROM memory.minhash_bands
        WHERE band = mine.band AND hash = mine.hash AND node < mine.node LIMIT %(per_band)s
    ) AS other
"""

_ALIVE = "SELECT id FROM memory.nodes WHERE id = ANY(%(ids)s) AND archived_at IS NULL ORDER BY id FOR UPDATE"

_LATER_THAN_ALL = 2**63 - 1


def nearest(connection: Connection, vector: Vector, k: int) -> dict[int, float]:
    """Similarity by id of the `k` live nodes nearest to `vector` (d,)."""
    rows.by_index(connection, hnsw.ef_search(k, 0))
    found = connection.execute(_NEAREST, {"vector": rows.half(vector), "k": k})
    return {id: float(similarity) for id, similarity in found}


def neighbours(connection: Connection, ids: Sequence[int], k: int, floor: float) -> dict[tuple[int, int], float]:
    """Similarity by (newer id, older id) of each node of `ids` and its `k` nearest, from `floor` on."""
    rows.by_index(connection, hnsw.ef_search(k, 0))
    found = connection.execute(_NEIGHBOURS, {"ids": list(ids), "k": k, "floor": floor})
    return {(max(a, b), min(a, b)): float(similarity) for a, b, similarity in found}


def band_mates(connection: Connection, ids: Sequence[int]) -> set[tuple[int, int]]:
    """(newer id, older id) of each node of `ids` and the older nodes that share a band with it."""
    found = connection.execute(_BANDS, {"ids": list(ids)}).fetchall()
    return _mates(connection, found)


def sharing_a_band(connection: Connection, bands: Sequence[int]) -> set[int]:
    """Nodes that share a band with a text that is not stored yet."""
    return {other for _, other in _mates(connection, [(_LATER_THAN_ALL, *pair) for pair in enumerate(bands)])}


def _mates(connection: Connection, mine: Sequence[tuple[int, int, int]]) -> set[tuple[int, int]]:
    nodes, bands, hashes = zip(*mine, strict=True) if mine else ((), (), ())
    values = {"nodes": list(nodes), "bands": list(bands), "hashes": list(hashes), "per_band": _PER_BAND}
    return {(newer, older) for newer, older in connection.execute(_MATES, values)}


def lock_live(connection: Connection, ids: Iterable[int]) -> list[Node]:
    """The nodes of `ids` that are live, by id, locked until the transaction ends."""
    alive = [row[0] for row in connection.execute(_ALIVE, {"ids": sorted(ids)})]
    return rows.get(connection, alive)
