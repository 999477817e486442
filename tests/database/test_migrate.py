"""Migrations from every earlier version, twice, at once, and on servers that will not do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from ruvllm.database import migrate, open_database
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError
from ruvllm.settings import Settings, load_settings

REVISIONS = sorted(path.name[:4] for path in migrate.SQL_DIR.glob("*.sql"))


def fingerprint(dsn: str) -> list[tuple[object, ...]]:
    """Every column, index, constraint, policy, grant, function and trigger of ours."""
    ours = "('memory', 'serving', 'learning', 'registry', 'analytics')"
    queries = (
        f"SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns "
        f"WHERE table_schema IN {ours}",
        f"SELECT schemaname, indexname, indexdef, '' FROM pg_indexes WHERE schemaname IN {ours}",
        f"SELECT n.nspname, conname, pg_get_constraintdef(c.oid), '' FROM pg_constraint c "
        f"JOIN pg_namespace n ON n.oid = c.connamespace WHERE n.nspname IN {ours}",
        f"SELECT schemaname, tablename, policyname, qual FROM pg_policies WHERE schemaname IN {ours}",
        f"SELECT table_schema, table_name, grantee::text, privilege_type FROM information_schema.table_privileges "
        f"WHERE table_schema IN {ours}",
        f"SELECT n.nspname, p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text FROM pg_proc p "
        f"JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN {ours} AND p.prokind <> 'a'",
        f"SELECT n.nspname, c.relname, pg_get_triggerdef(t.oid), '' FROM pg_trigger t JOIN pg_class c "
        f"ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN {ours} "
        f"AND NOT t.tgisinternal",
    )
    with psycopg.connect(dsn) as connection:
        return sorted((row for query in queries for row in connection.execute(query).fetchall()), key=repr)


def test_numbers_are_contiguous_and_each_has_its_revision() -> None:
    versions = sorted(path.name[1:5] for path in (Path(migrate.__file__).parent / "alembic/versions").glob("v*.py"))
    assert [int(number) for number in REVISIONS] == list(range(1, len(REVISIONS) + 1))
    assert versions == REVISIONS
    assert migrate.head() == REVISIONS[-1]


@pytest.mark.parametrize("earlier", REVISIONS)
def test_every_earlier_version_ends_alike(empty_database_url: str, template: str, earlier: str) -> None:
    migrate.upgrade(empty_database_url, "test-encoder", 384, revision=earlier)
    migrate.upgrade(empty_database_url, "test-encoder", 384)
    assert migrate.schema(empty_database_url) == migrate.Schema(REVISIONS[-1], "test-encoder", 384)
    assert fingerprint(empty_database_url) == fingerprint(template)


def test_a_second_run_keeps_the_first_encoder(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, "first", 8)
    migrate.upgrade(empty_database_url, "second", 16)
    assert migrate.schema(empty_database_url) == migrate.Schema(REVISIONS[-1], "first", 8)
    with psycopg.connect(empty_database_url) as connection:
        column = connection.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'memory.nodes'::regclass AND attname = 'embedding'"
        ).fetchone()
    assert column == ("halfvec(8)",)


@pytest.mark.usefixtures("template")  # ruvllm_app is there
def test_an_owner_who_is_no_superuser(empty_database_url: str) -> None:
    """As on a managed server: an administrator made the extension and the role, and gave the database away."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("DROP ROLE IF EXISTS plain")
        connection.execute("CREATE ROLE plain LOGIN PASSWORD 'p:/@ %'")
        connection.execute("GRANT ruvllm_app TO plain")
        connection.execute(f"ALTER DATABASE {connection.info.dbname} OWNER TO plain")
    theirs = psycopg.conninfo.make_conninfo(empty_database_url, user="plain", password="p:/@ %")
    migrate.upgrade(theirs, "test-encoder", 384)
    database = Database(theirs)
    database.ping()
    database.close()


def test_a_second_process_waits_for_the_first(empty_database_url: str) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(empty_database_url, autocommit=True) as first:
        with first.transaction():
            first.execute("SELECT pg_advisory_xact_lock(%s)", [migrate._LOCK_KEY])
            second = pool.submit(migrate.upgrade, empty_database_url, "test-encoder", 384)
            while first.execute(waiting).fetchone() == (0,):
                assert not second.done()
        second.result(timeout=60)
    assert migrate.schema(empty_database_url) == migrate.Schema(REVISIONS[-1], "test-encoder", 384)


def test_a_broken_migration_leaves_nothing(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in migrate.SQL_DIR.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "0002_roles.sql").write_text("CREATE TABLE memory.half (); SELECT 1 / 0;")
    monkeypatch.setattr(migrate, "SQL_DIR", tmp_path)
    with pytest.raises(DatabaseError, match="division by zero"):
        migrate.upgrade(empty_database_url, "test-encoder", 384)
    assert migrate.schema(empty_database_url) is None
    assert fingerprint(empty_database_url) == []


def test_only_the_dimension_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "SQL_DIR", tmp_path)
    (tmp_path / "1.sql").write_text("DO $$ BEGIN END $$; -- 100 % of halfvec(${dimension})")
    assert migrate.render("1.sql", 12) == "DO $$ BEGIN END $$; -- 100 % of halfvec(12)"
    (tmp_path / "1.sql").write_text("SELECT '${user}'")
    with pytest.raises(DatabaseError, match=r"\$\{dimension\} is the only name"):
        migrate.render("1.sql", 12)


@pytest.mark.parametrize("dimension", [0, 4001])
def test_an_impossible_dimension(empty_database_url: str, dimension: int) -> None:
    with pytest.raises(DatabaseError, match="want 8 to 4000"):
        migrate.upgrade(empty_database_url, "test-encoder", dimension)


def test_a_server_that_is_too_old(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "MIN_PGVECTOR", (99, 0, 0))
    with pytest.raises(DatabaseError, match=r"pgvector 0\.8\.\d+, want 99\.0\.0 .*ALTER EXTENSION"):
        migrate.upgrade(empty_database_url, "test-encoder", 384)
    monkeypatch.setattr(migrate, "MIN_POSTGRES", 99)
    with pytest.raises(DatabaseError, match="is version 18, want 99"):
        migrate.upgrade(empty_database_url, "test-encoder", 384)


def test_open_database_uses_the_users_own_server_and_migrates_it(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    migrate.upgrade(
        empty_database_url, "test-encoder", 384, revision="0001"
    )  # the encoder is known: none has to be opened
    database = open_database(
        load_settings({"DATABASE_URL": empty_database_url}, state_dir=settings.state_dir, tenant="t")
    )
    with database.transaction() as connection:
        assert connection.execute("SELECT current_setting('app.tenant')").fetchone() == ("t",)
    database.close()
    assert migrate.schema(empty_database_url) == migrate.Schema(REVISIONS[-1], "test-encoder", 384)
    assert not settings.state_dir.exists()
