"""What searches rely on: each breach is silent by itself, and each is refused with its mend."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from pgvector import HalfVector

from ruvllm.database import migrate
from ruvllm.database.pool import Database
from ruvllm.errors import ContractError
from ruvllm.memory import contract
from tests.database.plans import assert_uses_index, plan

INDEX = "CREATE INDEX {} ON memory.nodes USING hnsw (embedding {}) WITH (m = {}, ef_construction = {}) WHERE {}"
GOOD = ("nodes_embedding", "halfvec_ip_ops", 16, 100, "archived_at IS NULL")
SEARCH = "SELECT id FROM memory.nodes WHERE archived_at IS NULL ORDER BY embedding <#> %s::halfvec LIMIT 40"


def check(database: Database) -> None:
    with database.transaction() as connection:
        contract.check(connection)


def replace_index(database_url: str, *described: tuple[object, ...]) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("DROP INDEX memory.nodes_embedding")
        for each in described:
            owner.execute(INDEX.format(*each))


def vectors(count: int) -> NDArray[np.float32]:
    found = np.random.default_rng(3).normal(size=(count, 384))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def fill(database: Database, count: int, tenant: str = "default") -> None:
    """`count` nodes without texts: a search of ids needs none."""
    statement = (
        "INSERT INTO memory.nodes (tenant, kind, trust, content_hash, embedding)"
        " VALUES (current_setting('app.tenant'), 'Fact', 'system', sha256(%s), %s)"
    )
    rows = [(f"{tenant} {n}".encode(), HalfVector(vector)) for n, vector in enumerate(vectors(count))]
    with database.transaction(tenant) as connection, connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def test_a_migrated_database_passes(database: Database) -> None:
    check(database)


def test_another_operator_class_is_a_sequential_scan_and_refused(database: Database, database_url: str) -> None:
    fill(database, 300)
    query = [HalfVector(vectors(1)[0])]
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_sort = off")
        assert_uses_index(connection, SEARCH, query, "nodes_embedding")
    replace_index(database_url, ("nodes_embedding", "halfvec_cosine_ops", *GOOD[2:]))
    with database.transaction() as connection:
        connection.execute("SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off")
        assert "nodes_embedding" not in plan(connection, SEARCH, query)
        with pytest.raises(AssertionError, match="no use of nodes_embedding"):
            assert_uses_index(connection, SEARCH, query, "nodes_embedding")
    with pytest.raises(ContractError, match=r"operator class is halfvec_cosine_ops, want halfvec_ip_ops.*reindex"):
        check(database)


def test_without_the_iterative_scan_rows_are_lost_and_it_is_refused(database: Database) -> None:
    fill(database, 720, "many")
    fill(database, 80, "few")
    query = [HalfVector(vectors(1)[0])]
    with database.transaction("few") as connection:
        connection.execute("SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 40")
        assert len(connection.execute(SEARCH, query).fetchall()) == 40
        connection.execute("SET LOCAL hnsw.iterative_scan = off")
        assert_uses_index(connection, SEARCH, query, "nodes_embedding")
        assert len(connection.execute(SEARCH, query).fetchall()) < 40
        with pytest.raises(ContractError, match="iterative_scan: got off, want strict_order"):
            contract.check(connection)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([], "got HNSW indexes none, want nodes_embedding alone; .*ruvllm memory reindex"),
        ([GOOD, ("second", *GOOD[1:])], "got HNSW indexes nodes_embedding, second, want nodes_embedding alone"),
        ([(*GOOD[:4], "confidence > 0")], "its predicate is .*confidence.*, want .archived_at IS NULL."),
        ([(*GOOD[:2], 12, 100, GOOD[4])], "m/ef_construction is 12/100, want one of 16/100, 32/200"),
    ],
)
def test_another_index_is_refused(
    database: Database, database_url: str, described: list[tuple[object, ...]], message: str
) -> None:
    replace_index(database_url, *described)
    with pytest.raises(ContractError, match=message):
        check(database)


def test_a_column_of_another_dimension_is_refused(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("UPDATE memory.encoder SET dimension = 128")
    with pytest.raises(ContractError, match=r"column type is halfvec\(384\), want halfvec\(128\)"):
        check(database)


def test_a_successor_of_the_index_is_no_second_one(database: Database, database_url: str) -> None:
    """A rebuild is between its build and its swap; or a REINDEX CONCURRENTLY was killed, and left an invalid one."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(INDEX.format("nodes_embedding_next", "halfvec_ip_ops", 32, 200, "archived_at IS NULL"))
        check(database)
        owner.execute("ALTER INDEX memory.nodes_embedding_next RENAME TO nodes_embedding_ccnew")
        with pytest.raises(ContractError, match="nodes_embedding, nodes_embedding_ccnew"):
            check(database)
        invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'memory.nodes_embedding_ccnew'::regclass"
        owner.execute(invalid)
    check(database)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE memory.edges NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE memory.edges DISABLE ROW LEVEL SECURITY",
        "ALTER POLICY tenant ON memory.edges RENAME TO other",
    ],
)
def test_a_table_whose_tenants_could_meet_is_refused_until_it_is_mended(
    database: Database, database_url: str, change: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(change)
        with pytest.raises(ContractError, match=r"table memory\.edges: row-level security") as caught:
            check(database)
        owner.execute(str(caught.value).partition("run: ")[2])
    check(database)


def test_an_old_pgvector_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "MIN_PGVECTOR", (99, 0))
    with pytest.raises(ContractError, match=r"pgvector: got version 0\.8\.\d+, want 99\.0 .*ALTER EXTENSION"):
        check(database)
    assert migrate.MIN_PGVECTOR >= (0, 8, 4)
