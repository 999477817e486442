"""One search over four shards: what each shard is asked, what comes back, and what stays another tenant's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError, ShardPlanError
from ruvllm.memory.filters import Filter
from ruvllm.memory.shards import Shard, Shards, create, open_tenant
from ruvllm.memory.shards.layout import login_of, schema_of
from tests.memory.shards.filled import NAMES, PER_TENANT, TENANTS, Filled, ready, units, write

QUERIES = units(99, 20)


@pytest.fixture
def acme(filled: Filled) -> Iterator[Shards]:
    with closing(Shards(filled.shards, "acme")) as shards:
        yield shards


NOW = datetime.now(UTC)
ALL = Filter(("Fact",), ("Query",), ("", "x"), ("t",), ("system",), NOW - timedelta(1), NOW + timedelta(1), 0.5, "eve")


@pytest.mark.parametrize("filter", [Filter(), ALL])
def test_every_shard_is_sent_order_limit_and_filter(acme: Shards, filter: Filter) -> None:
    plans = acme.plan(QUERIES[0], 10, filter)
    assert sorted(plan.shard for plan in plans) == list(NAMES)
    for plan in plans:
        assert plan.pushed
        assert plan.remote_sql.endswith("LIMIT 10::bigint")
        if filter == ALL:
            wanted = ("kind = ANY", "kind <> ALL", "domain = ANY", "tags @>", "trust = ANY", "created_at >=", "eve")
            assert [each for each in wanted if each not in plan.remote_sql] == []


def test_filters_hold_before_k_is_cut(acme: Shards, filled: Filled) -> None:
    for shard in filled.shards.shards:
        with psycopg.connect(shard.dsn) as connection:
            connection.execute("UPDATE memory.nodes SET domain = 'odd' WHERE tenant = 'acme' AND id % 2 = 1")
            connection.execute("UPDATE memory.node_texts SET tags = '{x,y}' WHERE tenant = 'acme' AND node % 3 = 1")
    wanted = Filter(domains=("odd",), tags=("x",))
    found = [hit.node for hit in acme.search(QUERIES[0], 1000, wanted)]
    assert found
    assert all(node.id % 6 == 1 and node.tags == ("x", "y") for node in found)
    whole = [hit.node for hit in acme.search(QUERIES[0], 1000)]
    assert len(whole) == PER_TENANT
    assert found == [node for node in whole if node.id % 6 == 1]
    assert [hit.node for hit in acme.search(QUERIES[0], 10, wanted)] == found[:10]
    assert [hit.node for hit in acme.search(QUERIES[0], 10, wanted, exact=True)] == found[:10]


@pytest.mark.parametrize("tenant", TENANTS)
def test_finds_what_one_server_would(filled: Filled, tenant: str) -> None:
    with closing(Shards(filled.shards, tenant)) as shards:
        for query in QUERIES:
            hits = shards.search(query, 10)
            assert [hit.node.text for hit in hits] == filled.exact(tenant, query, 10)
            assert [filled.shards.of_id(hit.node.id).name for hit in hits] == [hit.shard for hit in hits]
            assert hits[0].similarity == pytest.approx(max(filled.vectors[tenant] @ query), abs=1e-3)


def test_shards_are_asked_at_the_same_time(acme: Shards, filled: Filled) -> None:
    """A Merge Append would ask them in turn."""
    query = acme._query(Filter())
    with acme._coordinator.transaction() as connection:
        values = {"vector": str(list(map(float, QUERIES[0]))), "k": 5, "reader": ""}
        lines = [row[0] for row in connection.execute(sql.SQL("EXPLAIN ") + query, values)]
    assert sum("Async Foreign Scan" in line for line in lines) == len(NAMES)


def test_no_query_of_one_tenant_reaches_another(filled: Filled) -> None:
    """Whatever the transaction says it is: the tenant is in the connection of the foreign server."""
    mine, other = TENANTS
    with closing(Database(filled.shards.coordinator, other)) as database, database.transaction() as connection:
        for name in NAMES:
            table = sql.Identifier(schema_of(mine), name)
            for claim in ("", "SET LOCAL app.tenant = 'x'", "SET LOCAL row_security = on"):
                if claim:
                    connection.execute(claim)
                found = connection.execute(sql.SQL("SELECT text FROM {}").format(table)).fetchall()
                assert found
                assert all(text.startswith("acme ") for (text,) in found)


def test_the_reading_login_sees_no_tenant_unasked_and_may_not_write(filled: Filled) -> None:
    mine = filled.shards.shards[0]
    with psycopg.connect(mine.dsn) as connection:
        connection.execute(f"SET SESSION AUTHORIZATION {login_of(mine, 'acme')}")
        assert connection.execute("SELECT count(*) FROM memory.nodes").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM memory.shard_nodes").fetchone() == (0,)
    with psycopg.connect(filled.shards.coordinator) as connection:
        server = f"a_{schema_of('acme').removeprefix('shards_')}"
        row = connection.execute("SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = %s", [server])
        assert "default_transaction_read_only=on" in str(row.fetchone())


def test_a_shard_that_would_send_everything_is_refused(filled: Filled) -> None:
    open_tenant(filled.shards, "unshippable")
    write(filled.shards.shards[0], "unshippable", [ready("alone", units(3, 1)[0])])
    server = sql.Identifier(f"a_{schema_of('unshippable').removeprefix('shards_')}")
    with psycopg.connect(filled.shards.coordinator) as connection:
        connection.execute(sql.SQL("ALTER SERVER {} OPTIONS (DROP extensions)").format(server))
    with closing(Shards(filled.shards, "unshippable")) as shards:
        with pytest.raises(ShardPlanError, match=r"shard a .*extensions 'vector'"):
            shards.search(QUERIES[0], 5)
        open_tenant(filled.shards, "unshippable")  # the mend that the message names
        assert [hit.node.text for hit in shards.search(QUERIES[0], 5)] == ["alone"]


def test_a_rare_tenant_gets_all_its_rows(filled: Filled) -> None:
    """Its 8 nodes among 480: without iterative scan the shards would hand out fewer and say nothing."""
    open_tenant(filled.shards, "rare")
    for number, shard in enumerate(filled.shards.shards):
        write(shard, "rare", [ready(f"rare {number} {i}", units(50 + number, 2)[i]) for i in range(2)])
    with closing(Shards(replace(filled.shards, ef_search=10), "rare")) as shards:
        for query in QUERIES:
            assert len(shards.search(query, 8)) == 8


def test_a_shard_may_have_standbys(filled: Filled) -> None:
    """Its DSN names every member, as ruvllm/database/standby.py gives it; postgres_fdw takes the primary."""
    parts = conninfo_to_dict(filled.shards.shards[1].dsn)
    both = {"host": f"/nowhere,{parts['host']}", "port": f"1,{parts['port']}", "target_session_attrs": "read-write"}
    members = Shard("b", make_conninfo(**{**parts, **both}))
    shards = replace(filled.shards, shards=(filled.shards.shards[0], members, *filled.shards.shards[2:]))
    open_tenant(shards, "standby")
    write(members, "standby", [ready("kept twice", units(6, 1)[0])])
    with closing(Shards(shards, "standby")) as opened:
        assert [hit.node.text for hit in opened.search(QUERIES[0], 3)] == ["kept twice"]


def test_untrusted_nodes_are_their_writers(filled: Filled) -> None:
    open_tenant(filled.shards, "trust")
    write(filled.shards.shards[2], "trust", [ready("hers", units(4, 1)[0], trust="untrusted", writer="eve")])
    with closing(Shards(filled.shards, "trust")) as shards:
        assert shards.search(QUERIES[0], 3) == []
        assert [hit.node.writer for hit in shards.search(QUERIES[0], 3, Filter(reader="eve"))] == ["eve"]


def test_a_shard_that_is_gone_is_an_error_not_a_part_of_the_answer(filled: Filled) -> None:
    dead = replace(filled.shards, shards=(*filled.shards.shards[:3], Shard("d", "postgresql://x@/x?host=/nowhere")))
    open_tenant(filled.shards, "dead")
    server = sql.Identifier(f"d_{schema_of('dead').removeprefix('shards_')}")
    with psycopg.connect(filled.shards.coordinator) as connection:
        connection.execute(sql.SQL("ALTER SERVER {} OPTIONS (SET host '/nowhere')").format(server))
    with closing(Shards(dead, "dead")) as shards:
        with pytest.raises(DatabaseError, match="nowhere"):
            shards.search(QUERIES[0], 5)
        assert [status.name for status in shards.status() if status.error] == ["d"]


def test_refuses_what_is_no_search(acme: Shards, filled: Filled) -> None:
    narrow = np.eye(1, 383, dtype=np.float32)[0]
    for vector, k in ((QUERIES[0], 0), (QUERIES[0], 1001), (QUERIES[0] * 2, 5), (QUERIES[0] * np.nan, 5), (QUERIES, 5),
                      (narrow, 5)):  # fmt: skip
        with pytest.raises(InputError):
            acme.search(vector, k)
    with closing(Shards(filled.shards, "nobody")) as shards, pytest.raises(DatabaseError, match="open_tenant"):
        shards.search(QUERIES[0], 5)


def test_shards_say_how_they_are(acme: Shards) -> None:
    states = acme.status()
    assert [(state.name, state.error) for state in states] == [(name, "") for name in NAMES]
    assert all(state.bytes > 0 for state in states)


def test_ids_tell_their_shard_and_a_changed_order_is_refused(filled: Filled) -> None:
    create(filled.shards, "test-encoder", 384)  # again: no harm
    with pytest.raises(DatabaseError, match="keep the order"):
        create(replace(filled.shards, shards=filled.shards.shards[::-1]), "test-encoder", 384)
