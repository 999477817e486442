"""Does the index find what is there, and do memory's rows agree with each other? Looks, and changes nothing.

Recall is against an exact search of the same rows: `ORDER BY (v <#> q) + 0` is an expression that no index answers, so
a cached plan cannot turn the check into what it checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory import hnsw, rows
from ruvllm.memory.tidy import canary

K = 10
RECALL_BOUND, SELF_BOUND, CANARY_BOUND = 0.95, 0.99, 0.8
_TIE = 1e-3  # half precision: nodes nearer than this to the tenth are as good as it
_ROWS = 5_000_000  # that exact searches read together at most
_ADJACENT = 200  # packed rows that are worked out again

_SAMPLE = """
    SELECT id, embedding FROM memory.nodes WHERE archived_at IS NULL
    ORDER BY hashint8extended(id, %(seed)s) LIMIT %(sample)s
"""
_ASKED = "SELECT NULL::bigint, embedding FROM memory.canary_queries ORDER BY id DESC LIMIT %(sample)s"
_EXACT = """
    SELECT id, -(embedding <#> %(vector)s) FROM memory.nodes WHERE archived_at IS NULL
    ORDER BY (embedding <#> %(vector)s) + 0 LIMIT %(k)s
"""
_INDEXED = """
    SELECT id, -(embedding <#> %(vector)s) FROM memory.nodes WHERE archived_at IS NULL
    ORDER BY embedding <#> %(vector)s LIMIT %(k)s
"""
_SIZE = "SELECT count(*) FROM memory.nodes WHERE archived_at IS NULL"

# Each counts rows that must not be.
_ORPHANS: Mapping[str, str] = {
    "nodes without a text": """
        SELECT count(*) FROM memory.nodes n WHERE NOT EXISTS (SELECT FROM memory.node_texts t WHERE t.node = n.id)
    """,
    "live nodes without MinHash bands": """
        SELECT count(*) FROM memory.nodes n WHERE n.archived_at IS NULL
        AND NOT EXISTS (SELECT FROM memory.minhash_bands b WHERE b.node = n.id)
    """,
    "superseded nodes whose heirs run in a circle": """
        WITH RECURSIVE way (start, node, steps) AS (
            SELECT id, superseded_by, 1 FROM memory.nodes WHERE superseded_by IS NOT NULL
            UNION ALL
            SELECT way.start, n.superseded_by, way.steps + 1 FROM way JOIN memory.nodes n ON n.id = way.node
            WHERE n.superseded_by IS NOT NULL AND way.node <> way.start AND way.steps < 1000
        ) SELECT count(DISTINCT start) FROM way WHERE node = start OR steps >= 1000
    """,
    "packed rows that are not their edges": """
        WITH few AS (
            SELECT * FROM memory.adjacency ORDER BY hashint8extended(node, %(seed)s) LIMIT %(adjacent)s
        )
        SELECT count(*) FROM few WHERE neighbours <> coalesce((
            SELECT array_agg(e.node ORDER BY e.weight DESC, e.id) FROM (
                (SELECT id, dst AS node, weight FROM memory.edges WHERE src = few.node
                 ORDER BY weight DESC, id LIMIT 64)
                UNION ALL
                (SELECT id, src, weight FROM memory.edges WHERE dst = few.node ORDER BY weight DESC, id LIMIT 64)
                ORDER BY weight DESC, id LIMIT 64
            ) AS e), '{}')
    """,
}


@dataclass(frozen=True)
class AuditReport:
    """Recalls in [0, 1], None where there was nothing to ask; `alarms` says in words what is below its bound."""

    nodes: int
    vectors: int  # stored ones that were asked with
    questions: int  # of the canary
    recall: float | None  # at 10 against exact search, of both
    self_recall: float | None  # stored vectors that find their own node
    canary: float | None
    orphans: Mapping[str, int]  # what is not 0
    alarms: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "alarms": list(self.alarms)}


def audit(database: Database, sample: int = 50, seed: int = 0) -> AuditReport:
    """Compare the index with exact search on `sample` stored vectors and as many questions of the canary.

    At most so many that exact searches read five million rows together. `seed` chooses the sample.
    """
    with database.transaction() as connection:
        size = _number(connection, _SIZE)
        values = {"seed": seed, "sample": min(sample, max(5, _ROWS // max(1, 2 * size)))}
        stored = connection.cursor(binary=True).execute(_SAMPLE, values).fetchall()
        asked = connection.cursor(binary=True).execute(_ASKED, values).fetchall()
        orphans = _orphans(connection, seed)
        exact = [connection.execute(_EXACT, {"vector": v, "k": K}).fetchall() for _, v in (*stored, *asked)]
    found = _indexed(database, [vector for _, vector in (*stored, *asked)], size)
    shares = [_share(mine, true) for mine, true in zip(found, exact, strict=True) if true]
    own = [_own(id, mine) for (id, _), mine in zip(stored, found, strict=False)]
    recalls = _mean(shares), _mean(own), canary.score(database).recall
    return AuditReport(size, len(stored), len(asked), *recalls, orphans, _alarms(*recalls, orphans))


def _indexed(database: Database, vectors: Sequence[object], size: int) -> list[list[tuple[int, float]]]:
    with database.transaction() as connection:
        rows.by_index(connection, hnsw.ef_search(K, size))
        return [connection.execute(_INDEXED, {"vector": v, "k": K}).fetchall() for v in vectors]


def _share(found: Sequence[tuple[int, float]], exact: Sequence[tuple[int, float]]) -> float:
    """Of the true nearest, up to ties with the last of them, how many were found."""
    least = exact[-1][1] - _TIE
    return min(1.0, sum(similarity >= least for _, similarity in found) / len(exact))


def _own(id: int, found: Sequence[tuple[int, float]]) -> float:
    """Found itself, or ten that are as near as itself."""
    return float(any(other == id for other, _ in found) or (len(found) == K and found[-1][1] >= 1 - _TIE))


def _orphans(connection: Connection, seed: int) -> dict[str, int]:
    values = {"seed": seed, "adjacent": _ADJACENT}
    counted = {name: _number(connection, statement, values) for name, statement in _ORPHANS.items()}
    return {name: number for name, number in counted.items() if number}


def _number(connection: Connection, statement: str, values: Mapping[str, int] | None = None) -> int:
    row = connection.execute(statement, values).fetchone()
    assert row is not None
    return int(row[0])


def _mean(shares: Sequence[float]) -> float | None:
    return sum(shares) / len(shares) if shares else None


def _alarms(
    recall: float | None, own: float | None, canary: float | None, orphans: Mapping[str, int]
) -> tuple[str, ...]:
    bounds = (
        ("recall at 10 against exact search", recall, RECALL_BOUND),
        ("self-recall at 10", own, SELF_BOUND),
        ("recall at 10 of the canary's questions", canary, CANARY_BOUND),
    )
    low = [f"{name} is {got:.3f}, want {want} or more" for name, got, want in bounds if got is not None and got < want]
    return (*low, *(f"{number} {name}, want none" for name, number in orphans.items()))
