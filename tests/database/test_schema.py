"""What the schema itself holds to: tenants apart, rows that would rot refused, an append-only ledger."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import errors, sql

from ruvllm.database.pool import Database

RNG = np.random.default_rng(7)


def unit() -> NDArray[np.float32]:
    vector = RNG.normal(size=384)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def add_node(connection: psycopg.Connection, text: str, tenant: str = "default", **columns: object) -> int:
    """Insert a node and its text; the id."""
    values = {
        "tenant": tenant, "kind": "Document", "trust": "system",
        "content_hash": hashlib.sha256(text.encode()).digest(), "embedding": HalfVector(unit()), **columns,
    }  # fmt: skip
    statement = sql.SQL("INSERT INTO memory.nodes ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(sql.Placeholder() * len(values))
    )
    (node,) = connection.execute(statement, list(values.values())).fetchone() or (0,)
    connection.execute(
        "INSERT INTO memory.node_texts (node, tenant, text, source) VALUES (%s, %s, %s, '')", [node, tenant, text]
    )
    return int(node)


def test_tenants_never_meet(database: Database) -> None:
    with database.transaction("a") as connection:
        mine = add_node(connection, "a secret", "a")
    with database.transaction("b") as connection:
        assert connection.execute("SELECT count(*) FROM memory.nodes").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM memory.node_texts").fetchone() == (0,)
        assert connection.execute("UPDATE memory.nodes SET domain = 'x'").rowcount == 0
        assert connection.execute("DELETE FROM memory.nodes WHERE id = %s", [mine]).rowcount == 0
        add_node(connection, "a secret", "b")  # the same content is no duplicate of another tenant's
    with pytest.raises(errors.InsufficientPrivilege), database.transaction("b") as connection:
        add_node(connection, "planted", "a")
    with pytest.raises(errors.InsufficientPrivilege), database.transaction("a") as connection:
        connection.execute("UPDATE memory.nodes SET tenant = 'b'")


def test_without_a_tenant_there_is_nothing(database: Database) -> None:
    with database.transaction() as connection:
        add_node(connection, "x")
        connection.execute("SELECT set_config('app.tenant', '', true)")
        assert connection.execute("SELECT count(*) FROM memory.nodes").fetchone() == (0,)


def test_every_table_with_a_tenant_forces_row_security(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            """
            SELECT c.oid::regclass::text, c.relrowsecurity, c.relforcerowsecurity,
                   EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polwithcheck IS NOT NULL)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE a.attname = 'tenant' AND c.relkind IN ('r', 'p')
            """
        ).fetchall()
    assert len(tables) >= 15
    assert [row for row in tables if row[1:] != (True, True, True)] == []


def test_every_table_of_ours_has_a_tenant_or_a_reason(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            """
            SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('memory', 'serving', 'learning', 'registry')
              AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant')
            """
        ).fetchall()
    # of the whole installation
    assert sorted(row[0] for row in rows) == ["memory.change_log", "memory.encoder", "registry.ledger"]


def test_a_search_under_row_security_finds_k(database: Database) -> None:
    """One row in ten is the tenant's; without an iterative scan the index gives about ef_search / 10 rows."""
    for tenant, count in (("many", 720), ("few", 80)):
        with database.transaction(tenant) as connection:
            for n in range(count):
                add_node(connection, f"{tenant} {n}", tenant)
    query = "SELECT id FROM memory.nodes WHERE archived_at IS NULL ORDER BY embedding <#> %s::halfvec LIMIT 40"
    with database.transaction("few") as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        connection.execute("SET LOCAL enable_sort = off")
        plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {query}", [HalfVector(unit())]))
        found = len(connection.execute(query, [HalfVector(unit())]).fetchall())
        connection.execute("SET LOCAL hnsw.iterative_scan = off")
        without = len(connection.execute(query, [HalfVector(unit())]).fetchall())
    assert "nodes_embedding" in plan
    assert (found, without < 40) == (40, True)


