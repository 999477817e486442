"""Digests of tables: do two databases hold the same rows? Knows nothing of what the rows mean.

A row's hash is Postgres' own of the row as text; a table's is their sum, which no order changes. `alike` leaves out
what differs between two runs that did the same: ids, times (`at` in a document too), and how long things took.
"""

from __future__ import annotations

from collections.abc import Callable

from psycopg import Connection, errors, sql

from ruvllm.backup.manifest import TableDigest
from ruvllm.errors import DatabaseError

SCHEMAS = ("memory", "serving", "learning", "registry")
# The log that replicas follow counts transactions, and which log it is belongs to one server.
_OF_ONE_SERVER = {("memory", "changes"), ("memory", "change_log")}
_TIMES = ("timestamp with time zone", "interval", "uuid")
_INSIDE = "at"  # what documents (jsonb) name the moment at which they were written
_SPENT = ("_ms", "_s", "seconds", "latency")

Wanted = Callable[[str, str], bool]


def everything(_column: str, _kind: str) -> bool:
    """Every column: for a restored database."""
    return True


def alike(column: str, kind: str) -> bool:
    """Columns that a repeated run has again."""
    numbered = kind == "bigint" or column == "id" or column.endswith("_id")
    return not (numbered or kind in _TIMES or column.endswith(_SPENT))


def table_digests(connection: Connection, wanted: Wanted = everything) -> dict[str, TableDigest]:
    """The digest of every table of ours, in the caller's transaction.

    Raises:
        DatabaseError: row-level security would hide rows from this role.
    """
    connection.execute("SET LOCAL TIME ZONE 'UTC'")
    connection.execute("SET LOCAL row_security = off")  # an error where rows would be hidden, instead of too few
    columns = _columns(connection, wanted)
    try:
        return {f"{schema}.{table}": _digest(connection, schema, table, c) for (schema, table), c in columns.items()}
    except errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"digests: {str(error).strip()}; they count every tenant's rows: "
            "set DATABASE_URL to a superuser or a role with BYPASSRLS"
        ) from error


def _columns(connection: Connection, wanted: Wanted) -> dict[tuple[str, str], list[sql.Composable]]:
    """What of each table's rows is hashed."""
    rows = connection.execute(
        "SELECT c.table_schema, c.table_name, c.column_name, c.data_type FROM information_schema.columns AS c"
        " JOIN information_schema.tables AS t USING (table_schema, table_name)"
        " WHERE c.table_schema = ANY(%s) AND t.table_type = 'BASE TABLE' ORDER BY 1, 2, c.ordinal_position",
        [list(SCHEMAS)],
    ).fetchall()
    tables: dict[tuple[str, str], list[sql.Composable]] = {}
    for schema, table, column, kind in rows:
        if (schema, table) not in _OF_ONE_SERVER and wanted(column, kind):
            timeless = kind == "jsonb" and not wanted(_INSIDE, _TIMES[0])
            tables.setdefault((schema, table), []).append(_timeless(column) if timeless else sql.Identifier(column))
    return tables


def _timeless(column: str) -> sql.Composable:
    """A document without its moment; a list or a scalar as it is."""
    return sql.SQL("CASE jsonb_typeof({0}) WHEN 'object' THEN {0} - {1} ELSE {0} END").format(
        sql.Identifier(column), sql.Literal(_INSIDE)
    )


def _digest(connection: Connection, schema: str, table: str, columns: list[sql.Composable]) -> TableDigest:
    row = connection.execute(
        sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(ROW({})::text, 0)::numeric), 0)::text FROM {}").format(
            sql.SQL(", ").join(columns), sql.Identifier(schema, table)
        )
    ).fetchone()
    assert row is not None  # an aggregate gives one
    return TableDigest(row[0], row[1])
