"""`ruvllm backup` and `ruvllm restore`. No work of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ruvllm.commands.console import console
from ruvllm.commands.shared import opened, showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here


@plainly
def backup(
    into: Annotated[Path, typer.Argument(help="The folder that backups go into, each in a folder of its own.")],
    keep: Annotated[int, typer.Option(help="How many backups stay there; 0: all.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Back up database, registry, artifacts, replay and EWC state with a manifest of hashes, while everything runs."""
    from ruvllm.backup.take import take

    with showing(as_json, "Backing up") as progress:
        taken = take(settings_here(), into, keep, progress)
    figures = {
        "folder": str(taken.folder), "bytes": taken.bytes, "rows": taken.manifest.rows,
        "files": len(taken.manifest.files), "champion": taken.manifest.champion, "removed": list(taken.removed),
    }  # fmt: skip
    say(
        as_json,
        figures,
        lambda: console.print(
            f"{taken.folder}: {taken.bytes / 2**20:.1f} MB, {taken.manifest.rows} rows in {len(taken.manifest.tables)} "
            f"tables, champion {taken.manifest.champion or 'none'}; bring it back with ruvllm restore",
            soft_wrap=True,
            markup=False,
        ),
    )


@plainly
def restore(
    folder: Annotated[Path, typer.Argument(help="One backup: the folder that holds manifest.json.")],
    as_json: Json = False,
) -> None:
    """Bring a backup back into an empty database and state directory, and check that every row is there."""
    from ruvllm import services
    from ruvllm.backup.bring_back import restore
    from ruvllm.errors import ProcessError

    settings = settings_here()
    running = [s.name for s in services.status(settings) if s.running and s.name != "postgres"]
    if running:
        raise ProcessError(f"restore: {', '.join(running)} runs; stop it first: ruvllm down")
    with showing(as_json, "Restoring") as progress:
        done = restore(settings, folder, progress)
    say(
        as_json,
        {"rows": done.manifest.rows, "tables": done.tables, "files": done.files, "champion": done.manifest.champion},
        lambda: console.print(
            f"restored {done.manifest.rows} rows in {done.tables} tables and {done.files} files of "
            f"{done.manifest.created_at}; every digest is the backup's",
            markup=False,
        ),
    )


@plainly
def digest(
    exact: Annotated[bool, typer.Option(help="Every column, as a backup counts them.")] = False, as_json: Json = False
) -> None:
    """Digests of all tables: equal for databases that hold the same; ids, times and latencies are left out."""
    from ruvllm.backup.digest import alike, everything, table_digests

    with opened() as database, database.owner() as connection, connection.transaction():
        found = table_digests(connection, everything if exact else alike)
    say(
        as_json,
        {name: asdict(each) for name, each in found.items()},
        lambda: console.print("\n".join(f"{name} {each.rows} {each.digest}" for name, each in found.items())),
    )


def add_to(app: typer.Typer, db_app: typer.Typer) -> None:
    """Register the verbs: `ruvllm backup`, `ruvllm restore`, `ruvllm db digest`."""
    app.command()(backup)
    app.command()(restore)
    db_app.command()(digest)
