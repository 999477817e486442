"""10,000 attempts to see or touch a row of another tenant, through every path: none succeeds.

An attempt is one statement or call that is aimed at others' rows. What comes back, an error's text too, is searched for
the others' names and secrets; the control runs the same attempts past row-level security and finds them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from ruvllm.database import analysts
from ruvllm.database.pool import Database
from ruvllm.errors import RuvllmError
from ruvllm.memory.records import Walk
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings
from tests.memory.tenants import (
    HOSTILE,
    LOOKS,
    PRELUDES,
    SEED,
    TEMPORARY,
    TENANTS,
    VIEWS,
    World,
    a_filter,
    answer,
    build,
    hostile_filter,
    secret,
    sql_attempts,
    state,
)

SQL_ATTEMPTS, ANALYST_ATTEMPTS, FACADE_ATTEMPTS, REPLICA_ATTEMPTS = 5_600, 3_600, 200, 600


@pytest.fixture
def world(database_url: str, settings: Settings) -> World:
    return build(database_url, settings)


def test_no_statement_of_the_application_reaches_another_tenant(world: World) -> None:
    before = state(world.database_url, world.tables)
    database = Database(world.database_url)
    leaks: list[tuple[str, object]] = []

    def run(path: str, mine: str, statement: Any, given: dict[str, object]) -> None:
        world.tried[path] += 1
        with database.transaction(mine or " ") as connection:
            found = answer(connection, path, statement, given)
            if world.leaked(mine, found) or any(mark in str(found) for mark in ("tenant-hit", "tenant-linked")):
                leaks.append((str(statement), found))
            raise psycopg.Rollback

    sql_attempts(world, run, SQL_ATTEMPTS)
    database.close()
    assert leaks == []
    assert sum(world.tried.values()) == SQL_ATTEMPTS
    assert state(world.database_url, world.tables) == before


def test_the_control_finds_what_is_to_be_hidden(world: World) -> None:
    """The same attempts by who passes row-level security: most of the reads leak, so the check above can fail."""
    leaks: Counter[str] = Counter()
    with psycopg.connect(world.database_url) as owner:

        def run(path: str, mine: str, statement: Any, given: dict[str, object]) -> None:
            with owner.transaction(force_rollback=True):
                owner.execute("SELECT set_config('app.tenant', %s, true)", [mine])
                leaks[path] += world.leaked(mine, answer(owner, path, statement, given))

        sql_attempts(world, run, 400)
    assert leaks["tables"] > 100
    assert leaks["aimed"] > 50
    assert leaks["copy"] > 5


def test_what_is_not_there_and_what_is_anothers_look_alike(world: World) -> None:
    """Probing ids by errors: a foreign key says the same of another tenant's node as of none."""
    mine, other = TENANTS[:2]
    database = Database(world.database_url, mine)
    statement = (
        "INSERT INTO memory.edges (tenant, src, dst, rel, created_by) VALUES (%s, %s, %s, 'Cites', '') RETURNING id"
    )
    said = []
    for target in (world.ids[other][3], 10**12):
        with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught, database.transaction() as connection:
            connection.execute(statement, [mine, world.ids[mine][0], target])
        said.append(str(caught.value).replace(str(target), "?"))
    database.close()
    assert said[0] == said[1]


@pytest.fixture
def sessions(world: World, tmp_path: Path) -> Iterator[dict[str, Connection]]:
    """An analyst's session by tenant."""
    logins = {tenant: f"analyst_{tenant.removeprefix('tenant-')}" for tenant in TENANTS[:2]}
    opened: dict[str, Connection] = {}
    with psycopg.connect(world.database_url, autocommit=True) as owner:
        for tenant, login in logins.items():
            access = analysts.add(owner, login, tenant, tmp_path / "analysts")
            address = make_conninfo(world.database_url, user=login, password=access.password)
            opened[tenant] = psycopg.connect(address, autocommit=True)
        yield opened
        for connection in opened.values():
            connection.close()
        for login in logins.values():
            analysts.remove(owner, login, tmp_path / "analysts")


def test_no_statement_of_an_analyst_reaches_another_tenant(world: World, sessions: dict[str, Connection]) -> None:
    before = state(world.database_url, world.tables)
    luck, leaks, own = random.Random(SEED), [], 0
    vector = "[" + ",".join(f"{x:.4g}" for x in world.embedder.embed_one("fact 3 of the shared topic")) + "]"
    for session in sessions.values():
        session.execute("SET default_transaction_read_only = off")
        for statement in TEMPORARY:
            session.execute(statement.encode())
    for _ in range(ANALYST_ATTEMPTS):
        mine = luck.choice(list(sessions))
        other = luck.choice([tenant for tenant in TENANTS if tenant != mine])
        names = {
            "view": luck.choice(VIEWS), "secret": secret(other), "other": other, "vector": vector,
            "id": str(luck.choice(world.ids[other])), "uuid": luck.choice(world.uuids[other]),
            "filter": hostile_filter(luck, other),
        }  # fmt: skip
        if luck.random() < 0.2:
            _tried(sessions[mine], luck.choice(PRELUDES).format(**names))
        shape = luck.choice(LOOKS)
        found = _tried(sessions[mine], shape.format(**names))
        _tried(sessions[mine], "RESET row_security")  # while it is off, every look is refused
        world.tried["analyst"] += 1
        own += mine in str(found)
        if world.leaked(mine, found) or "division by zero" in str(found):
            leaks.append((shape, found))
    for mine, session in sessions.items():
        peeked = session.execute("SELECT what FROM pg_temp.seen").fetchall()
        assert len(peeked) > 100  # it was called, on its own tenant's rows
        assert not world.leaked(mine, peeked)
    assert leaks == []
    assert world.tried["analyst"] == ANALYST_ATTEMPTS
    assert own > ANALYST_ATTEMPTS // 5  # the looks do see what is one's own
    assert state(world.database_url, world.tables) == before


