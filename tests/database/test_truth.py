"""Migration 0003: tenants in every key, packed adjacency kept by whoever writes, and a log that misses no change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
from psycopg import errors

from ruvllm.database import migrate
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.memory import contract, edges
from ruvllm.memory.hnsw import BANDS
from ruvllm.memory.records import RELATIONS
from ruvllm.memory.tidy import bands
from tests.database.plans import assert_uses_index

NODE = """
    INSERT INTO memory.nodes (tenant, kind, trust, content_hash, embedding)
    SELECT %s, 'Fact', 'system', sha256(%s), ('[1' || repeat(',0', dimension - 1) || ']')::halfvec FROM memory.encoder
    RETURNING id
"""
TEXT = "INSERT INTO memory.node_texts (node, tenant, text, source) VALUES (%s, %s, 'text', '')"
EDGE = "INSERT INTO memory.edges (tenant, src, dst, rel, weight, created_by) VALUES (%s, %s, %s, %s, %s, '')"


def add_nodes(connection: psycopg.Connection, count: int, tenant: str = "default") -> list[int]:
    ids = []
    for _ in range(count):
        [id] = connection.execute(NODE, [tenant, np.random.default_rng().bytes(16)]).fetchone() or (0,)
        connection.execute(TEXT, [id, tenant])
        ids.append(int(id))
    return ids


def add_edge(connection: psycopg.Connection, src: int, dst: int, weight: float = 0.5, rel: str = "Cites") -> None:
    edges.link(connection, [(src, dst, rel, weight)], "test")


@contextmanager
def logged(database: Database) -> Iterator[Counter[tuple[int, str]]]:
    """What the block's own transactions put into the log, each committed change once or more."""
    found: Counter[tuple[int, str]] = Counter()
    query = "SELECT node, what FROM memory.changes WHERE seq > %s"
    with database.transaction() as connection:
        [last] = connection.execute("SELECT coalesce(max(seq), 0) FROM memory.changes").fetchone() or (0,)
    yield found
    with database.transaction() as connection:
        found.update((int(node), str(what)) for node, what in connection.execute(query, [last]))


def packed(connection: psycopg.Connection) -> dict[int, list[tuple[int, float, int]]]:
    rows = connection.execute("SELECT node, neighbours, weights, relations FROM memory.adjacency")
    return {int(node): list(zip(*columns, strict=True)) for node, *columns in rows}


def recomputed(connection: psycopg.Connection) -> dict[int, list[tuple[int, float, int]]]:
    """The packed rows as they have to be, from the edges, in Python."""
    ends: dict[int, list[tuple[float, int, int, int]]] = {}
    for id, src, dst, rel, weight in connection.execute("SELECT id, src, dst, rel, weight FROM memory.edges"):
        code = RELATIONS.index(rel) + 1
        ends.setdefault(src, []).append((-weight, id, dst, code))
        ends.setdefault(dst, []).append((-weight, id, src, -code))
    return {node: [(o, -w, c) for w, _, o, c in sorted(found)[:64]] for node, found in ends.items()}


def assert_packed(database: Database) -> None:
    with database.transaction() as connection:
        got = {node: row for node, row in packed(connection).items() if row}
        assert got == recomputed(connection)


def test_a_new_node_is_logged_once_with_its_text(database: Database) -> None:
    with logged(database) as log, database.transaction() as connection:
        a, b = add_nodes(connection, 2)
    assert log == {(a, "node"): 1, (b, "node"): 1}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE memory.nodes SET trust = 'corroborated' WHERE id = {}",
        "UPDATE memory.nodes SET archived_at = now() WHERE id = {}",
        "UPDATE memory.node_texts SET text = 'other' WHERE node = {}",
        "UPDATE memory.node_texts SET tags = '{{geo}}' WHERE node = {}",
        "UPDATE memory.node_texts SET writer = 'ada' WHERE node = {}",
        "DELETE FROM memory.node_texts WHERE node = {}",
        "DELETE FROM memory.nodes WHERE id = {}",
    ],
)
def test_what_a_replica_has_to_see_is_logged(database: Database, change: str) -> None:
    with database.transaction() as connection:
        a, _ = add_nodes(connection, 2)
    with logged(database) as log, database.transaction() as connection:
        connection.execute(change.format(a))
    assert log == {(a, "node"): 1}


def test_a_text_that_comes_after_its_node_is_logged(database: Database) -> None:
    with database.transaction() as connection:
        [a] = connection.execute(NODE, ["default", b"late"]).fetchone() or (0,)
    with logged(database) as log, database.transaction() as connection:
        connection.execute(TEXT, [a, "default"])
    assert log == {(a, "node"): 1}


