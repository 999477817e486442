"""Nearest nodes by SQL: through the HNSW index, exactly where a filter leaves few. Knows nothing of words or encoders.

The planner is not left to guess: under row-level security a fresh table has no statistics, and it would sort the table.
A search walks the index; pgvector goes on walking while a filter takes hits away, up to `hnsw.max_scan_tuples`. Where
fewer than k are found so, or an index on the filter's own columns shows that few nodes are left, those are compared one
by one. So k nodes come where k exist, and what costs more than an index walk is asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from psycopg import Connection
from psycopg.sql import SQL, Composed

from ruvllm.database.pool import Database
from ruvllm.memory import hnsw, rows
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, Hit, Vector
from ruvllm.memory.rows import NODE

MAX_K = hnsw.MAX_EF_SEARCH
NARROW = 1_000  # nodes that are compared one by one sooner than looked for in the index: some 1 ms
PLAIN = Filter()

# (efSearch, milliseconds of one search of 100,000 x 384): what a latency budget buys, here and in process. 64 was
# measured on an idle machine, the others are its multiples as measured at 10,000 in one run.
COSTS = ((256, 5.3), (128, 3.2), (64, 1.9), (32, 1.5))
IN_PROCESS = ((256, 0.71), (128, 0.44), (64, 0.28), (32, 0.22))

# Conditions by the filter's field, of memory.nodes n. A scalar subquery is asked only for the rows that need it.
_CONDITIONS = {
    "kinds": "n.kind = ANY(%(kinds)s)",
    "exclude_kinds": "n.kind <> ALL(%(exclude_kinds)s)",
    "domains": "n.domain = ANY(%(domains)s)",
    "tags": "(SELECT t.tags @> %(tags)s FROM memory.node_texts t WHERE t.node = n.id)",
    "trusts": "n.trust = ANY(%(trusts)s)",
    "since": "n.created_at >= %(since)s",
    "until": "n.created_at < %(until)s",
    "min_confidence": "n.confidence >= %(min_confidence)s::real",
}
_VISIBLE = (
    "n.archived_at IS NULL AND (n.trust <> 'untrusted'"
    " OR (SELECT t.writer = %(reader)s FROM memory.node_texts t WHERE t.node = n.id))"
)
_TAGGED = "n.id = ANY (ARRAY(SELECT memory.tagged(%(tags)s)))"
_INDEXED = ("kinds", "domains", "since", "until")  # conditions that 0005 has an index for

_SETTINGS = """
    SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_sort', 'off', true),
           set_config('enable_seqscan', 'off', true)
