"""`ruvllm registry …`: the reviewer's verbs. No work of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ruvllm.commands import trials
from ruvllm.commands.console import console, table
from ruvllm.commands.verbs import Json, plainly, say, settings_here
from ruvllm.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Candidates and the champion: status, approve, promote, roll back.")
app.add_typer(trials.app, name="trial")
Version = Annotated[str, typer.Argument(help="The version's number in MLflow.")]
By = Annotated[str, typer.Option("--by", help="Who decides; kept in the ledger.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the ledger.")]


@app.command()
@plainly
def status(as_json: Json = False) -> None:
    """The champion, and every version with its review state."""
    from ruvllm.registry.overview import versions

    found = versions(settings := settings_here(), _database(settings))
    rows = [
        [v.version, "champion" if v.champion else "", v.review, v.reviewed_by, v.cycle_id, v.created] for v in found
    ]
    say(
        as_json,
        [vars(v) for v in found],
        lambda: console.print(
            table("Router versions", ["version", "serves", "review", "by", "cycle", "registered"], rows)
            if rows
            else "no version yet: ruvllm cycle makes the first"
        ),
    )


@app.command()
@plainly
def approve(version: Version, by: By, reason: Reason = "") -> None:
    """Approve a candidate; it becomes champion when its gates pass again (registry promote, or within five minutes)."""
    from ruvllm.registry import promotion

    promotion.approve(settings_here(), version, by, reason)
    console.print(f"version {version} approved by {by}")


@app.command()
@plainly
def reject(version: Version, by: By, reason: Reason = "") -> None:
    """Reject a candidate; the champion stays."""
    from ruvllm.registry import promotion

    promotion.reject(settings_here(), version, by, reason)
    console.print(f"version {version} rejected by {by}")


@app.command()
@plainly
def promote(version: Version) -> None:
    """Promote an approved candidate: gates again, then the ledger, then MLflow's alias."""
    from ruvllm.registry import promotion

    settings = settings_here()
    row = promotion.promote(settings, _database(settings), version)
    console.print(
        f"version {row.version} is champion (before: {row.previous or 'none'}), approved by {row.approved_by}"
    )


@app.command()
@plainly
def rollback(by: By, reason: Reason = "") -> None:
    """Make the champion before this one champion again; a running gateway follows within seconds."""
    from ruvllm.registry import promotion

    settings = settings_here()
    row = promotion.rollback(settings, _database(settings), by, reason)
    console.print(f"version {row.version} is champion again (before: {row.previous})")


@app.command()
@plainly
def history(as_json: Json = False) -> None:
    """Every change of champion: who, when, why."""
    from ruvllm.registry import ledger

    with _database(settings_here()).transaction() as connection:
        found = ledger.history(connection)
    columns = ["when", "what", "version", "before", "by", "why"]
    rows: list[list[Any]] = [
        [f"{r.created_at:%Y-%m-%d %H:%M:%S}", r.action, r.version, r.previous, r.approved_by, r.reason] for r in found
    ]
    say(
        as_json,
        [dict(zip(columns, row, strict=True)) for row in rows],
        lambda: console.print(table("Promotions", columns, rows)),
    )


@app.command()
@plainly
def identities(
    into: Annotated[Path, typer.Argument(help="The file that gets the three passwords; keep it closed to others.")],
    admin_file: Annotated[Path, typer.Option(help="The administrator's: a TOML table [admin], username and password.")],
) -> None:
    """Make trainer, promoter and reviewer in an MLflow that runs with its basic-auth app, each with its rights."""
    from ruvllm.errors import SettingsError
    from ruvllm.registry.identities import make_identities, read_identities

    known = read_identities(admin_file)
    if "admin" not in known:
        raise SettingsError(f"{admin_file}: holds {', '.join(known) or 'nobody'}, want a table [admin]")
    made = make_identities(settings_here(), known["admin"], into)
    console.print(f"{', '.join(made)}: passwords in {into}; set RUVLLM_MLFLOW_IDENTITIES_FILE to it", markup=False)


def _database(settings: Settings) -> Any:
    from ruvllm.database import open_database

    return open_database(settings)