def _tried(session: Connection, statement: str) -> object:
    try:
        found = session.execute(statement.encode())
        rows = found.fetchall() if found.description else []
    except psycopg.Error as error:
        return error.diag.message_primary
    # its own statements, which pg_stat_activity shows it, name others' secrets
    return "" if "pg_stat_activity" in statement else rows


def test_copies_of_views_hold_the_analysts_tenant_only(world: World, sessions: dict[str, Connection]) -> None:
    for mine, session in sessions.items():
        for view in VIEWS:
            statement = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier("analytics", view))
            found = str(answer(session, "copy", statement, {}))
            assert not world.leaked(mine, found), view
        everything = sql.SQL("COPY (SELECT * FROM analytics.nodes) TO STDOUT")
        assert secret(mine) in str(answer(session, "copy", everything, {}))


# -- memory's own doors


def test_no_call_of_memory_reaches_another_tenant(world: World, settings: Settings) -> None:
    before = {row for row in state(world.database_url, world.tables) if "changes" not in str(row[0])}
    luck, leaks, own = random.Random(SEED), [], 0
    memories = {t: Memory(Database(world.database_url, t), world.embedder, settings) for t in TENANTS}
    for _ in range(FACADE_ATTEMPTS):
        mine = luck.choice(TENANTS)
        other = luck.choice([tenant for tenant in TENANTS if tenant != mine])
        world.tried["memory"] += 1
        found = _asked(world, memories[mine], other, luck)
        own += secret(mine) in str(found)
        if world.leaked(mine, found):
            leaks.append(found)
    for memory in memories.values():
        memory.database.close()
    assert leaks == []
    assert own > FACADE_ATTEMPTS // 10
    assert {row for row in state(world.database_url, world.tables) if "changes" not in str(row[0])} == before


def _asked(world: World, memory: Memory, other: str, luck: random.Random) -> object:
    theirs, words = luck.sample(world.ids[other], 5), f"{secret(other)} fact {luck.randrange(30)} of the shared topic"
    wanted = a_filter(other, luck)
    calls: list[Callable[[], object]] = [
        lambda: memory.search_text(words, 20, filter=wanted),
        lambda: memory.search_words(words, 20, wanted),
        lambda: memory.hybrid(words, 20, wanted),
        lambda: memory.search(world.embedder.embed_one(words), 20, filter=wanted, exact=True),
        lambda: memory.get(theirs),
        lambda: memory.walk(theirs, Walk(reader=other)),
        lambda: memory.neighbours(theirs, 2, 256, other),
        lambda: memory.touch(theirs),
        lambda: memory.link_all([(theirs[0], theirs[1], "Derived", 1.0)], "probe"),
        lambda: [f"{other} {len(memory.vectors(theirs))}"],
        lambda: memory.search_text(luck.choice(HOSTILE), 20, reader=other),
    ]
    try:
        found = luck.choice(calls)()
    except RuvllmError:
        return []
    return found if not hasattr(found, "ids") else [other for id in found.ids if int(id) in world.ids[other]]


# -- replicas


def test_no_replica_holds_another_tenants_rows(world: World, tmp_path: Path) -> None:
    luck = random.Random(SEED)
    options = ReplicaOptions(poll_s=0, max_staleness_s=1e6)
    for mine in TENANTS:
        replica = Replica.open(Database(world.database_url, mine), tmp_path / "replica", options)
        for _ in range(REPLICA_ATTEMPTS // len(TENANTS)):
            other = luck.choice([tenant for tenant in TENANTS if tenant != mine])
            ids = _of_replica(world, replica, other, luck)
            world.tried["replica"] += 1
            assert not set(ids) & {id for t in TENANTS if t != mine for id in world.ids[t]}
        replica.close()
        replica.database.close()
    folders = {path: path.read_bytes() for path in (tmp_path / "replica").rglob("*") if path.is_file()}
    by_base = [(path.parts, data) for path, data in folders.items()]
    for mine in TENANTS:  # each tenant's base is a folder of its own, and no file of it names another
        own = {parts[:-1] for parts, data in by_base if parts[-1] == "manifest.json" and mine.encode() in data}
        assert len(own) == 1
        base = next(iter(own))
        for parts, data in by_base:
            if parts[: len(base)] == base:
                assert not any(secret(other).encode() in data for other in TENANTS if other != mine), parts


def _of_replica(world: World, replica: Replica, other: str, luck: random.Random) -> list[int]:
    theirs, words = luck.sample(world.ids[other], 5), f"{secret(other)} fact {luck.randrange(30)} of the shared topic"
    vector, wanted = world.embedder.embed_one(words), a_filter(other, luck)
    calls: list[Callable[[], Any]] = [
        lambda: replica.search(vector, 20, wanted).ids,
        lambda: replica.search(vector, 20, wanted, exact=True).ids,
        lambda: replica.search_batch(np.stack([vector, vector]), 20, wanted)[1].ids,
        lambda: replica.search_words(words, 20, wanted).ids,
        lambda: replica.walk(theirs, Walk(reader=other)).ids,
        lambda: [node.id for node in replica.nodes(theirs)],
        lambda: theirs if len(replica.vectors(theirs)) else [],
    ]
    try:
        return [int(id) for id in luck.choice(calls)()]
    except RuvllmError:
        return []


def test_ten_thousand_attempts_are_made() -> None:
    assert SQL_ATTEMPTS + ANALYST_ATTEMPTS + FACADE_ATTEMPTS + REPLICA_ATTEMPTS == 10_000
