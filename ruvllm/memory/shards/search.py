"""One search over all shards of a tenant. Knows nothing of how shards are made, nor of edges, which stay on a shard.

    SELECT … FROM ((SELECT … FROM a ORDER BY embedding <#> v LIMIT k) UNION ALL (SELECT … FROM b …)) AS found
    ORDER BY d + 0 LIMIT k

Each branch is sorted and cut by its shard's own HNSW index. The `+ 0` keeps the outer order from matching the
branches': the planner would merge them one after another, where the plain Append asks all shards at the same time. Of
a partitioned parent the planner sends no LIMIT, and neither does it of a branch from which it expects no more than k
rows: hence the filter stands in a CASE, whose selectivity the planner does not guess, and open_tenant writes large
statistics. Whether LIMIT is sent is looked up before the first search of each shape: a plan that fetches whole shards
is refused.

An index scan ends early where a filter leaves almost nothing; a search that comes back short is done again, exactly.
"""

from __future__ import annotations

import json
from typing import Any, LiteralString

import numpy as np
import psycopg
from psycopg.sql import SQL, Composed, Identifier, Literal

from ruvllm.database.dsn import shown
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError, ShardPlanError
from ruvllm.memory.filters import Filter
from ruvllm.memory.hnsw import MAX_EF_SEARCH
from ruvllm.memory.records import Vector
from ruvllm.memory.rows import from_row, half
from ruvllm.memory.shards.layout import schema_of
from ruvllm.memory.shards.records import BranchPlan, ShardHit, ShardSet, ShardStatus

_NODE = SQL("id, uuid::text, kind, domain, trust, text, source, writer, tags, metadata, confidence, version")
_WIDTH = 12
# Filter's fields as conditions; a field that is empty asks nothing.
_CONDITIONS: dict[str, LiteralString] = {
    "kinds": "kind = ANY(%(kinds)s)",
    "exclude_kinds": "kind <> ALL(%(exclude_kinds)s)",
    "domains": "domain = ANY(%(domains)s)",
    "tags": "tags @> %(tags)s",
    "trusts": "trust = ANY(%(trusts)s)",
    "since": "created_at >= %(since)s",
    "until": "created_at < %(until)s",
    "min_confidence": "confidence >= %(min_confidence)s",
}
_STATUS = (
    "SELECT greatest(reltuples, 0)::bigint, pg_database_size(current_database()) FROM pg_class"
    " WHERE oid = 'memory.nodes'::regclass"
)