def test_uuid7_is_of_version_7_and_ordered_by_time(database: Database) -> None:
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT memory.uuid7(), pg_sleep(0.002), clock_timestamp() FROM generate_series(1, 20)"
        ).fetchall()
    ids = [row[0] for row in rows]
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    assert ids == sorted(ids)
    assert abs((ids[-1].int >> 80) / 1000 - time.time()) < 60


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"embedding": HalfVector(np.zeros(384, np.float32))}, "embedding"),
        ({"embedding": HalfVector(2 * np.ones(384, np.float32))}, "embedding"),
        ({"kind": "Rumour"}, "kind"),
        ({"trust": "total"}, "trust"),
        ({"confidence": 1.5}, "confidence"),
        ({"content_hash": b"short"}, "content_hash"),
        ({"tenant": ""}, "tenant"),
    ],
)
def test_nodes_that_would_rot_are_refused(database_url: str, columns: dict[str, object], constraint: str) -> None:
    with psycopg.connect(database_url) as connection:
        from pgvector.psycopg import register_vector

        register_vector(connection)
        with pytest.raises(errors.CheckViolation, match=constraint):
            add_node(connection, "text", **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [np.full(384, np.nan), np.full(384, np.inf), np.ones(383)])
def test_vectors_that_are_none_are_refused(database: Database, broken: NDArray[np.float64]) -> None:
    with pytest.raises(errors.DataException), database.transaction() as connection:
        add_node(connection, "text", embedding=HalfVector(broken.astype(np.float32)))


@pytest.mark.parametrize("text", ["", "x" * 20_001])
def test_texts_out_of_bounds_are_refused(database: Database, text: str) -> None:
    with pytest.raises(errors.CheckViolation), database.transaction() as connection:
        add_node(connection, text)


def test_live_content_is_unique_and_archived_content_is_not(database: Database) -> None:
    with database.transaction() as connection:
        first = add_node(connection, "once")
    with pytest.raises(errors.UniqueViolation), database.transaction() as connection:
        add_node(connection, "once")
    with database.transaction() as connection:
        connection.execute("UPDATE memory.nodes SET archived_at = now() WHERE id = %s", [first])
        add_node(connection, "once")


@pytest.mark.parametrize(
    ("to_itself", "rel", "weight"), [(True, "Cites", 1.0), (False, "Knows", 1.0), (False, "Cites", 1.5)]
)
def test_edges_that_would_rot_are_refused(database: Database, to_itself: bool, rel: str, weight: float) -> None:
    with pytest.raises(errors.CheckViolation), database.transaction() as connection:  # noqa: PT012
        one, two = add_node(connection, "one"), add_node(connection, "two")
        connection.execute(
            "INSERT INTO memory.edges (tenant, src, dst, rel, weight, created_by) "
            "VALUES ('default', %s, %s, %s, %s, '')",
            [one, one if to_itself else two, rel, weight],
        )


@pytest.mark.parametrize("change", ["UPDATE registry.ledger SET version = '2'", "DELETE FROM registry.ledger"])
@pytest.mark.parametrize("as_owner", [False, True])
def test_the_ledger_is_append_only(database: Database, database_url: str, change: str, as_owner: bool) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO registry.ledger (action, version, sha256, artifact_uri, approved_by, gates) "
            "VALUES ('promote', '1', '', '', 'me', '{}')"
        )
    if as_owner:
        with pytest.raises(errors.RaiseException, match="append-only"), psycopg.connect(database_url) as owner:
            owner.execute(change)
    else:
        with pytest.raises(errors.InsufficientPrivilege), database.transaction() as connection:
            connection.execute(change)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE memory.mine ()",
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine ()",
        "ALTER TABLE memory.nodes DISABLE ROW LEVEL SECURITY",
        "DROP TABLE memory.edges",
        "TRUNCATE memory.nodes CASCADE",
        "UPDATE memory.encoder SET id = 'other'",
        "CREATE ROLE other SUPERUSER",
    ],
)
def test_the_app_changes_rows_and_nothing_else(database: Database, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege), database.transaction() as connection:
        connection.execute(statement)
