"""What is held per tenant: opened once, bounded, over shared connections and never across row-level security."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.serving.tenants import Tenants, tenant_database


def test_another_tenant_shares_connections_and_sees_no_row(database: Database) -> None:
    other = tenant_database(database, "other")
    with database.transaction() as connection:
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('default', 3)")
        process = connection.info.backend_pid
    with other.transaction() as connection:
        assert connection.info.backend_pid == process
        assert connection.execute("SELECT seen FROM learning.replay_counter").fetchall() == []
        connection.execute("INSERT INTO learning.replay_counter (tenant, seen) VALUES ('other', 5)")
    with database.transaction() as connection:
        assert connection.execute("SELECT seen FROM learning.replay_counter").fetchall() == [(3,)]
    assert tenant_database(database, database.tenant) is database


def test_made_once_though_many_ask_at_once() -> None:
    made: list[str] = []
    gate = threading.Barrier(8, timeout=10)

    def make(tenant: str) -> str:
        made.append(tenant)
        return f"of {tenant}"

    tenants = Tenants("own", "first", make)

    def ask(_: int) -> str:
        gate.wait()
        return tenants.of("a")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {"of a"}
    assert made == ["a"]
    assert tenants.of("own") == "first"
    assert tenants.opened == ("first", "of a")


def test_the_least_recently_asked_goes_and_the_own_stays() -> None:
    tenants = Tenants("own", "first", "of {}".format, limit=2)
    for tenant in ("a", "b", "a", "c"):
        tenants.of(tenant)
    assert tenants.opened == ("first", "of a", "of c")


def test_one_that_failed_is_tried_again() -> None:
    failing = [DatabaseError("away")]

    def make(tenant: str) -> str:
        if failing:
            raise failing.pop()
        return tenant

    tenants = Tenants("own", "first", make)
    with pytest.raises(DatabaseError, match="away"):
        tenants.of("a")
    assert tenants.of("a") == "a"