class Shards:
    """The nodes of one tenant on all shards of a set; `open_tenant` made its foreign tables. Safe among threads."""

    def __init__(self, shards: ShardSet, tenant: str = "default") -> None:
        self.shards, self.tenant = shards, tenant
        self._coordinator = Database(shards.coordinator, tenant)
        self._checked: set[tuple[object, ...]] = set()  # shapes of queries whose plans were seen

    def search(self, vector: Vector, k: int, filter: Filter = Filter(), exact: bool = False) -> list[ShardHit]:  # noqa: B008
        """The `k` live nodes nearest to the unit vector (d,) on all shards together, nearest first.

        `exact`: every shard sorts all of the tenant's nodes instead of asking its index.

        Raises:
            InputError: k or the vector is unacceptable.
            ShardPlanError: a shard would send more than its k nearest.
            DatabaseError: the coordinator or a shard is out of reach: a part of the answer would be missing.
        """
        _check(vector, k)
        if (shape := (exact, *_shape(filter))) not in self._checked:
            self._refuse_unpushed(self.plan(vector, k, filter, exact))
            self._checked.add(shape)
        rows = self._ask(self._query(filter, exact), _values(vector, k, filter))
        if len(rows) < k and not exact:
            return self.search(vector, k, filter, exact=True)
        return [ShardHit(row[_WIDTH], from_row(row), -float(row[_WIDTH + 1])) for row in rows]

    def plan(
        self,
        vector: Vector,
        k: int,
        filter: Filter = Filter(),  # noqa: B008  # frozen
        exact: bool = False,
    ) -> tuple[BranchPlan, ...]:
        """The SQL that each shard would be sent."""
        _check(vector, k)
        explain = SQL("EXPLAIN (VERBOSE, FORMAT JSON) ") + self._query(filter, exact)
        (found,) = self._ask(explain, _values(vector, k, filter))[0]
        plan = json.loads(found) if isinstance(found, str) else found
        return tuple(BranchPlan(scan["Relation Name"], scan["Remote SQL"]) for scan in _foreign_scans(plan[0]["Plan"]))

    def status(self) -> list[ShardStatus]:
        """Every shard, asked directly; one that does not answer is in the list with its error."""
        return [_status(shard.name, shard.dsn) for shard in self.shards.shards]

    def close(self) -> None:
        self._coordinator.close()

    def _query(self, filter: Filter, exact: bool = False) -> Composed:
        """With `exact`, worded so that no index matches the order."""
        names = {"node": _NODE, "where": _where(filter)}
        distance = SQL("((embedding <#> %(vector)s) + 0)") if exact else SQL("embedding <#> %(vector)s")
        branches = [
            SQL("(SELECT {node}, {shard}::text AS shard, {d} AS d FROM {table} WHERE {where} ORDER BY {d} LIMIT %(k)s)")
            .format(**names, d=distance, shard=Literal(each.name), table=Identifier(schema_of(self.tenant), each.name))
            for each in self.shards.shards
        ]  # fmt: skip
        return SQL("SELECT * FROM ({}) AS found ORDER BY d + 0, id LIMIT %(k)s").format(
            SQL(" UNION ALL ").join(branches)
        )

    def _ask(self, query: Composed, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            with self._coordinator.transaction() as connection:
                connection.execute("SET LOCAL jit = off")  # the statistics make every plan look expensive
                connection.execute("SET LOCAL statement_timeout = '30s'")  # a shard that hangs
                return connection.execute(query, values).fetchall()
        except psycopg.errors.DataException as error:
            raise InputError(f"vector: not of this memory's encoder ({str(error).splitlines()[0]})") from error
        except psycopg.errors.UndefinedTable as error:
            raise DatabaseError(f"tenant {self.tenant!r}: not open at the coordinator {shown(self.shards.coordinator)};"
                                f" open it with open_tenant ({str(error).splitlines()[0]})") from error  # fmt: skip
        except psycopg.Error as error:
            raise DatabaseError(f"search over {len(self.shards.shards)} shards: {str(error).strip()}") from error

    def _refuse_unpushed(self, plans: tuple[BranchPlan, ...]) -> None:
        asked = {plan.shard for plan in plans if plan.pushed}
        for shard in self.shards.shards:
            if shard.name not in asked:
                sent = next((plan.remote_sql for plan in plans if plan.shard == shard.name), "nothing")
                raise ShardPlanError(
                    f"{shard}: would be sent {sent[:300]!r}, want ORDER BY … LIMIT in it; its foreign server "
                    "needs extensions 'vector': open the tenant anew with open_tenant"
                )


def _check(vector: Vector, k: int) -> None:
    if not 1 <= k <= MAX_EF_SEARCH:
        raise InputError(f"k: got {k}, want 1 to {MAX_EF_SEARCH}")
    if vector.ndim != 1 or not 0.98 <= float(np.linalg.norm(vector)) <= 1.02:  # NaN fails too
        raise InputError(f"vector: got shape {vector.shape}, want one unit vector (d,)")


def _shape(filter: Filter) -> tuple[str, ...]:
    """The fields that ask something."""
    return tuple(name for name in _CONDITIONS if getattr(filter, name))


def _where(filter: Filter) -> Composed:
    asked = [SQL("(trust <> 'untrusted' OR writer = %(reader)s)"), *(SQL(_CONDITIONS[name]) for name in _shape(filter))]
    return SQL("CASE WHEN {} THEN true ELSE false END").format(SQL(" AND ").join(asked))


def _values(vector: Vector, k: int, filter: Filter) -> dict[str, Any]:
    fields = {name: getattr(filter, name) for name in (*_CONDITIONS, "reader")}
    lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
    return {**fields, **lists, "vector": half(vector), "k": k}


def _foreign_scans(plan: dict[str, Any]) -> list[dict[str, Any]]:
    here = [plan] if plan["Node Type"] == "Foreign Scan" else []
    return here + [scan for child in plan.get("Plans", []) for scan in _foreign_scans(child)]


def _status(name: str, dsn: str) -> ShardStatus:
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute(_STATUS).fetchone()
    except psycopg.Error as error:
        return ShardStatus(name, 0, 0, str(error).strip())
    return ShardStatus(name, int(row[0]), int(row[1])) if row else ShardStatus(name, 0, 0, "has no memory.nodes")
