"""Brings a database to the newest schema: Alembic with its ledger over the numbered plain SQL of sql/migrations.

Knows nothing of pools or of the embedded server. All migrations of one call are one transaction under an advisory lock.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from ruvllm.database.dsn import shown, sqlalchemy_url
from ruvllm.errors import DatabaseError
from ruvllm.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

SQL_DIR = PROJECT_ROOT / "sql" / "migrations"
MIN_POSTGRES = 15
MIN_PGVECTOR = (0, 8, 4)  # older ones can corrupt an HNSW index under vacuum
_LOCK_KEY = 7_270_215_501  # among processes, for one database
_ALEMBIC = threading.Lock()  # among threads: Alembic keeps its context in module globals


def upgrade(dsn: str, encoder_id: str, dimension: int, revision: str = "head") -> None:
    """Apply what is missing; a second run does nothing. The first migration writes the row of memory.encoder.

    Args:
        dimension: of the encoder's vectors; only the first migration uses it.

    Raises:
        DatabaseError: the server is too old, has no pgvector, cannot be reached or refuses.
    """
    if not 8 <= dimension <= 4000:
        raise DatabaseError(f"encoder {encoder_id}: dimension {dimension}, want 8 to 4000")
    check_server(dsn)
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    engine = create_engine(sqlalchemy_url(dsn), poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with _ALEMBIC, engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})")
            _run_alembic(connection, encoder_id, dimension, revision)
    except (SQLAlchemyError, psycopg.Error) as error:
        raise DatabaseError(f"Postgres at {shown(dsn)}: migration failed: {error}") from error


@dataclass(frozen=True)
class Schema:
    """What a migrated database says of itself."""

    revision: str
    encoder_id: str
    dimension: int


def head() -> str:
    """The newest revision: the number of the last file."""
    return max(path.name[:4] for path in SQL_DIR.glob("[0-9][0-9][0-9][0-9]_*.sql"))


def schema(dsn: str) -> Schema | None:
    """Revision and encoder of a database; None before the first migration. Raises DatabaseError out of reach."""
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            if connection.execute("SELECT to_regclass('public.alembic_version')").fetchone() == (None,):
                return None
            row = connection.execute("SELECT version_num, id, dimension FROM public.alembic_version, memory.encoder")
            return next((Schema(*each) for each in row), None)
    except psycopg.Error as error:
        raise DatabaseError(f'Postgres at {shown(dsn)}: {str(error).strip()}; run "ruvllm doctor"') from error


def check_server(dsn: str) -> None:
    """Raises DatabaseError where Postgres or pgvector is too old, missing or out of reach; the message has the mend."""
    where = f"Postgres at {shown(dsn)}"
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            server = connection.info.server_version // 10000
            row = connection.execute(
                "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone()
    except psycopg.Error as error:
        raise DatabaseError(f'{where}: {error}; run "ruvllm doctor"') from error
    if server < MIN_POSTGRES:
        raise DatabaseError(
            f"{where} is version {server}, want {MIN_POSTGRES} or newer; unset DATABASE_URL to use ours"
        )
    wanted = ".".join(map(str, MIN_PGVECTOR))
    if row is None:
        raise DatabaseError(f"{where} has no pgvector; install pgvector {wanted} or newer on the server, "
                            "or unset DATABASE_URL to use the embedded server")  # fmt: skip
    if _version(row[0]) < MIN_PGVECTOR:
        raise DatabaseError(f"{where} has pgvector {row[0]}, want {wanted} or newer: older ones can corrupt an index; "
                            "install a newer one on the server, then run 'ALTER EXTENSION vector UPDATE'")  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def render(name: str, dimension: int) -> str:
    """The SQL of the migration `name`; ${dimension} is the one thing filled in, and never from outside."""
    text = (SQL_DIR / name).read_text(encoding="utf-8").replace("${dimension}", str(int(dimension)))
    if "${" in text:
        raise DatabaseError(f"{SQL_DIR / name}: ${{dimension}} is the only name that a migration may use")
    return text


def apply(name: str) -> None:
    """Run sql/migrations/`name`; for the revisions in alembic/versions."""
    from alembic import context, op

    text = render(name, context.config.attributes["dimension"])
    driver = op.get_bind().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # we made the engine
    driver.execute(text.encode())  # without parameters: several statements, and % means itself


def write_encoder() -> None:
    """The row of memory.encoder: whose vectors this database holds."""
    from alembic import context, op
    from sqlalchemy import text

    values = {key: context.config.attributes[key] for key in ("encoder_id", "dimension")}
    op.get_bind().execute(text("INSERT INTO memory.encoder (id, dimension) VALUES (:encoder_id, :dimension)"), values)


def _run_alembic(connection: Connection, encoder_id: str, dimension: int, revision: str) -> None:
    from alembic import command

    config = _config()
    config.attributes.update(connection=connection, encoder_id=encoder_id, dimension=dimension)
    command.upgrade(config, revision)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # % would be interpolated, were a checkout's path to hold one
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
