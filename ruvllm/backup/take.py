"""Takes a backup while everything runs: database, MLflow's figures, artifacts, bundles, workspaces.

The database is dumped from one snapshot, of which the digests are too. Artifacts are copied after it: what the dumped
ledger names was there before. Knows nothing of when backups are taken.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import Connection, IsolationLevel

from ruvllm import __version__
from ruvllm.backup.digest import table_digests
from ruvllm.backup.manifest import (
    DUMP,
    MANIFEST,
    MLFLOW,
    STATE,
    Manifest,
    TableDigest,
    files_under,
    read_manifest,
    sha256_of,
)
from ruvllm.backup.programs import run_program
from ruvllm.database import database_url
from ruvllm.database.migrate import schema
from ruvllm.errors import ArtifactError, DatabaseError, InputError
from ruvllm.progress import Progress, silent
from ruvllm.registry import ledger
from ruvllm.router.durable import replace_file
from ruvllm.settings import Settings

FOLDERS = ("mlflow/artifacts", "router", "cycles")  # of the state directory; caches and logs can be made anew
_LEFT_OUT = {".dvc", "tmp", "__pycache__"}
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Taken:
    folder: Path
    manifest: Manifest
    bytes: int
    removed: tuple[str, ...]  # older backups that --keep let go


def take(settings: Settings, into: Path, keep: int = 0, progress: Progress = silent) -> Taken:
    """A backup in a new folder of `into`, named by its time; with `keep` only the newest so many stay.

    Raises:
        InputError: `keep` is negative.
        ArtifactError: the folder cannot be written, as with a full disk; nothing half-done stays under its name.
        DatabaseError: the database cannot be read whole.
    """
    if keep < 0:
        raise InputError(f"keep: got {keep}, want 0 (all) or how many backups stay")
    name = f"ruvllm-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    partial, folder = into / f"{name}{_PARTIAL}", into / name
    try:
        partial.mkdir(parents=True, mode=0o700)
        manifest = _fill(settings, partial, progress)
        partial.rename(folder)
        size = sum(path.stat().st_size for path in files_under(folder))
        return Taken(folder, manifest, size, tuple(_prune(into, keep)))
    except OSError as error:
        raise ArtifactError(f"backup {folder}: {error}; free some space or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(settings: Settings, folder: Path, progress: Progress) -> Manifest:
    dsn = database_url(settings)
    found = schema(dsn)
    if found is None:
        raise DatabaseError('backup: the database holds nothing yet; "ruvllm cycle" fills it')
    progress(0, 3, "database")
    with _snapshot(dsn) as (connection, snapshot):
        tables, champion = _rows(connection)
        arguments = ["--format=custom", f"--snapshot={snapshot}", f"--file={folder / DUMP}", "--no-password"]
        run_program("pg_dump", dsn, arguments)
    progress(1, 3, "MLflow and artifacts")
    _copy_mlflow(settings, folder)
    _copy_state(settings, folder)
    progress(2, 3, "hashes")
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        revision=found.revision,
        encoder_id=found.encoder_id,
        dimension=found.dimension,
        champion=champion,
        artifacts_uri="" if settings.mlflow_tracking_uri else (settings.state_dir / "mlflow" / "artifacts").as_uri(),
        files={str(path.relative_to(folder)): sha256_of(path) for path in files_under(folder)},
        tables=tables,
    )
    replace_file(folder / MANIFEST, manifest.to_json().encode())
    progress(3, 3, "done")
    return manifest


@contextmanager
def _snapshot(dsn: str) -> Iterator[tuple[Connection, str]]:
    """A read-only transaction and its snapshot's name, which pg_dump reads too."""
    try:
        with psycopg.connect(dsn) as connection:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            row = connection.execute("SELECT pg_export_snapshot()").fetchone()
            assert row is not None
            yield connection, str(row[0])
    except psycopg.Error as error:
        raise DatabaseError(f'backup: {str(error).strip()}; run "ruvllm doctor"') from error


def _rows(connection: Connection) -> tuple[dict[str, TableDigest], str]:
    row = ledger.current(connection)
    return table_digests(connection), row.version if row else ""


def _copy_mlflow(settings: Settings, folder: Path) -> None:
    """MLflow's SQLite by SQLite's own backup, which sees whole transactions while a server writes."""
    source = settings.state_dir / "mlflow" / "mlflow.db"
    if settings.mlflow_tracking_uri or not source.is_file():
        return
    with closing(sqlite3.connect(source)) as reading, closing(sqlite3.connect(folder / MLFLOW)) as writing:
        reading.backup(writing)


def _copy_state(settings: Settings, folder: Path) -> None:
    for name in FOLDERS:
        source = settings.state_dir / name
        if source.is_dir():
            shutil.copytree(source, folder / STATE / name, symlinks=True, ignore=_ignored)


def _ignored(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in _LEFT_OUT or name.endswith(_PARTIAL)}


def _prune(into: Path, keep: int) -> Iterator[str]:
    """Remove the oldest whole backups beyond `keep`; what has no readable manifest is not ours to remove."""
    whole = [path for path in sorted(into.glob("ruvllm-*")) if path.is_dir() and _is_whole(path)]
    for path in whole[:-keep] if keep else ():
        shutil.rmtree(path)
        yield path.name


def _is_whole(path: Path) -> bool:
    try:
        read_manifest(path)
    except ArtifactError:
        return False
    return True
