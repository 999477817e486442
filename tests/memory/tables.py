"""All of memory's tables, row by row, to compare before and after. Vectors and texts too."""

from __future__ import annotations

from ruvllm.database.pool import Database

_TABLES = {
    "nodes": "true",
    "node_texts": "true",
    "node_words": "true",
    "node_usage": "true",
    "minhash_bands": "true",
    "edges": "true",
    "adjacency": "neighbours <> '{}'",  # that a node once had an edge is nothing
}


def contents(database: Database) -> dict[str, list[str]]:
    """Every column of every row, as text, in order."""
    with database.transaction() as connection:
        return {
            name: sorted(row[0] for row in connection.execute(f"SELECT x::text FROM memory.{name} AS x WHERE {which}"))
            for name, which in _TABLES.items()
        }
