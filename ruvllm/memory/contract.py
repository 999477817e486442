"""What searches rely on, read from the catalogue before the first of them. Knows nothing of rows or of settings.

Each of these is silent where it is wrong: another operator class, and a search reads the whole table; the iterative
scan off, and row-level security leaves fewer than k rows; a table whose row-level security is not forced shows its
owner every tenant's rows; pgvector before 0.8.4 can corrupt an index under vacuum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import Connection

from ruvllm.database.migrate import MIN_PGVECTOR
from ruvllm.errors import ContractError
from ruvllm.memory.hnsw import BANDS, Band

NAME = "nodes_embedding"  # the index that searches use
NEXT = "nodes_embedding_next"  # the one that is to take its place (ruvllm/memory/tidy/bands.py): built, or on the way
_OPERATORS = "halfvec_ip_ops"
_PREDICATE = "(archived_at IS NULL)"
_REBUILD = 'run "ruvllm memory reindex"'
_DOCTOR = 'run "ruvllm doctor"'

_INDEXES = """
    SELECT c.relname, i.indisvalid AND i.indisready, o.opcname, coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
           format_type(a.atttypid, a.atttypmod), c.reloptions
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
    JOIN pg_opclass o ON o.oid = i.indclass[0] JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1
    WHERE i.indrelid = 'memory.nodes'::regclass AND m.amname IN ('hnsw', 'ivfflat') ORDER BY c.relname
"""

# Of a table that the application may not touch (memory.analysts) the policies are its own affair.
_UNPROTECTED = """
    SELECT c.oid::regclass::text
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = ANY (
            SELECT oid FROM pg_namespace WHERE nspname IN ('memory', 'serving', 'learning'))
      AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND (
            NOT has_table_privilege('ruvllm_app', c.oid, 'SELECT, INSERT, UPDATE, DELETE') OR EXISTS (
            SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'tenant' AND p.polwithcheck IS NOT NULL)))
    ORDER BY 1
"""

_SETTINGS = """
    SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
           current_setting('hnsw.iterative_scan', true), (SELECT format('halfvec(%s)', dimension) FROM memory.encoder)
"""


@dataclass(frozen=True)
class Index:
    """An approximate index of memory.nodes, as the catalogue has it."""

    name: str
    valid: bool
    operators: str
    predicate: str
    column: str  # "halfvec(384)"
    options: tuple[str, ...]  # "m=16", ...

    @property
    def parameters(self) -> str:
        """m/ef_construction, as it was told; "?" for one that was not."""
        told = dict(each.split("=", 1) for each in self.options)
        return f"{told.get('m', '?')}/{told.get('ef_construction', '?')}"

    def fits(self, band: Band) -> bool:
        """Whether it is what searches use, built with the band's parameters."""
        return (self.operators, self.predicate) == (_OPERATORS, _PREDICATE) and self.parameters == _parameters(band)


def check(connection: Connection) -> None:
    """Pass, or refuse with the mend in the message; three look-ups in the catalogue.

    Raises:
        ContractError: of the first thing that is not as searches need it.
    """
    version, iterative, column = connection.execute(_SETTINGS).fetchone() or (None, None, None)
    _check_version(version)
    _check_iterative(iterative)
    _check_index(indexes(connection), column or "of no encoder")
    unprotected = [name for (name,) in connection.execute(_UNPROTECTED)]
    if unprotected:
        raise ContractError(
            f"table {unprotected[0]}: row-level security with a policy named tenant is not enabled and forced; as the"
            f" tables' owner run: SELECT memory.keep_tenants_apart('{unprotected[0]}')"
        )


def indexes(connection: Connection) -> list[Index]:
    """The approximate indexes of memory.nodes, invalid ones too."""
    found = connection.execute(_INDEXES)
    return [
        Index(name, valid, operators, predicate, column, tuple(options or ()))
        for name, valid, operators, predicate, column, options in found
    ]


def _check_version(got: str | None) -> None:
    wanted = ".".join(map(str, MIN_PGVECTOR))
    if tuple(int(part) for part in re.findall(r"\d+", got or "")[:3]) < MIN_PGVECTOR:
        raise ContractError(
            f"pgvector: got version {got or 'none'}, want {wanted} or newer: older ones can corrupt an index; install a"
            " newer one on the server, then run 'ALTER EXTENSION vector UPDATE'"
        )


def _check_iterative(got: str | None) -> None:
    if got not in ("strict_order", "relaxed_order"):
        raise ContractError(
            f"hnsw.iterative_scan: got {got or 'nothing'}, want strict_order: off, a search of one tenant leaves rows"
            " out and says nothing; every connection of ruvllm.database.Database has it on, so take one of those"
        )


def _check_index(found: list[Index], column: str) -> None:
    valid = [index for index in found if index.valid and index.name != NEXT]
    if len(valid) != 1:
        names = ", ".join(index.name for index in valid) or "none"
        raise ContractError(f"memory.nodes: got HNSW indexes {names}, want {NAME} alone; {_REBUILD}")
    index = valid[0]
    for what, got, wanted in (
        ("operator class", index.operators, _OPERATORS),
        ("predicate", index.predicate, _PREDICATE),
        ("column type", index.column, column),
    ):
        if got != wanted:
            raise ContractError(
                f"index memory.{index.name}: its {what} is {got or 'none'}, want {wanted}: with another one searches"
                f" read the whole table; {_DOCTOR if what == 'column type' else _REBUILD}"
            )
    if not any(index.fits(band) for band in BANDS):
        known = ", ".join(map(_parameters, BANDS))
        raise ContractError(
            f"index memory.{index.name}: m/ef_construction is {index.parameters}, want one of {known}; {_REBUILD}"
        )


def _parameters(band: Band) -> str:
    return f"{band.m}/{band.ef_construction}"
