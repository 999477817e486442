"""`ruvllm db analyst …`: logins that read memory with SQL. No work of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import opened
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.database.analysts import Access

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Logins that read memory with SQL: the views and search functions of schema analytics, one tenant, read-only.",
)
Login = Annotated[str, typer.Argument(metavar="NAME", help="The login: a-z, 0-9 and _.")]


@app.command()
@plainly
def add(
    login: Login,
    tenant: Annotated[str, typer.Option(help="Whose memory it reads; by default this one's.")] = "",
    show_password: Annotated[bool, typer.Option("--show-password", help="Print it, too.")] = False,
    as_json: Json = False,
) -> None:
    """Make a login with a password of its own, in a file that only you can read; show how to connect.

    [dim]ruvllm db analyst add ana[/]
    """
    from ruvllm.database.analysts import add as added

    settings = settings_here()
    with opened() as database, database.owner() as connection:
        access = added(connection, login, tenant or settings.tenant, _folder(settings.state_dir))
    say(as_json, _as_dict(access, show_password), lambda: _show(access, show_password))


def _folder(state_dir: Path) -> Path:
    return state_dir / "analysts"


def _as_dict(access: Access, show_password: bool) -> dict[str, object]:
    shown = {**asdict(access.analyst), "made": access.made, "password_file": access.password_file, "psql": access.psql}
    return {**shown, "password": access.password} if show_password else shown


def _show(access: Access, show_password: bool) -> None:
    state = "is new" if access.made else "was there already"
    console.print(f"analyst {access.analyst.login} {state}; it reads tenant {access.analyst.tenant}", markup=False)
    console.print(f"password: in {access.password_file}", markup=False, soft_wrap=True)
    if show_password:
        print(access.password)
    console.print(access.psql, markup=False, soft_wrap=True)


@app.command("list")
@plainly
def list_analysts(as_json: Json = False) -> None:
    """Every analyst of this database, and whose memory each reads."""
    from ruvllm.database.analysts import listed

    with opened() as database, database.owner() as connection:
        found = listed(connection)
    rows = [[each.login, each.tenant, f"{each.created_at:%Y-%m-%d %H:%M}"] for each in found]
    say(as_json, [asdict(each) for each in found],
        lambda: console.print(table("Analysts", ["login", "tenant", "made"], rows)))  # fmt: skip


@app.command()
@plainly
def remove(login: Login, as_json: Json = False) -> None:
    """Take a login away: it sees nothing from then on, its sessions end. Exits with 1 where there is none."""
    from ruvllm.database.analysts import remove as removed

    with opened() as database, database.owner() as connection:
        gone = removed(connection, login, _folder(settings_here().state_dir))
    told = "is gone" if gone else "is no analyst of this database"
    say(as_json, {"login": login, "removed": gone}, lambda: console.print(f"{login} {told}", markup=False))
    if not gone:
        raise typer.Exit(1)