"""

# The planner holds a plan that fits every LIMIT $1 too dear and would plan each call anew (0.2 to 0.3 ms). Joins are of
# as many rows as were asked for: by look-ups, whatever a table without statistics suggests.
_PLAN_ONCE = {"plan_cache_mode": "force_generic_plan", "enable_hashjoin": "off", "enable_mergejoin": "off"}

_SEARCH = SQL("""
    SELECT n.id, -(n.embedding <#> %(vector)s) FROM memory.nodes n WHERE {where}
    ORDER BY n.embedding <#> %(vector)s LIMIT %(k)s
""")

# + 0: no index has this order, whatever plan was cached
_EXACT = SQL("""
    SELECT n.id, -(n.embedding <#> %(vector)s) FROM memory.nodes n WHERE {where}
    ORDER BY (n.embedding <#> %(vector)s) + 0, n.id LIMIT %(k)s
""")

_BATCH = SQL("""
    SELECT q.place, b.id, b.similarity
    FROM unnest(%(vectors)s) WITH ORDINALITY AS q (vector, place) CROSS JOIN LATERAL (
        SELECT n.id, -(n.embedding <#> q.vector) AS similarity FROM memory.nodes n WHERE {where}
        ORDER BY n.embedding <#> q.vector LIMIT %(k)s
    ) AS b ORDER BY q.place, b.similarity DESC
""")

_FEW = SQL(
    "SELECT count(*) FROM (SELECT FROM memory.nodes n WHERE n.archived_at IS NULL AND {where} LIMIT %(cap)s) AS f"
)

_HITS = SQL("""
    SELECT {node}, 0.0, n.embedding FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.id = ANY(%(ids)s) AND t.node = ANY(%(ids)s)
""").format(node=NODE)

# As `_HITS` of `_SEARCH`, in one statement.
_WHOLE = SQL("""
    SELECT {node}, f.similarity, n.embedding
    FROM (SELECT n.id, -(n.embedding <#> %(vector)s) AS similarity FROM memory.nodes n WHERE {where}
          ORDER BY n.embedding <#> %(vector)s LIMIT %(k)s) AS f
    JOIN memory.nodes n ON n.id = f.id JOIN memory.node_texts t ON t.node = f.id
""")

_MEMBERS = SQL("""
    SELECT n.id, -(n.embedding <#> %(vector)s) FROM memory.nodes n WHERE {where} AND n.id = ANY (ARRAY(
        SELECT e.dst FROM memory.edges e WHERE e.src = ANY(%(concepts)s) AND e.rel = 'Contains'))
    ORDER BY (n.embedding <#> %(vector)s) + 0, n.id LIMIT %(k)s
""")

_VECTORS = "SELECT id, embedding FROM memory.nodes WHERE id = ANY(%(ids)s)"


def search(
    connection: Connection, vector: Vector, k: int, filter: Filter = PLAIN, ef: int | None = None, exact: bool = False
) -> Found:
    """The `k` nearest nodes that `filter` lets through, nearest first.

    Args:
        vector: (d,) unit vector.
        k: 1 to MAX_K.
        ef: candidates that the index walk keeps; None: as many as the smallest band asks. At least k are kept.
        exact: compare every node that `filter` lets through; of equals the lower id is first.
    """
    where, values = conditions(filter)
    values |= {"vector": rows.half(vector), "k": k}
    if exact or _is_narrow(connection, filter, values):
        return _exact(connection, filter, values)
    with connection.pipeline():  # one round trip
        _walk_index(connection, k, ef)
        cursor = connection.cursor(binary=True).execute(_SEARCH.format(where=where), values)
    found = _found(cursor.fetchall())
    return found if len(found.ids) == k else _exact(connection, filter, values)


def nearest(
    database: Database, vector: Vector, k: int, filter: Filter = PLAIN, ef: int | None = None, exact: bool = False
) -> Found:
    """`search` in a transaction of its own, and in one round trip where the index can be asked straight away."""
    if exact or _may_be_narrow(filter):
        with database.transaction() as connection:
            return search(connection, vector, k, filter, ef, exact)
    found = _found(_read(database, False, vector, k, filter, ef))
    if len(found.ids) == k:
        return found
    with database.transaction() as connection:
        return search(connection, vector, k, filter, ef, exact=True)


def nearest_hits(
    database: Database, vector: Vector, k: int, filter: Filter = PLAIN, ef: int | None = None, exact: bool = False
) -> list[Hit]:
    """`hits` of `nearest`."""
    if not exact and not _may_be_narrow(filter):
        got = [rows.hit_from_row(row) for row in _read(database, True, vector, k, filter, ef)]
        if len(got) == k:
            return sorted(got, key=lambda hit: -hit.similarity)
        exact = True
    with database.transaction() as connection:
        return hits(connection, search(connection, vector, k, filter, ef, exact))


def _read(
    database: Database, whole: bool, vector: Vector, k: int, filter: Filter, ef: int | None
) -> list[tuple[Any, ...]]:
    values = {**_values(filter), "vector": rows.half(vector), "k": k}
    query = _query(whole, tuple(values))
    return database.read(
        lambda connection: connection.cursor(binary=True).execute(query, values), {**_settings(k, ef), **_PLAN_ONCE}
    )


@cache
def _query(whole: bool, names: tuple[str, ...]) -> bytes:
    """The statement for filters that set the conditions among `names`: put together once."""
    conditions = [_CONDITIONS[name] for name in names if name in _CONDITIONS]
    return (_WHOLE if whole else _SEARCH).format(node=NODE, where=_where([_VISIBLE, *conditions])).as_bytes()


def search_batch(
    connection: Connection,
    vectors: Vector,
    k: int,
    filter: Filter = PLAIN,
    ef: int | None = None,
    exact: bool = False,
) -> list[Found]:
    """`search` of each row of `vectors` (n, d); the index walks are one round trip."""
    if exact or not len(vectors):
        return [search(connection, vector, k, filter, ef, exact) for vector in vectors]
    where, values = conditions(filter)
    values |= {"vectors": [rows.half(vector) for vector in vectors], "k": k}
    with connection.pipeline():
        _walk_index(connection, k, ef)
        cursor = connection.cursor(binary=True).execute(_BATCH.format(where=where), values)
    groups: list[list[tuple[int, float]]] = [[] for _ in vectors]
    for place, id, similarity in cursor.fetchall():
        groups[place - 1].append((id, similarity))
    batch = [_found(group) for group in groups]
    short = [i for i, found in enumerate(batch) if len(found.ids) < k]
    for i in short:
        batch[i] = _exact(connection, filter, {**values, "vector": rows.half(vectors[i])})
    return batch


def members(connection: Connection, vector: Vector, concepts: Sequence[int], k: int, filter: Filter) -> Found:
    """The `k` nearest among the nodes that `concepts` contain."""
    where, values = conditions(filter)
    values |= {"vector": rows.half(vector), "concepts": list(concepts), "k": k}
    return _found(connection.cursor(binary=True).execute(_MEMBERS.format(where=where), values).fetchall())


def hits(connection: Connection, found: Found) -> list[Hit]:
    """Nodes, texts and vectors of what was found, in its order; similarities are those of `found`."""
    cursor = connection.cursor(binary=True).execute(_HITS, {"ids": found.ids.tolist()})
    by_id = {hit.node.id: hit for hit in map(rows.hit_from_row, cursor)}
    pairs = zip(found.ids.tolist(), found.similarities.tolist(), strict=True)
    return [Hit(by_id[id].node, similarity, by_id[id].embedding) for id, similarity in pairs if id in by_id]


def vectors(connection: Connection, ids: Sequence[int], dimension: int) -> Vector:
    """(n, d) of the nodes `ids`, in their order.

    Raises:
        KeyError: a node is not there.
    """
    cursor = connection.cursor(binary=True).execute(_VECTORS, {"ids": list(ids)})
    by_id = {id: embedding.to_numpy() for id, embedding in cursor}
    return np.array([by_id[id] for id in ids], dtype=np.float32).reshape(len(ids), dimension)


def ef_for(budget_ms: float, costs: Sequence[tuple[int, float]] = COSTS) -> int:
    """efSearch that a latency budget buys; at least the smallest."""
    return next((ef for ef, cost in costs if cost <= budget_ms), costs[-1][0])


def conditions(filter: Filter) -> tuple[Composed, dict[str, Any]]:
    """What a WHERE says of memory.nodes n, and its parameters: only the conditions that are set."""
    values = _values(filter)
    return _where([_VISIBLE, *(_CONDITIONS[name] for name in values if name in _CONDITIONS)]), values


def _values(filter: Filter) -> dict[str, Any]:
    asked = {name: _parameter(getattr(filter, name)) for name in _CONDITIONS if getattr(filter, name)}
    return {"reader": filter.reader, **asked}


def _where(texts: Sequence[str]) -> Composed:
    return SQL(" AND ").join([SQL(text) for text in texts])


def _parameter(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _walk_index(connection: Connection, k: int, ef: int | None) -> None:
    """For this transaction: through HNSW, which is never the plan that a table without statistics suggests."""
    connection.execute(_SETTINGS, [_settings(k, ef)["hnsw.ef_search"]])


def _settings(k: int, ef: int | None) -> dict[str, str]:
    wanted = hnsw.ef_search(k, 0) if ef is None else min(max(k, ef), hnsw.MAX_EF_SEARCH)
    return {"hnsw.ef_search": str(wanted), "enable_sort": "off", "enable_seqscan": "off"}


def _is_narrow(connection: Connection, filter: Filter, values: Mapping[str, Any]) -> bool:
    """Whether the conditions that an index answers leave few nodes."""
    if not _may_be_narrow(filter):
        return False
    asked = [_CONDITIONS[name] for name in _INDEXED if name in values]
    if "tags" in values:
        asked.append(_TAGGED)
    _walk_index(connection, 1, None)
    row = connection.execute(_FEW.format(where=_where(asked)), {**values, "cap": NARROW}).fetchone()
    return row is not None and row[0] < NARROW


def _may_be_narrow(filter: Filter) -> bool:
    return any(getattr(filter, name) for name in (*_INDEXED, "tags"))


def _exact(connection: Connection, filter: Filter, values: Mapping[str, Any]) -> Found:
    where, _ = conditions(filter)
    if filter.tags:
        where += SQL(" AND ") + SQL(_TAGGED)
    return _found(connection.cursor(binary=True).execute(_EXACT.format(where=where), values).fetchall())


def _found(pairs: Sequence[Sequence[Any]]) -> Found:
    ids, similarities = zip(*pairs, strict=True) if pairs else ((), ())
    return Found(np.array(ids, dtype=np.int64), np.array(similarities, dtype=np.float32))