def test_edges_are_logged_at_both_ends_and_only_where_a_packed_row_changed(database: Database) -> None:
    with database.transaction() as connection:
        a, b, c = add_nodes(connection, 3)
    with logged(database) as log, database.transaction() as connection:
        add_edge(connection, a, b)
    assert log == {(a, "edges"): 1, (b, "edges"): 1}
    for change, ends in (
        ("UPDATE memory.edges SET uses = uses + 1, last_used_at = now()", ()),
        ("UPDATE memory.edges SET weight = 0.25", (a, b)),
        ("UPDATE memory.edges SET rel = 'Follows'", (a, b)),
        (f"UPDATE memory.edges SET dst = {c}", (a, b, c)),
        (f"UPDATE memory.edges SET src = {b}", (a, b, c)),
        ("DELETE FROM memory.edges", (b, c)),
    ):
        with logged(database) as log, database.transaction() as connection:
            connection.execute(change)
        assert log == dict.fromkeys([(end, "edges") for end in ends], 1), change
        assert_packed(database)


def test_an_edge_too_light_for_a_hubs_row_leaves_it_alone(database: Database) -> None:
    with database.transaction() as connection:
        hub, *spokes = add_nodes(connection, 67)
        edges.link(connection, [(hub, spoke, "Cites", 0.5) for spoke in spokes[:65]], "test")
    with logged(database) as log, database.transaction() as connection:
        add_edge(connection, spokes[65], hub, 0.1)
    assert log == {(spokes[65], "edges"): 1}
    with logged(database) as log, database.transaction() as connection:
        connection.execute("DELETE FROM memory.edges WHERE dst = %s", [spokes[0]])
    assert log == {(spokes[0], "edges"): 1, (hub, "edges"): 1}
    assert_packed(database)


def test_a_nodes_deletion_reaches_its_neighbours_rows_and_the_log(database: Database) -> None:
    with database.transaction() as connection:
        hub, a, b, c = add_nodes(connection, 4)
        for src, dst in ((hub, a), (b, hub), (a, b), (b, c)):
            add_edge(connection, src, dst)
    with logged(database) as log, database.transaction() as connection:
        connection.execute("DELETE FROM memory.nodes WHERE id = ANY(%s)", [[hub, c]])
    assert {(hub, "node"), (c, "node"), (a, "edges"), (b, "edges")} <= set(log)
    assert_packed(database)
    with database.transaction() as connection:
        assert set(packed(connection)) == {a, b}


def test_edges_that_a_merge_moves_reach_every_row(database: Database) -> None:
    with database.transaction() as connection:
        heir, loser, a, b = add_nodes(connection, 4)
        for src, dst in ((loser, a), (b, loser), (heir, loser), (heir, a)):
            add_edge(connection, src, dst, 0.75 if src == loser else 0.5)
    with logged(database) as log, database.transaction() as connection:
        edges.move(connection, loser, heir)
    assert {(node, "edges") for node in (heir, loser, a, b)} == set(log)
    assert_packed(database)
    with database.transaction() as connection:
        assert packed(connection)[heir] == [(a, 0.75, 1), (b, 0.5, -1)]


def test_many_edges_and_deletions_at_random_keep_every_row_right(database: Database) -> None:
    rng = np.random.default_rng(11)
    with database.transaction() as connection:
        ids = add_nodes(connection, 30)
    for _ in range(5):
        pairs = [(int(s), int(d)) for s, d in rng.choice(ids, (200, 2)) if s != d]
        new = [(s, d, RELATIONS[int(rng.integers(6))], float(rng.integers(1, 5)) / 4) for s, d in pairs]
        with database.transaction() as connection:
            edges.link(connection, new, "test")
            connection.execute("DELETE FROM memory.edges WHERE id % 7 = 3")
            connection.execute("UPDATE memory.edges SET weight = 1 - weight / 2 WHERE id % 5 = 1")
            connection.execute("DELETE FROM memory.nodes WHERE id = %s", [int(rng.choice(ids))])
        assert_packed(database)


