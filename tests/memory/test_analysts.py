"""SQL for analysts: logins that read views of one tenant, find by vector and by words, and can do nothing else."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import Connection, errors
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from ruvllm.database import analysts
from ruvllm.errors import DatabaseError, InputError
from ruvllm.memory.records import RELATIONS, NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge
from ruvllm.memory.tidy.dedup import dedup
from ruvllm.settings import PROJECT_ROOT

VIEWS = {
    "me", "nodes", "embeddings", "edges", "neighbours", "sources", "kinds", "growth", "usage", "concepts",
    "supersessions", "runs", "writes", "waiting", "canary_queries", "duplicates_pending", "index_health",
}  # fmt: skip
REFUSED = (
    errors.InsufficientPrivilege,
    errors.ObjectNotInPrerequisiteState,
    errors.FeatureNotSupported,
    errors.UndefinedObject,
    errors.InvalidParameterValue,
)
Login = Callable[..., Connection]


@pytest.fixture
def owner(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def login(owner: Connection, database_url: str, tmp_path: Path) -> Iterator[Login]:
    """Makes the analyst `ana_test` of a tenant and opens a session of it."""
    opened: list[Connection] = []

    def open_as(tenant: str = "default") -> Connection:
        access = analysts.add(owner, "ana_test", tenant, tmp_path / "analysts")
        address = make_conninfo(database_url, user="ana_test", password="", passfile=str(access.password_file))
        opened.append(psycopg.connect(address, autocommit=True))
        return opened[-1]

    yield open_as
    for connection in opened:
        connection.close()
    analysts.remove(owner, "ana_test", tmp_path / "analysts")


@pytest.fixture
def filled(memory: Memory) -> Memory:
    nodes = [
        NewNode(f"river {i} of country {i % 7}", "Fact", "atlas", f"land{i % 3}", tags=("water",)) for i in range(60)
    ]
    ids = memory.add(
        [*nodes, NewNode("a rumour of mallory", trust="untrusted", writer="mallory"), NewNode("summary", "Concept")]
    ).ids
    memory.link_all([(ids[0], ids[1], "Cites", 0.5), (ids[-1], ids[0], "Contains", 1.0)], "test")
    memory.touch([ids[0]])
    return memory


def literal(memory: Memory, text: str) -> str:
    return "[" + ",".join(f"{x:.6g}" for x in memory.embedder.embed_one(text)) + "]"


# -- views


def test_the_views_show_the_tenants_memory(filled: Memory, login: Login) -> None:
    session = login()
    assert session.execute("SELECT login, tenant, encoder, dimension FROM me").fetchone() == (
        "ana_test", "default", "test-encoder", 384,
    )  # fmt: skip
    assert session.execute("SELECT count(*) FROM nodes").fetchone() == (62,)
    used = session.execute("SELECT text, tags, uses, live FROM nodes WHERE uses > 0").fetchall()
    assert used == [("river 0 of country 0", ["water"], 1, True)]
    assert session.execute("SELECT trust FROM nodes WHERE writer = 'mallory'").fetchone() == ("untrusted",)
    assert session.execute("SELECT rel, weight FROM edges ORDER BY weight").fetchall() == [
        ("Cites", 0.5),
        ("Contains", 1),
    ]
    [(first, second)] = session.execute("SELECT min(src), max(dst) FROM edges WHERE rel = 'Cites'").fetchall()
    assert session.execute("SELECT place, rel, direction FROM neighbours WHERE node = %s", [first]).fetchall() == [
        (1, "Contains", "in"), (2, "Cites", "out"),
    ]  # fmt: skip
    assert session.execute("SELECT direction FROM neighbours WHERE node = %s", [second]).fetchall() == [("in",)]
    assert session.execute("SELECT live, writers FROM sources WHERE source = 'atlas'").fetchone() == (60, 1)
    assert session.execute("SELECT sum(live) FROM kinds WHERE kind = 'Fact'").fetchone() == (60,)
    assert session.execute("SELECT sum(added) FROM growth").fetchone() == (62,)
    assert session.execute("SELECT text, members FROM concepts").fetchall() == [("summary", 1)]
    assert session.execute("SELECT method, valid FROM index_health WHERE index = 'nodes_embedding'").fetchone() == (
        "hnsw", True,
    )  # fmt: skip


def test_every_view_is_there_guarded_and_readable(filled: Memory, login: Login, owner: Connection) -> None:
    session = login()
    rows = owner.execute(
        "SELECT relname, relowner::regrole::text, reloptions, pg_get_viewdef(oid) FROM pg_class"
        " WHERE relnamespace = 'analytics'::regnamespace AND relkind = 'v'"
    ).fetchall()
    assert {row[0] for row in rows} >= VIEWS  # docs/analysts.md has the others
    for name, belongs_to, options, definition in rows:
        assert (belongs_to, options) == ("ruvllm_views", ["security_barrier=true"]), name
        assert "my_tenant()" in definition, name
        session.execute(f"SELECT * FROM {name} LIMIT 5")


def test_the_views_owner_is_nobodys_and_bound_by_row_security(owner: Connection) -> None:
    roles = owner.execute(
        "SELECT rolname, rolcanlogin, rolbypassrls, rolsuper FROM pg_roles"
        " WHERE rolname IN ('ruvllm_views', 'ruvllm_reader')"
    ).fetchall()
    assert sorted(roles) == [("ruvllm_reader", False, False, False), ("ruvllm_views", False, False, False)]
    # an owner of another test's database may be a member: without superuser's rights it has to, to hand its views over
    members = (
        "SELECT count(*) FROM pg_roles WHERE rolname IN ('ruvllm_app', 'ruvllm_reader', 'ana_test')"
        " AND pg_has_role(oid, 'ruvllm_views', 'MEMBER')"
    )
    assert owner.execute(members).fetchone() == (0,)
    functions = owner.execute(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace"
        " AND has_function_privilege('ruvllm_reader', oid, 'EXECUTE')"
    ).fetchall()
    assert {row[0] for row in functions} == {"my_tenant", "memory_search", "memory_search_like", "memory_search_text"}
    for name, definer, config in functions:
        assert definer, name
        assert "search_path=pg_catalog, pg_temp" in config, name


def test_relations_are_the_same_in_sql_and_python(owner: Connection) -> None:
    [(definition,)] = owner.execute("SELECT pg_get_viewdef('analytics.neighbours'::regclass)").fetchall()
    named = definition.split("ARRAY[")[1].split("]")[0].replace("::text", "").replace("'", "")
    assert tuple(named.split(", ")) == RELATIONS


# -- search


def test_a_vector_finds_what_memory_finds(filled: Memory, login: Login) -> None:
    session = login()
    wanted = [hit.node.uuid for hit in filled.search_text("river 7 of country", 10)]
    found = session.cursor(row_factory=dict_row).execute(
        "SELECT * FROM memory_search(%s)", [literal(filled, "river 7 of country")]
    ).fetchall()  # fmt: skip
    scores = [row["score"] for row in found]
    assert len(found) == 10
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, [h.similarity for h in filled.search_text("river 7 of country", 10)], atol=2e-3)
    assert str(found[0]["uuid"]) == wanted[0]
    # a vector of any length is taken by its direction
    twice = [literal(filled, "river 7 of country")] * 2
    doubled = session.execute(
        "SELECT uuid FROM memory_search((SELECT (%s::vector + %s::vector)::text))", twice
    ).fetchall()
    assert [row[0] for row in doubled] == [row["uuid"] for row in found]


def test_a_node_finds_its_like_and_not_itself(filled: Memory, login: Login) -> None:
    session = login()
    [(node,)] = session.execute("SELECT id FROM nodes WHERE text = 'river 3 of country 3'").fetchall()
    found = session.execute("SELECT id, text FROM memory_search_like(%s, 5)", [node]).fetchall()
    assert len(found) == 5
    assert node not in [id for id, _ in found]
    assert all("country 3" in text or "river 3" in text for _, text in found[:3])


def test_words_find_what_holds_them(filled: Memory, login: Login) -> None:
    session = login()
    session.execute("SET app.tenant = 'mine'")
    found = session.execute("SELECT text, score FROM memory_search_text('country rivers 41', 3)").fetchall()
    assert found[0][0] == "river 41 of country 6"
    assert found[0][1] > found[1][1]
    assert session.execute("SELECT current_setting('app.tenant')").fetchone() == ("mine",)
    assert session.execute("SELECT count(*) FROM memory_search_text('xylophone')").fetchone() == (0,)


FILTERS: list[tuple[dict[str, object], int]] = [
    ({"kinds": ["Concept"]}, 1),
    ({"exclude_kinds": ["Fact"]}, 1),  # the other one is untrusted
    ({"domains": ["land1"]}, 20),
    ({"tags": ["water"]}, 60),
    ({"tags": ["water", "fire"]}, 0),
    ({"trusts": ["untrusted"]}, 1),
    ({"reader": "mallory", "exclude_kinds": ["Fact"]}, 2),
    ({"reader": "bob", "exclude_kinds": ["Fact"]}, 1),
    ({"since": "2000-01-01T00:00:00Z"}, 61),
    ({"until": "2000-01-01T00:00:00+01:00"}, 0),
    ({"min_confidence": 1}, 61),
    ({}, 61),
]


def test_filters_hold_before_k_is_cut(filled: Memory, login: Login) -> None:
    session, query = login(), "SELECT count(*) FROM memory_search(%s, %s, %s)"
    for filters, expected in FILTERS:
        for k in (1000, 1):
            found = session.execute(query, [literal(filled, "river"), k, json.dumps(filters)]).fetchone()
            assert found == (min(k, expected),), filters


WRONG = [
    ("memory_search('hello')", r"query: .*type halfvec: \"hello\".*ruvllm memory embed"),
    ("memory_search('[1,2]')", "query: expected 384 dimensions, not 2"),
    ("memory_search('[NaN]')", "query: "),
    ("memory_search(array_fill(0, ARRAY[384])::vector::text)", "query: has no direction"),
    ("memory_search(NULL)", "query: has no direction"),
    ("memory_search_text('x', 0)", "k: got 0, want 1 to 1000"),
    ("memory_search_text('x', 1001)", "k: got 1001"),
    ("memory_search_text('x', NULL)", "k: got"),
    ("memory_search_text('x', 1, '[]')", "filters: got .*, want an object"),
    ("memory_search_text('x', 1, '{\"kind\": 1, \"b\": 2}')", "filters: unknown b, kind; the keys are kinds, "),
    ("memory_search_text('x', 1, '{\"kinds\": \"Fact\"}')", "filter kinds: got .*, want an array of texts"),
    ("memory_search_text('x', 1, '{\"kinds\": [\"Rumour\"]}')", "filter kinds: .*want any of Query, Document"),
    ("memory_search_text('x', 1, '{\"since\": \"2026-01-01\"}')", "filter since: .*want a time with its zone"),
    ("memory_search_text('x', 1, '{\"min_confidence\": 2}')", "filter min_confidence: got 2, want a number"),
    ("memory_search_text('x', 1, '{\"min_confidence\": \"a\"}')", "filter min_confidence: got \"a\""),
    ("memory_search_like(7)", "node 7: there is none"),

]  # fmt: skip


def test_a_wrong_call_is_named(login: Login) -> None:
    session = login()
    for call, message in WRONG:
        with pytest.raises(psycopg.DataError, match=message):
            session.execute(f"SELECT * FROM {call}".encode())


def test_the_search_walks_the_hnsw_index(filled: Memory, login: Login, owner: Connection) -> None:
    """The plan inside of the function, as it runs for the analyst: the same trap as a wrong operator class."""
    login()
    plans: list[str] = []
    owner.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    owner.execute("LOAD 'auto_explain'")
    owner.execute("SET auto_explain.log_min_duration = 0")
    owner.execute("SET auto_explain.log_nested_statements = on")
    owner.execute("SET client_min_messages = log")
    owner.execute("SET SESSION AUTHORIZATION ana_test")
    owner.execute("SELECT count(*) FROM analytics.memory_search(%s, 5)", [literal(filled, "river 7")])
    owner.execute("RESET SESSION AUTHORIZATION")
    shown = [plan for plan in plans if "Order By: (embedding" in plan]
    assert len(shown) == 1
    assert "Index Scan using nodes_embedding" in shown[0]
    assert not any("Seq Scan on nodes" in plan for plan in plans)


def test_settings_of_a_search_end_with_it(filled: Memory, login: Login) -> None:
    session = login()
    names = ("enable_sort", "hnsw.ef_search", "hnsw.iterative_scan", "search_path")
    session.execute("SELECT '[1]'::vector")
    before = [session.execute(f"SHOW {name}").fetchone() for name in names]
    session.execute("SELECT * FROM memory_search(%s, 500)", [literal(filled, "river")])
    assert [session.execute(f"SHOW {name}").fetchone() for name in names] == before


# -- the cookbook


def cookbook() -> list[str]:
    text = (PROJECT_ROOT / "docs" / "memory-sql.md").read_text(encoding="utf-8")
    return [block.split("```")[0].strip() for block in text.split("```sql\n")[1:]]


def test_the_cookbooks_queries_run_and_find_something(filled: Memory, login: Login) -> None:
    """On a memory that has what each of them looks for."""
    ids = filled.add(
        [
            NewNode("The capital of Ghana is Accra", "Fact", "atlas", "geography", tags=("a", "b")),
            NewNode("The capital of Ghana is now Accra", "Fact", "atlas", "geography"),
            NewNode("the highest mountain", "Fact", "atlas", "geography"),
        ]
    ).ids
    filled.link(ids[2], ids[0], "Cites", 0.5, "test")
    with filled.database.transaction() as connection:
        connection.execute(
            "UPDATE memory.nodes SET created_at = created_at - interval '200 days' WHERE id = %s", [ids[0]]
        )
        gone = filled.add([NewNode("it went", "Fact")]).ids[0]
        merge.absorb(connection, ids[0], gone, why="the same", by="test")
    dedup(filled.database, filled.settings)  # a dry run is on record
    later = filled.add([NewNode(f"twice the same words in another place {i}", "Fact") for i in range(2)])
    assert later.written == 2
    session, queries = login(), cookbook()
    assert len(queries) >= 15
    for query in queries:
        found = session.execute(query.replace(":'v'", f"'{literal(filled, 'highest mountain')}'").encode()).fetchall()
        assert found, query


def test_the_cookbook_names_every_view_and_function() -> None:
    text = (PROJECT_ROOT / "docs" / "memory-sql.md").read_text(encoding="utf-8")
    for name in (*VIEWS, "memory_search", "memory_search_like", "memory_search_text"):
        assert f"`{name}" in text, name


# -- logins


def test_an_analyst_reads_and_does_nothing_else(filled: Memory, login: Login) -> None:
    session = login()
    session.execute("SET default_transaction_read_only = off")  # anybody may; the grants are what holds
    for statement in (
        "SELECT * FROM memory.nodes",
        "SELECT * FROM memory.analysts",
        "SELECT memory.uuid7()",
        "UPDATE nodes SET text = 'x'",
        "DELETE FROM edges",
        "INSERT INTO analytics.nodes (text) VALUES ('x')",
        "CREATE TABLE analytics.mine ()",
        "CREATE VIEW analytics.mine AS SELECT 1",
        "CREATE FUNCTION analytics.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER VIEW nodes SET (security_barrier = false)",
        "SET ROLE ruvllm_views",
        "SET ROLE ruvllm_app",
        "SET SESSION AUTHORIZATION postgres",
        "GRANT ruvllm_views TO ana_test",
        "SELECT * FROM analytics.nearest(NULL, 1, NULL)",
        "SELECT analytics.vector_of(1)",
        "SELECT * FROM memory.word_scores('river')",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY nodes TO PROGRAM 'cat'",
        "ALTER SYSTEM SET work_mem = '1GB'",
    ):
        with pytest.raises(REFUSED):
            session.execute(statement.encode())


def test_a_login_is_read_only_and_bounded(login: Login, owner: Connection) -> None:
    session = login()
    settings = {name: session.execute(f"SHOW {name}").fetchone() for name in (*analysts.SETTINGS, "temp_file_limit")}
    assert settings["statement_timeout"] == ("30s",)
    assert settings["temp_file_limit"] == ("2GB",)
    with pytest.raises(errors.ReadOnlySqlTransaction):
        session.execute("CREATE TEMP TABLE t ()")
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute("SET temp_file_limit = -1")
    assert owner.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'ana_test'").fetchone() == (5,)


def test_adding_again_changes_nothing_and_a_lost_password_is_made_anew(
    login: Login, owner: Connection, tmp_path: Path
) -> None:
    login()
    folder = tmp_path / "analysts"
    file = folder / "ana_test.pgpass"
    first = file.read_text()
    again = analysts.add(owner, "ana_test", "default", folder)
    assert (again.made, file.read_text()) == (False, first)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["ana_test.pgpass"]
    assert first.split(":")[4].strip() not in again.psql
    file.unlink()
    assert analysts.add(owner, "ana_test", "default", folder).made is False
    assert file.read_text() != first
    assert login().execute("SELECT tenant FROM me").fetchone() == ("default",)
    assert [(each.login, each.tenant) for each in analysts.listed(owner)] == [("ana_test", "default")]


def test_a_removed_analyst_is_gone_at_once(
    filled: Memory, login: Login, owner: Connection, tmp_path: Path, database_url: str
) -> None:
    session = login()
    session.execute("SET default_transaction_read_only = off")
    for i in range(200):  # a session that ends drops these first: the role cannot go before they have gone
        session.execute(f"CREATE TEMP TABLE own_{i} (id bigint PRIMARY KEY, what text)".encode())
    assert analysts.remove(owner, "ana_test", tmp_path / "analysts")
    with pytest.raises(psycopg.OperationalError):  # its session was ended
        session.execute("SELECT count(*) FROM nodes")
    assert list((tmp_path / "analysts").iterdir()) == []
    assert owner.execute("SELECT FROM pg_roles WHERE rolname = 'ana_test'").fetchone() is None
    assert not analysts.remove(owner, "ana_test", tmp_path / "analysts")


def test_a_login_without_a_tenant_sees_nothing(filled: Memory, login: Login, owner: Connection) -> None:
    session = login()
    owner.execute("DELETE FROM memory.analysts WHERE login = 'ana_test'")
    for view in sorted(VIEWS):
        assert session.execute(f"SELECT count(*) FROM {view}").fetchone() == (0,), view
    with pytest.raises(
        errors.InsufficientPrivilege, match=r"login ana_test: is no analyst here; .*ruvllm db analyst add"
    ):
        session.execute("SELECT * FROM memory_search_text('river')")
    owner.execute("INSERT INTO memory.analysts VALUES ('ana_test', 'default')")


def test_names_that_will_not_do(owner: Connection, tmp_path: Path) -> None:
    for name in ("", "Ana", "a b", "a;b", "pg_x", "ruvllm_app", "postgres", "x" * 64, "é"):
        with pytest.raises(InputError, match="want a name of a-z"):
            analysts.add(owner, name, "default", tmp_path)


def test_a_role_or_tenant_that_is_taken_is_refused(login: Login, owner: Connection, tmp_path: Path) -> None:
    login()
    with pytest.raises(InputError, match="reads tenant 'default', not 'other'"):
        analysts.add(owner, "ana_test", "other", tmp_path)
    owner.execute("DROP ROLE IF EXISTS somebody_test")
    owner.execute("CREATE ROLE somebody_test LOGIN CREATEDB")
    with pytest.raises(InputError, match="no plain analyst"):
        analysts.add(owner, "somebody_test", "default", tmp_path)
    owner.execute("DROP ROLE somebody_test")


def test_an_owner_that_may_not_make_roles_is_told(owner: Connection, database_url: str, tmp_path: Path) -> None:
    owner.execute("DROP ROLE IF EXISTS weak_test")
    owner.execute("CREATE ROLE weak_test LOGIN PASSWORD 'p'")
    owner.execute("GRANT ALL ON memory.analysts TO weak_test")
    owner.execute("GRANT USAGE ON SCHEMA memory TO weak_test")
    address = make_conninfo(database_url, user="weak_test", password="p")
    refused = pytest.raises(DatabaseError, match=r"(?s)weak_test may not make logins .*CREATEROLE")
    with psycopg.connect(address, autocommit=True) as weak, refused:
        analysts.add(weak, "ana_weak", "default", tmp_path / "weak")
    assert not (tmp_path / "weak").exists()
    owner.execute("DROP OWNED BY weak_test")
    owner.execute("DROP ROLE weak_test")
