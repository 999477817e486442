"""`ruvllm registry trial start|status|stop`: a candidate beside the champion, unserved or for a share of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import opened
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.database.pool import Database
    from ruvllm.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Try a candidate on live traffic: shadow (it only decides) or canary (it serves a share).",
)
_COLUMNS = ("id", "version", "share", "started", "stopped", "why", "decided", "agreed")


@app.command()
@plainly
def start(
    version: Annotated[str, typer.Argument(help="The version's number in MLflow.")],
    share: Annotated[float, typer.Option(help="Of the requests that it answers; 0: it only decides beside.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Put a version on trial, in place of the one before. Gateways follow within 2 s, and stop one that is worse.

    [dim]ruvllm registry trial start 7 --share 0.1[/]
    """
    from ruvllm.serving import canary

    sha256, uri = _bundle_of(settings_here(), version, serves=share > 0)
    with opened() as database:
        trial = canary.start(database, version, sha256, uri, share)
    what = f"answers {share:.0%} of the requests" if share else "decides beside the champion and answers nobody"
    say(
        as_json, {"trial": trial, "version": version}, lambda: console.print(f"trial {trial}: version {version} {what}")
    )


@app.command()
@plainly
def status(as_json: Json = False) -> None:
    """The last trials: which is on, which were stopped and why, how often a shadow chose as the champion did."""
    with opened() as database:
        found = _trials(database)
    say(
        as_json,
        found,
        lambda: console.print(
            table("Trials", list(_COLUMNS), [[row[name] for name in _COLUMNS] for row in found])
            if found
            else "no trial yet: ruvllm registry trial start VERSION"
        ),
    )


@app.command()
@plainly
def stop(
    reason: Annotated[str, typer.Option(help="Why; kept with the trial.")] = "stopped by hand", as_json: Json = False
) -> None:
    """End the trial that is on; gateways follow within 2 s."""
    from ruvllm.errors import InputError
    from ruvllm.serving import canary

    with opened() as database:
        trial = canary.newest(database)
        if trial is None:
            raise InputError("no trial is on; ruvllm registry trial status lists those before")
        canary.stop(database, trial.id, reason)
    say(as_json, {"trial": trial.id, "why": reason}, lambda: console.print(f"trial {trial.id} stopped: {reason}"))


def _bundle_of(settings: Settings, version: str, serves: bool) -> tuple[str, str]:
    """(sha256, artifact URI) of a registered version; one that is to serve was approved by somebody."""
    from ruvllm.errors import GateError, RegistryError
    from ruvllm.registry.package import BUNDLE, how_to_approve, run_uri
    from ruvllm.registry.tracking import find_version, mlflow_session

    with mlflow_session(settings) as client:
        found = find_version(client, version)
        uri = f"{run_uri(client, found)}/{BUNDLE}"
    review = found.tags.get("validation_status", "pending")
    if review == "rejected" or (serves and review != "approved"):
        raise GateError(f"version {version} is {review}, want approved: {how_to_approve(version)}")
    if "bundle_sha256" not in found.tags:
        raise RegistryError(f"version {version}: tag bundle_sha256 is missing; register candidates with ruvllm cycle")
    return str(found.tags["bundle_sha256"]), uri


def _trials(database: Database) -> list[dict[str, Any]]:
    """The ten newest, the newest first."""
    from psycopg.rows import dict_row

    from ruvllm.serving import canary

    with database.transaction() as connection:
        found = connection.cursor(row_factory=dict_row).execute(_NEWEST).fetchall()
    for row in found:
        row["decided"], row["agreed"] = canary.agreement(database, row["id"])
    return found


_NEWEST = """
    SELECT id, version, share::float8, started_at AS started, stopped_at AS stopped, stop_reason AS why
    FROM serving.trials ORDER BY id DESC LIMIT 10
"""