def test_one_tenants_edge_cannot_end_at_anothers_node(database: Database) -> None:
    with database.transaction("a") as connection:
        mine = add_nodes(connection, 1, "a")[0]
    with database.transaction("b") as connection:
        theirs, other = add_nodes(connection, 2, "b")
        assert edges.link(connection, [(theirs, mine, "Cites", 0.5), (theirs, other, "Cites", 0.5)], "test") == 1
    for src, dst in ((theirs, mine), (mine, theirs)):
        with pytest.raises(errors.ForeignKeyViolation), database.transaction("b") as connection:
            connection.execute(EDGE, ["b", src, dst, "Cites", 0.5])
    for statement in (
        "UPDATE memory.nodes SET archived_at = now(), superseded_by = %s WHERE id = %s",
        "UPDATE memory.edges SET dst = %s WHERE src = %s",
        "INSERT INTO memory.node_usage (tenant, node, uses) VALUES ('b', %s, %s)",
        "INSERT INTO memory.adjacency (tenant, node, neighbours) VALUES ('b', %s, ARRAY[%s])",
    ):
        with pytest.raises(errors.ForeignKeyViolation), database.transaction("b") as connection:
            connection.execute(statement, [mine, theirs])


def test_both_directions_are_read_from_their_index_alone(database: Database, database_url: str) -> None:
    with database.transaction() as connection:
        ids = add_nodes(connection, 60)
        edges.link(connection, [(s, d, "Cites", 0.5) for s in ids for d in ids if s != d], "test")
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("VACUUM ANALYZE memory.edges, memory.nodes")
    with database.transaction() as connection:
        for end, other, index in (("src", "dst", "edges_from"), ("dst", "src", "edges_to")):
            query = f"SELECT {other}, rel, weight FROM memory.edges WHERE {end} = %s ORDER BY weight DESC, id LIMIT 64"
            assert_uses_index(connection, query, [ids[0]], index, only=True)
        query = "SELECT archived_at, trust FROM memory.nodes WHERE id = %s"
        assert_uses_index(connection, query, [ids[0]], "nodes_of_tenant", only=True)


def test_relations_have_one_order_on_both_sides(database: Database) -> None:
    with database.transaction() as connection:
        codes = [connection.execute("SELECT memory.relation_code(%s)", [r]).fetchone() for r in RELATIONS]
        assert codes == [(place,) for place in range(1, len(RELATIONS) + 1)]
        assert connection.execute("SELECT memory.relation_code('Knows')").fetchone() == (None,)
        [check] = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'edges_rel_check'"
        ).fetchone() or ("",)
    assert all(f"'{relation}'" in check for relation in RELATIONS)
    assert check.count("::text") == len(RELATIONS)


@pytest.mark.parametrize("table", ["nodes", "node_texts", "edges"])
def test_truncating_begins_another_log(database: Database, database_url: str, table: str) -> None:
    log = "SELECT id FROM memory.change_log"
    with database.transaction() as connection:
        add_edge(connection, *add_nodes(connection, 2))
        before = connection.execute(log).fetchone()
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(f"TRUNCATE memory.{table} CASCADE")
    with database.transaction() as connection:
        assert connection.execute(log).fetchone() != before
    assert_packed(database)


