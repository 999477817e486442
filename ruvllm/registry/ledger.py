"""The ledger: which version is champion, and every change of it. Append-only; knows nothing of MLflow.

Two promoters cannot both win: a row is appended under an advisory lock, and only where the champion is still the one
that the promoter judged its candidate against.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from ruvllm.errors import RegistryError

Gates = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LedgerRow:
    """One change of champion. `sha256` is of the bundle's manifest.json."""

    id: int
    action: str  # promote | rollback
    version: str
    previous: str | None
    sha256: str
    artifact_uri: str
    approved_by: str
    reason: str
    gates: Gates
    cycle_id: str | None
    created_at: datetime


@dataclass(frozen=True)
class NewRow:
    """What a caller knows of a row before it is in the ledger."""

    action: str
    version: str
    sha256: str
    artifact_uri: str
    approved_by: str
    reason: str = ""
    gates: Gates = ()
    cycle_id: str | None = None


def current(connection: Connection) -> LedgerRow | None:
    """The champion's row: the newest. None before the first promotion."""
    rows = _read(connection, _CURRENT)
    return rows[0] if rows else None


def history(connection: Connection) -> list[LedgerRow]:
    """Every row, the oldest first."""
    return _read(connection, _HISTORY)


def append(connection: Connection, expected_previous: LedgerRow | None, row: NewRow) -> LedgerRow:
    """Make `row` the champion, in the caller's transaction; the lock is held until that ends.

    Raises:
        RegistryError: the champion is no longer `expected_previous`.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('ruvllm.registry.ledger', 0))")
    found = current(connection)
    if (found and found.id) != (expected_previous and expected_previous.id):
        raise RegistryError(
            f"version {row.version}: the champion is now {_name(found)}, the gates were judged against"
            f" {_name(expected_previous)}; another promotion came first, so judge the candidate again"
        )
    values = {**vars(row), "gates": json.dumps(list(row.gates)), "previous": found.version if found else None}
    return LedgerRow(**connection.cursor(row_factory=dict_row).execute(_APPEND, values).fetchone())  # type: ignore[arg-type]  # INSERT … RETURNING gives a row


def champions(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The promotions that still stand, oldest first: a rollback takes the newest away. The last one is champion."""
    standing: list[LedgerRow] = []
    for row in rows:
        if row.action == "promote":
            standing.append(row)
        elif standing:
            standing.pop()
    return standing


def _read(connection: Connection, query: str) -> list[LedgerRow]:
    return [LedgerRow(**row) for row in connection.cursor(row_factory=dict_row).execute(query).fetchall()]


def _name(row: LedgerRow | None) -> str:
    return f"version {row.version}" if row else "none"


_COLUMNS = "id, action, version, previous, sha256, artifact_uri, approved_by, reason, gates, cycle_id, created_at"
_HISTORY = f"SELECT {_COLUMNS} FROM registry.ledger ORDER BY id"  # noqa: S608  # names are ours
_CURRENT = f"SELECT {_COLUMNS} FROM registry.ledger ORDER BY id DESC LIMIT 1"  # noqa: S608  # names are ours
_APPEND = f"""
    INSERT INTO registry.ledger (action, version, previous, sha256, artifact_uri, approved_by, reason, gates, cycle_id)
    VALUES (%(action)s, %(version)s, %(previous)s, %(sha256)s, %(artifact_uri)s, %(approved_by)s, %(reason)s, %(gates)s,
            %(cycle_id)s)
    RETURNING {_COLUMNS}
"""  # noqa: S608  # names are ours, values are parameters
