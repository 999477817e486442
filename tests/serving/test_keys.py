"""Keys: digests in Postgres, one tenant each, refused the moment they are revoked, expired, altered or of no kind."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ruvllm.database.pool import Database
from ruvllm.errors import (
    AuthenticationError,
    DatabaseError,
    ForbiddenError,
    InputError,
    KeysUnavailable,
    SettingsError,
)
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.door import Door, is_loopback, watch
from ruvllm.serving.keys import SCOPES, KeyStore
from ruvllm.settings import Settings, load_settings


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


EVERYWHERE = "0.0.0.0"  # noqa: S104  # compared, not bound


def away() -> KeyStore:
    """Of a Postgres that is not there."""
    return KeyStore(Database("postgresql://nobody@127.0.0.1:9/none"))


def opened(settings: Settings, store: KeyStore, access: str = "auto", host: str = "127.0.0.1") -> Door:
    door = Door(replace(settings, access=access), store, host)
    door.refresh()
    return door


def test_a_key_opens_its_tenant_its_scopes_and_its_limits(settings: Settings, store: KeyStore) -> None:
    limits = CallerLimits(2, 60, 9000)
    record, key = store.create("acme", ("memory", "ask"), "editor", limits)
    caller = opened(settings, store).caller(f"Bearer {key}", "10.0.0.9")
    assert (caller.key_id, caller.tenant, caller.limits) == (record.id, "acme", limits)
    caller.require("ask")
    caller.require("memory")
    with pytest.raises(ForbiddenError, match='has ask, memory, this needs "admin"'):
        caller.require("admin")


def test_the_key_itself_is_nowhere_in_the_database(store: KeyStore, database_url: str) -> None:
    _, key = store.create("acme", name="editor")
    secret = key[-43:]  # the part may hold a "-" itself
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT k::text FROM serving.api_keys k").fetchall()
    assert len(rows) == 1
    assert secret not in rows[0][0]
    assert secret not in repr(store.list())


def test_a_tenant_sees_no_key_of_another_but_the_door_sees_all(store: KeyStore, database: Database) -> None:
    store.create("acme")
    store.create("brick")
    with database.transaction("acme") as connection:
        assert connection.execute("SELECT tenant FROM serving.api_keys").fetchall() == [("acme",)]
        connection.execute("SELECT set_config('app.door', 'keys', true)")
        assert connection.execute("UPDATE serving.api_keys SET name = 'x' WHERE tenant = 'brick'").rowcount == 0
    assert [record.tenant for record in store.list()] == ["acme", "brick"]


def test_revoked_and_expired_keys_are_refused_and_say_so(settings: Settings, store: KeyStore) -> None:
    record, key = store.create("acme", expires_s=60)
    door = opened(settings, store)
    later = Door(settings, store, "127.0.0.1", lambda: datetime.now(UTC) + timedelta(seconds=61))
    later.refresh()
    assert door.caller(f"bearer {key}").key_id == record.id
    with pytest.raises(AuthenticationError, match="has expired"):
        later.caller(f"Bearer {key}")
    first = store.revoke(record.id).revoked_at
    assert store.revoke(record.id).revoked_at == first  # for good, and the first time counts
    door.refresh()
    with pytest.raises(AuthenticationError, match="was revoked"):
        door.caller(f"Bearer {key}")


def test_access_without_a_key(settings: Settings, store: KeyStore) -> None:
    door = opened(settings, store)
    local = door.caller(None, "127.0.0.1")
    assert (local.key_id, local.tenant, local.scopes) == ("local", settings.tenant, frozenset(SCOPES))
    with pytest.raises(AuthenticationError):
        door.caller(None, "10.0.0.9")  # through a proxy that says who asks
    record, _ = store.create("acme")
    door.refresh()
    with pytest.raises(AuthenticationError, match="no API key"):
        door.caller(None, "127.0.0.1")
    store.revoke(record.id)
    with pytest.raises(AuthenticationError, match="no API key"):
        opened(settings, store).caller(None, "127.0.0.1")  # to revoke the last one opens nothing
    opened(settings, store, "open").caller(None, "127.0.0.1")
    with pytest.raises(AuthenticationError):
        opened(settings, store, "keys").caller(None, "127.0.0.1")


@pytest.mark.parametrize(
    ("site", "known"),
    [("127.0.0.1:8080", True), ("LocalHost:8080", True), ("localhost.", True), ("[::1]:8080", True), ("[::1]", True),
     ("evil.example:8080", False), ("localhost.evil.example", False), ("10.0.0.9", False), ("[::2]:8080", False),
     ("[", False), ("", False)],
)  # fmt: skip
def test_without_a_key_no_page_of_the_web_asks_under_its_own_name(
    settings: Settings, store: KeyStore, site: str, known: bool
) -> None:
    door = opened(settings, store, "open")
    with nullcontext() if known else pytest.raises(AuthenticationError, match="Host: got"):
        door.caller(None, "127.0.0.1", site)
    _, key = store.create("acme")
    door.refresh()
    assert door.caller(f"Bearer {key}", "127.0.0.1", site).tenant == "acme"  # a page has no key to send


def test_beyond_this_machine_a_key_is_always_wanted(settings: Settings, store: KeyStore) -> None:
    with pytest.raises(AuthenticationError):
        opened(settings, store, "auto", EVERYWHERE).caller(None, "127.0.0.1")
    with pytest.raises(SettingsError, match=r"RUVLLM_ACCESS: got open with RUVLLM_HOST 0\.0\.0\.0"):
        Door(replace(settings, access="open"), store, EVERYWHERE)
    with pytest.raises(SettingsError, match="RUVLLM_ACCESS"):
        load_settings({"RUVLLM_ACCESS": "yes"})


def test_a_key_is_checked_even_where_none_is_wanted(settings: Settings, store: KeyStore) -> None:
    with pytest.raises(AuthenticationError, match="not known"):
        opened(settings, store, "open").caller("Bearer ruvllm-0000000000000000-" + "x" * 43, "127.0.0.1")


def test_while_postgres_is_away_known_keys_go_on_and_an_outage_opens_nothing(
    settings: Settings, store: KeyStore
) -> None:
    _, key = store.create("acme")
    door = opened(settings, store)
    door._store = away()
    assert "nobody@127.0.0.1" in str(watch(door))
    assert door.caller(f"Bearer {key}").tenant == "acme"
    started_meanwhile = Door(settings, away(), "127.0.0.1")
    assert watch(started_meanwhile) is not None
    with pytest.raises(KeysUnavailable):
        started_meanwhile.caller(f"Bearer {key}")
    with pytest.raises(AuthenticationError):
        started_meanwhile.caller(None, "127.0.0.1")


def test_a_machine_that_never_had_a_key_answers_without_postgres(settings: Settings) -> None:
    door = Door(settings, away(), "127.0.0.1")
    assert watch(door) is not None
    assert door.caller(None, "127.0.0.1").tenant == settings.tenant


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"scopes": ("ask", "root")}, "scopes: got root"),
        ({"scopes": ()}, "scopes: got none"),
        ({"limits": CallerLimits(0)}, "concurrency: got 0"),
        ({"limits": CallerLimits(1, 2**31)}, "requests_per_minute"),
        ({"expires_s": 0}, "expiry: got 0 s"),
        ({"expires_s": float("nan")}, "expiry"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "x" * 201}, "tenant"),
        ({"name": "\x00"}, "name of the key"),
    ],
)
def test_what_makes_no_key(store: KeyStore, change: dict[str, object], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        store.create(**{"tenant": "acme", **change})  # type: ignore[arg-type]
    assert store.list() == []


def test_revoking_what_is_not_there(store: KeyStore) -> None:
    with pytest.raises(InputError, match="there is none"):
        store.revoke("' OR true --")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(header=st.text(max_size=200) | st.text(max_size=80).map("Bearer {}".format))
def test_no_text_but_a_key_gets_in_and_none_is_an_error_of_ours(
    settings: Settings, header: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    door = _fuzzed(settings, tmp_path_factory.getbasetemp())
    with pytest.raises(AuthenticationError):
        door.caller(header, "127.0.0.1")


_doors: dict[Path, Door] = {}


def _fuzzed(settings: Settings, place: Path) -> Door:
    """One door for all examples; its store holds nothing."""

    class Empty(KeyStore):
        def __init__(self) -> None: ...

        def snapshot(self) -> list[object]:  # type: ignore[override]
            return []

    if place not in _doors:
        _doors[place] = Door(settings, Empty(), "127.0.0.1")
        _doors[place].refresh()
    return _doors[place]


def test_sql_in_a_header_never_reaches_postgres(settings: Settings, store: KeyStore) -> None:
    store.create("acme")
    door = opened(settings, store)
    door._store = None  # from here on a look at the database would fail
    for text in ("' OR '1'='1", "'; DROP TABLE serving.api_keys; --", "%s", "\x00", "ruvllm-' UNION SELECT 1"):
        with pytest.raises(AuthenticationError) as refused:
            door.caller(f"Bearer {text}")
        assert text not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("::1%lo", True),
     (EVERYWHERE, False), ("::", False), ("10.0.0.1", False), ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_what_is_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_what_was_read_stays_when_reading_fails(settings: Settings, store: KeyStore) -> None:
    door = opened(settings, store)
    door._store = away()
    with pytest.raises(DatabaseError):
        door.refresh()
    assert door.tenants == (settings.tenant,)