@contextmanager
def plain_owner(dsn: str) -> Iterator[str]:
    """The DSN of an owner who is no superuser, as on a managed server."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE EXTENSION IF NOT EXISTS vector")
        admin.execute("DO $$ BEGIN CREATE ROLE plainer LOGIN PASSWORD 'p'; EXCEPTION WHEN duplicate_object THEN END $$")
        for (role,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'ruvllm\\_%'").fetchall():
            admin.execute(f"GRANT {role} TO plainer")
        admin.execute(f"ALTER DATABASE {admin.info.dbname} OWNER TO plainer")
    yield psycopg.conninfo.make_conninfo(dsn, user="plainer", password="p")


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("superuser", [True, False])
def test_an_upgrade_with_data_packs_it_and_drops_edges_between_tenants(
    empty_database_url: str, superuser: bool
) -> None:
    with plain_owner(empty_database_url) as plain:
        dsn = empty_database_url if superuser else plain
        migrate.upgrade(dsn, "test-encoder", 8, "0002")
        with psycopg.connect(empty_database_url, autocommit=True) as admin:
            a, b, c = (add_nodes(admin, 2, tenant) for tenant in ("a", "b", "c"))
            for tenant, src, dst in (("a", a[0], a[1]), ("b", b[0], b[1]), ("c", c[0], a[0]), ("c", b[0], c[0])):
                admin.execute(EDGE, [tenant, src, dst, "Follows", 0.5])
        migrate.upgrade(dsn, "test-encoder", 8, "0003")
    with psycopg.connect(empty_database_url) as admin:
        assert sorted(admin.execute("SELECT src, dst FROM memory.edges").fetchall()) == [tuple(a), tuple(b)]
        assert packed(admin) == recomputed(admin)
        assert admin.execute("SELECT count(*) FROM memory.changes").fetchone() == (0,)
        assert admin.execute(
            "SELECT count(*) FROM pg_class WHERE relrowsecurity AND NOT relforcerowsecurity"
        ).fetchone() == (0,)


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("superuser", [True, False])
def test_an_upgrade_refuses_a_text_of_another_tenants_node(empty_database_url: str, superuser: bool) -> None:
    """A key that were marked valid without a look would let it pass."""
    with plain_owner(empty_database_url) as plain:
        dsn = empty_database_url if superuser else plain
        migrate.upgrade(dsn, "test-encoder", 8, "0002")
        with psycopg.connect(empty_database_url, autocommit=True) as admin:
            add_nodes(admin, 1, "a")
            admin.execute("UPDATE memory.node_texts SET tenant = 'b'")
        with pytest.raises(migrate.DatabaseError, match="node_texts_tenant_node_fkey"):
            migrate.upgrade(dsn, "test-encoder", 8, "0003")


@pytest.mark.usefixtures("template")
def test_all_of_it_holds_where_the_owner_is_no_superuser(empty_database_url: str) -> None:
    """Keys and cascades run as the owner, whom forced row-level security binds as well."""
    with plain_owner(empty_database_url) as dsn:
        migrate.upgrade(dsn, "test-encoder", 8)
        database = Database(dsn)
        with database.transaction() as connection:
            contract.check(connection)
            hub, a, b = add_nodes(connection, 3)
            add_edge(connection, hub, a)
            add_edge(connection, b, hub)
            add_edge(connection, a, b)
        assert_packed(database)
        with logged(database) as log, database.transaction() as connection:
            connection.execute("DELETE FROM memory.nodes WHERE id = %s", [hub])
        assert {(hub, "node"), (a, "edges"), (b, "edges")} <= set(log)
        assert_packed(database)
        bands.rebuild(database, BANDS[1])
        with database.transaction() as connection:
            contract.check(connection)
            assert bands.built_for(contract.indexes(connection)) == BANDS[1]
        with database.owner() as owner:
            assert owner.execute("SELECT count(*) FROM memory.nodes").fetchone() == (0,)  # no tenant, no rows
        database.close()


def test_of_writers_at_once_one_wakes_the_replicas_and_none_waits(database: Database, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as listener:
        listener.execute("LISTEN ruvllm_memory")
        with database.transaction() as first:
            add_nodes(first, 2)
            with database.transaction() as second:
                add_nodes(second, 1)
            assert list(listener.notifies(timeout=0)) == []
        assert len(list(listener.notifies(timeout=30, stop_after=1))) == 1
        with database.transaction() as third:
            third.execute("UPDATE memory.nodes SET domain = 'x'")
        assert len(list(listener.notifies(timeout=30, stop_after=1))) == 1
        with database.transaction() as reader:
            reader.execute("UPDATE memory.nodes SET domain = 'y' WHERE false")
        listener.execute("SELECT 1")
        assert list(listener.notifies(timeout=0)) == []


@pytest.mark.usefixtures("template")  # ruvllm_app is there
@pytest.mark.parametrize(
    ("options", "may"), [("WITH ADMIN TRUE, SET FALSE, INHERIT FALSE", True), ("WITH SET FALSE", False)]
)
def test_an_owner_who_made_the_role_may_become_it(empty_database_url: str, options: str, may: bool) -> None:
    """PostgreSQL 16 gives who creates a role only the right to grant it: nothing of ours could connect."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        if connection.info.server_version < 160_000:
            pytest.skip("before PostgreSQL 16 a member may become the role")
        connection.execute("CREATE EXTENSION vector")
        connection.execute("DROP ROLE IF EXISTS maker")
        connection.execute("CREATE ROLE maker LOGIN CREATEROLE PASSWORD 'maker'")
        connection.execute(f"GRANT ruvllm_app TO maker {options}")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO maker")
    theirs = psycopg.conninfo.make_conninfo(empty_database_url, user="maker", password="maker")
    if not may:
        with pytest.raises(DatabaseError, match="GRANT ruvllm_app TO maker WITH SET TRUE"):
            migrate.upgrade(theirs, "test-encoder", 384)
        return
    migrate.upgrade(theirs, "test-encoder", 384)
    database = Database(theirs)
    database.ping()
    database.close()
