"""`ruvllm models …`: the files of the tiers. No work of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from ruvllm.console import Bars, console, table
from ruvllm.verbs import Json, plainly, say, settings_here

app = typer.Typer(no_args_is_help=True, help="Model files of the tiers: list, pull, verify, remove.")
Names = Annotated[list[str], typer.Argument(help="Tiers by name, for example 350m or lfm2-350m.")]


@app.command("list")
@plainly
def list_models(as_json: Json = False) -> None:
    """Every tier of every ladder, which files are there, and which ladder is in use and why."""
    from ruvllm.inference.tiers import active_ladder, load_catalogue, present

    settings = settings_here()
    ladder = active_ladder(settings)
    tiers = [
        t for found in load_catalogue().values() for t in found if t.packages or t.quantisation == settings.quantisation
    ]
    rows = [
        [t.name, t.ladder, t.quantisation, t.params_b, t.licence, "yes" if present(t, settings) else "no",
         "yes" if t.name in ladder.names else ""] for t in tiers
    ]  # fmt: skip
    columns = ["tier", "ladder", "quantisation", "B parameters", "licence", "file there", "in use"]
    say(
        as_json,
        [dict(zip(columns, row, strict=True)) for row in rows],
        lambda: console.print(table("Tiers", columns, rows), f"\n{ladder.note}", sep="", soft_wrap=True),
    )


@app.command()
@plainly
def pull(names: Names) -> None:
    """Download tiers from the hub: resumed where it stopped, hash checked before use."""
    from ruvllm.inference.hub import pull as pull_file
    from ruvllm.inference.tiers import find_tier

    settings = settings_here()
    with Bars() as bars:
        for name in names:
            tier = find_tier(name, settings)
            path = pull_file(tier, settings, bars.stage(f"Pulling {tier.name} {tier.quantisation}"))
            console.print(f"{tier.name}: {path}", soft_wrap=True)


@app.command()
@plainly
def verify(names: Names) -> None:
    """Hash the files anew and compare with what is pinned."""
    from ruvllm.inference.files import verify as verify_file
    from ruvllm.inference.tiers import find_tier

    settings = settings_here()
    with Bars() as bars:
        for name in names:
            tier = find_tier(name, settings)
            verify_file(tier, settings, bars.stage(f"Hashing {tier.name}"), force=True)
            console.print(f"{tier.name}: as pinned")


@app.command()
@plainly
def remove(names: Names) -> None:
    """Remove the files of tiers from the model directory."""
    from ruvllm.inference.files import remove as remove_file
    from ruvllm.inference.tiers import find_tier

    settings = settings_here()
    for name in names:
        tier = find_tier(name, settings)
        console.print(f"{tier.name}: {remove_file(tier, settings) / 2**20:.0f} MiB removed")
