"""Brings a backup back into an empty database and an empty state directory, and proves that it is the same.

Every file is hashed before anything is written; the database comes back in one transaction, or not at all.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection, sql

from ruvllm.backup.digest import table_digests
from ruvllm.backup.manifest import DUMP, MLFLOW, STATE, Manifest, read_manifest, verify_files
from ruvllm.backup.programs import run_program
from ruvllm.backup.take import FOLDERS
from ruvllm.database import database_url
from ruvllm.database.migrate import check_server, head
from ruvllm.errors import ArtifactError, DatabaseError
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings

ROLES = ("ruvllm_app", "ruvllm_views", "ruvllm_reader")  # of the server, so no dump of a database holds them


@dataclass(frozen=True)
class Restored:
    manifest: Manifest
    tables: int
    files: int


def restore(settings: Settings, backup: Path, progress: Progress = silent) -> Restored:
    """Bring `backup` into the database and state directory of `settings`, both of which must be empty.

    Analysts' logins are roles of the server: add them again (ruvllm db analyst add), their tenants are remembered.

    Raises:
        ArtifactError: the backup is not whole, or the state directory holds something already.
        DatabaseError: the database holds something already, refuses, or does not hold the same rows afterwards.
    """
    manifest = read_manifest(backup)
    progress(0, 4, "hashes")
    verify_files(backup, manifest)
    _check_code(manifest)
    _check_state(settings)
    dsn = database_url(settings)
    _check_empty(dsn)
    progress(1, 4, "database")
    _restore_database(dsn, backup / DUMP)
    progress(2, 4, "rows")
    _check_rows(dsn, manifest)
    progress(3, 4, "files")
    files = _restore_files(settings, backup, manifest)
    progress(4, 4, "done")
    return Restored(manifest, len(manifest.tables), files)


def _check_code(manifest: Manifest) -> None:
    if manifest.revision > head():
        raise ArtifactError(
            f"backup: its schema is {manifest.revision}, this code's is {head()}; restore it with RuvLLM "
            f"{manifest.code_version} or newer"
        )


def _check_state(settings: Settings) -> None:
    taken = [name for name in (*FOLDERS, "mlflow/mlflow.db") if _holds(settings.state_dir / name)]
    if taken:
        raise ArtifactError(
            f"state directory {settings.state_dir}: holds {taken[0]} already; set RUVLLM_STATE_DIR to a new folder, "
            "or move it away"
        )


def _holds(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _check_empty(dsn: str) -> None:
    check_server(dsn)
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT to_regnamespace('memory') IS NOT NULL").fetchone()
    if row == (True,):
        raise DatabaseError(
            "restore: the database holds a memory already; set DATABASE_URL to an empty database, or RUVLLM_STATE_DIR "
            "to a new folder for an embedded one"
        )


def _restore_database(dsn: str, dump: Path) -> None:
    """Roles first. Views go to their owner again at the end: --no-owner gave them to whoever restores."""
    try:
        with psycopg.connect(dsn) as connection:
            for role in ROLES:
                _make_role(connection, role)
        arguments = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-password", f"--dbname={_name(dsn)}"]
        run_program("pg_restore", dsn, [*arguments, str(dump)])
        with psycopg.connect(dsn) as connection:
            connection.execute("SELECT memory.hand_views_over()")
            connection.execute("ANALYZE")
    except psycopg.Error as error:
        raise DatabaseError(f"restore: {str(error).strip()}") from error


def _make_role(connection: Connection, role: str) -> None:
    there = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    if there is None:
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
    if role == "ruvllm_app":
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


def _name(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn).get("dbname") or "postgres")


def _check_rows(dsn: str, manifest: Manifest) -> None:
    with psycopg.connect(dsn) as connection:
        found = table_digests(connection)
    for name, wanted in manifest.tables.items():
        if found.get(name) != wanted:
            got = found.get(name)
            raise DatabaseError(
                f"restore: table {name} holds {got.rows if got else 'no'} rows, digest {got.digest if got else '-'}, "
                f"want {wanted.rows} and {wanted.digest}; drop this database and restore another backup"
            )


def _restore_files(settings: Settings, backup: Path, manifest: Manifest) -> int:
    try:
        for name in FOLDERS:
            if (backup / STATE / name).is_dir():
                shutil.copytree(backup / STATE / name, settings.state_dir / name, dirs_exist_ok=True)
        if (backup / MLFLOW).is_file() and not settings.mlflow_tracking_uri:
            target = settings.state_dir / "mlflow" / "mlflow.db"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(backup / MLFLOW, target)
            _move_artifacts(target, manifest.artifacts_uri, (settings.state_dir / "mlflow" / "artifacts").as_uri())
    except OSError as error:
        raise ArtifactError(f"restore: {error}; free some space, empty {settings.state_dir} and try again") from error
    return len(manifest.files)


def _move_artifacts(database: Path, before: str, now: str) -> None:
    """MLflow writes down where its artifacts lie, as an address with this machine's path."""
    if not before or before == now:
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for column in [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]:
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?)'  # noqa: S608  # names are MLflow's
                    f' WHERE typeof("{column}") = \'text\' AND substr("{column}", 1, ?) = ?',
                    (now, len(before) + 1, len(before), before),
                )
