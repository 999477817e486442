"""`ruvllm keys create|list|revoke`: who may ask the gateway. No work of its own."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ruvllm.commands.console import console, errors, table
from ruvllm.commands.shared import opened
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.serving.keys import KeyRecord

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Keys of the gateway: a tenant, scopes, limits and an expiry each. Kept as digests, shown once.",
)
_DAY_S = 86400.0


@app.command()
@plainly
def create(
    name: Annotated[str, typer.Option(help="What it is for; shown in lists.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose memory it reaches; by default this one's.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="ask, feedback, memory, admin; may be repeated.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests at once; by default RUVLLM_KEY_CONCURRENCY.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Requests a minute; by default no limit.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Prompt tokens a minute; by default no limit.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; by default it does not.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the key to this new file, for its owner alone.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this one time. By default it may ask and give feedback.

    [dim]ruvllm keys create --name editor --scope ask --requests 60[/]
    """
    from ruvllm.serving.admission import CallerLimits
    from ruvllm.serving.keys import KeyStore

    settings = settings_here()
    limits = CallerLimits(settings.key_concurrency if concurrency is None else concurrency, requests, tokens)
    expires_s = None if days is None else days * _DAY_S
    with opened() as database:
        record, key = KeyStore(database).create(
            tenant or settings.tenant, scope or ("ask", "feedback"), name, limits, expires_s
        )
    if out is not None:
        _write(out, key)
    shown = {**_row(record), **({"file": str(out)} if out else {"key": key})}
    say(as_json, shown, lambda: _show(record, key, out))


def _write(out: Path, key: str) -> None:
    from ruvllm.errors import InputError

    try:
        with open(out, "x", encoding="ascii", opener=_private) as file:
            file.write(f"{key}\n")
    except OSError as error:
        errors.print(f"the key was made; shown here because its file could not be: {key}", markup=False, soft_wrap=True)
        raise InputError(f"{out}: {error.strerror or error}; want a new file in a folder that is there") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _show(record: KeyRecord, key: str, out: Path | None) -> None:
    console.print(f"key {record.id} of tenant {record.tenant}: {', '.join(record.scopes)}", markup=False)
    if out is not None:
        console.print(f"written to {out}", markup=False, soft_wrap=True)
    else:
        print(key)
        console.print("It is not shown again. A running gateway knows it within two seconds.", markup=False)


@app.command("list")
@plainly
def list_keys(as_json: Json = False) -> None:
    """Every key of every tenant, without the key itself."""
    from ruvllm.serving.keys import KeyStore

    with opened() as database:
        found = [_row(record) for record in KeyStore(database).list()]
    columns = ["id", "tenant", "name", "scopes", "state", "expires"]
    say(
        as_json,
        found,
        lambda: console.print(
            table("Keys", columns, [[str(row[column]) for column in columns] for row in found])
            if found
            else "no key yet: on this machine alone the gateway asks for none; ruvllm keys create makes the first"
        ),
    )


@app.command()
@plainly
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as ruvllm keys list shows it.")],
    as_json: Json = False,
) -> None:
    """Close a key for good; a running gateway refuses it within two seconds."""
    from ruvllm.serving.keys import KeyStore

    with opened() as database:
        record = KeyStore(database).revoke(key)
    say(as_json, _row(record), lambda: console.print(f"key {record.id} is revoked", markup=False))


def _row(record: KeyRecord) -> dict[str, object]:
    from datetime import UTC, datetime

    state = "revoked" if record.revoked_at else "valid" if record.valid_at(datetime.now(UTC)) else "expired"
    expires = f"{record.expires_at:%Y-%m-%d %H:%M}" if record.expires_at else ""
    return {
        "id": record.id,
        "tenant": record.tenant,
        "name": record.name,
        "scopes": ", ".join(record.scopes),
        "state": state,
        "expires": expires,
        **asdict(record.limits),
    }
