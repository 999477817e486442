"""What the planner will do, for tests: a search that reads the whole table is right, slow and silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import Connection
from psycopg.sql import SQL, Composable

Parameters = Sequence[object] | Mapping[str, object] | None


def plan(connection: Connection, query: str | Composable, parameters: Parameters = None) -> str:
    """The plan of `query` as text, planned with these parameters and not run."""
    statement = SQL("EXPLAIN (COSTS OFF) {}").format(SQL(query) if isinstance(query, str) else query)
    return "\n".join(row[0] for row in connection.execute(statement, parameters))


def assert_uses_index(
    connection: Connection, query: str | Composable, parameters: Parameters, index: str, only: bool = False
) -> None:
    """`query` is answered through `index` and reads no table in full; with `only`, without a look at the table."""
    found = plan(connection, query, parameters)
    lines = [line for line in found.splitlines() if f" using {index} " in f"{line} " or f" on {index} " in f"{line} "]
    assert lines, f"no use of {index}:\n{found}"
    assert "Seq Scan" not in found, found
    assert not only or all("Index Only Scan" in line for line in lines), found
