"""Rows that might be duplicates: near by vector or sharing a MinHash band. Does not judge whether they are.

Each statement touches one table and has one sane plan: a table that was just filled has no statistics, and joined
with their texts these same look-ups took minutes instead of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import Connection
from psycopg.sql import SQL

from ruvllm.memory import hnsw, rows
from ruvllm.memory.likeness.minhash import Bands
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

_BANDS = "SELECT node, band, hash, scheme FROM memory.minhash_bands WHERE node = ANY(%(ids)s)"

_MATES = """
    SELECT DISTINCT mine.node, other.node
    FROM unnest(%(nodes)s::bigint[], %(bands)s::smallint[], %(hashes)s::bigint[], %(schemes)s::smallint[])
        AS mine (node, band, hash, scheme)
    CROSS JOIN LATERAL (
        SELECT node FROM memory.minhash_bands
        WHERE band = mine.band AND hash = mine.hash AND scheme = mine.scheme AND node < mine.node LIMIT %(per_band)s
    ) AS other
"""

_ALIVE = "SELECT id FROM memory.nodes WHERE id = ANY(%(ids)s) AND archived_at IS NULL ORDER BY id FOR UPDATE"

# Of the candidates, those of the kind and source that can be duplicates, and those near enough to be of one topic.
_OF_INTEREST = SQL(
    "SELECT {node}, -(n.embedding <#> %(vector)s) FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id"
    " WHERE n.id = ANY(%(ids)s) AND t.node = ANY(%(ids)s) AND n.archived_at IS NULL"
    " AND (n.kind = %(kind)s AND t.source = %(source)s OR n.id = ANY(%(near)s))"
).format(node=rows.NODE)

_LATER_THAN_ALL = 2**63 - 1


@dataclass(frozen=True)
class Nearby:
    """A live node and its similarity to a vector."""

    node: Node
    similarity: float


def nearest(connection: Connection, vector: Vector, k: int) -> dict[int, float]:
    """Similarity by id of the `k` live nodes nearest to `vector` (d,)."""
    rows.by_index(connection, hnsw.ef_search(k, 0))
    found = connection.execute(_NEAREST, {"vector": rows.half(vector), "k": k}).fetchall()
    rows.by_any_plan(connection)
    return {id: float(similarity) for id, similarity in found}


def around(
    connection: Connection, vectors: Sequence[Vector], bands: Bands, k: int
) -> tuple[list[dict[int, float]], set[int]]:
    """Similarity by id of the `k` live nodes nearest to each of `vectors`, and who shares a band; one round trip."""
    ef = hnsw.ef_search(k, 0)
    with connection.pipeline():
        rows.by_index(connection, ef)
        near = [connection.execute(_NEAREST, {"vector": rows.half(vector), "k": k}) for vector in vectors]
        mates = connection.execute(_MATES, _signed([(_LATER_THAN_ALL, *each) for each in _places(bands)]))
        rows.by_any_plan(connection)
        found = [{id: float(similarity) for id, similarity in cursor} for cursor in near]
        return found, {other for _, other in mates}


def of_interest(
    connection: Connection, ids: Iterable[int], vector: Vector, kind: str, source: str, near: Sequence[int]
) -> list[Nearby]:
    """Live nodes of `ids`, oldest first: those of `kind` and `source`, and those of `near` whatever they are."""
    wanted = sorted(set(ids))
    values = {"ids": wanted, "vector": rows.half(vector), "kind": kind, "source": source, "near": list(near)}
    found = connection.execute(_OF_INTEREST, values).fetchall() if wanted else []
    return sorted((Nearby(rows.from_row(row), float(row[-1])) for row in found), key=lambda each: each.node.id)


def neighbours(connection: Connection, ids: Sequence[int], k: int, floor: float) -> dict[tuple[int, int], float]:
    """Similarity by (newer id, older id) of each node of `ids` and its `k` nearest, from `floor` on."""
    rows.by_index(connection, hnsw.ef_search(k, 0))
    found = connection.execute(_NEIGHBOURS, {"ids": list(ids), "k": k, "floor": floor}).fetchall()
    rows.by_any_plan(connection)
    return {(max(a, b), min(a, b)): float(similarity) for a, b, similarity in found}


def band_mates(connection: Connection, ids: Sequence[int]) -> set[tuple[int, int]]:
    """(newer id, older id) of each node of `ids` and the older nodes that share a band with it."""
    mine = connection.execute(_BANDS, {"ids": list(ids)}).fetchall()
    return {(newer, older) for newer, older in connection.execute(_MATES, _signed(mine))}


def sharing_a_band(connection: Connection, bands: Bands) -> set[int]:
    """Nodes that share a band with a text that is not stored yet."""
    mine = [(_LATER_THAN_ALL, *each) for each in _places(bands)]
    return {other for _, other in connection.execute(_MATES, _signed(mine))}


def _places(bands: Bands) -> list[tuple[int, int, int]]:
    return [(place, hash, bands.scheme) for place, hash in enumerate(bands.hashes)]


def _signed(mine: Sequence[tuple[int, int, int, int]]) -> dict[str, object]:
    nodes, bands, hashes, schemes = zip(*mine, strict=True) if mine else ((), (), (), ())
    arrays = {"nodes": nodes, "bands": bands, "hashes": hashes, "schemes": schemes}
    return {**{name: list(values) for name, values in arrays.items()}, "per_band": _PER_BAND}


def lock_live(connection: Connection, ids: Iterable[int]) -> list[Node]:
    """The nodes of `ids` that are live, by id, locked until the transaction ends."""
    alive = [row[0] for row in connection.execute(_ALIVE, {"ids": sorted(ids)})]
    return rows.get(connection, alive)
