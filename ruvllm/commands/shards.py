"""`ruvllm memory shards …`: memory on several Postgres servers. No work of its own."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help='Memory on several Postgres servers. FILE is TOML: coordinator = "postgresql://…", then a table '
    '\\[shards] of name = "postgresql://…", in an order that is never changed.',
)
File = Annotated[Path, typer.Argument(help="The set of shards, as TOML.")]


@app.command()
@plainly
def status(file: File, as_json: Json = False) -> None:
    """Every shard: whether it answers, nodes (the planner's estimate), size. Exits with 1 where one does not answer."""
    from ruvllm.memory.shards import Shards
    from ruvllm.memory.shards.records import load

    with closing(Shards(load(file), settings_here().tenant)) as opened:
        found = opened.status()
    rows = [[each.name, each.nodes, f"{each.bytes / 2**20:.1f} MiB", each.error] for each in found]
    say(as_json, [asdict(each) for each in found],
        lambda: console.print(table("Shards", ["shard", "nodes", "size", "error"], rows)))  # fmt: skip
    if any(each.error for each in found):
        raise typer.Exit(1)


@app.command()
@plainly
def create(file: File, as_json: Json = False) -> None:
    """Migrate coordinator and shards, number their ids, and open this tenant on them. A second time does no harm."""
    from ruvllm.embedding import open_embedder
    from ruvllm.memory.shards import create as made
    from ruvllm.memory.shards import open_tenant
    from ruvllm.memory.shards.records import load

    settings, shards = settings_here(), load(file)
    embedder = open_embedder(settings)
    made(shards, embedder.id, embedder.dimension)
    open_tenant(shards, settings.tenant)
    names = [shard.name for shard in shards.shards]
    say(as_json, {"shards": names, "tenant": settings.tenant},
        lambda: console.print(f"tenant {settings.tenant} is open on {', '.join(names)}", soft_wrap=True))  # fmt: skip


@app.command()
@plainly
def search(
    file: File,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many nodes.", min=1, max=1000)] = 5,
    exact: Annotated[bool, typer.Option("--exact", help="Every shard sorts all its nodes.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the SQL that each shard would be sent instead.")] = False,
    as_json: Json = False,
) -> None:
    """The nodes of all shards together that are nearest in meaning.

    [dim]ruvllm memory shards search shards.toml "highest mountain" --plan[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.memory.shards import Shards
    from ruvllm.memory.shards.records import load
    from ruvllm.text import clean_text

    settings = settings_here()
    vector = open_embedder(settings).embed_one(clean_text(query))
    with closing(Shards(load(file), settings.tenant)) as opened:
        if plan:
            sent = [{"shard": each.shard, "pushed": each.pushed, "sql": each.remote_sql}
                    for each in opened.plan(vector, k, exact=exact)]  # fmt: skip
            rows = [[each["shard"], "yes" if each["pushed"] else "NO", each["sql"]] for each in sent]
            say(as_json, sent, lambda: console.print(table("Plan", ["shard", "sorts itself", "SQL"], rows)))
            return
        hits = opened.search(vector, k, exact=exact)
    found = [{"similarity": h.similarity, "shard": h.shard, "id": h.node.uuid, "text": h.node.text} for h in hits]
    rows = [[h.similarity, h.shard, h.node.uuid, h.node.text] for h in hits]
    say(as_json, found, lambda: console.print(table("Found", ["similarity", "shard", "id", "text"], rows)))


@app.command()
@plainly
def simulate(
    folder: Annotated[Path, typer.Argument(help="A new folder for the servers; remove it afterwards.")],
    nodes: Annotated[int, typer.Option(help="In all.", min=40)] = 10_000,
    dimension: Annotated[int, typer.Option(min=8, max=4000)] = 128,
    shards: Annotated[int, typer.Option(help="Servers beside the coordinator.", min=1, max=8)] = 4,
    queries: Annotated[int, typer.Option(min=1)] = 200,
    as_json: Json = False,
) -> None:
    """Run servers on this machine, fill them with made vectors, search, and measure: plan, recall, cost a shard."""
    from ruvllm.memory.shards import simulate as simulated

    with showing(as_json, "Filling shards") as progress:
        report = asdict(simulated(folder, nodes, dimension, shards, queries, progress=progress))
    rows = [[name, str(value)] for name, value in report.items()]
    say(as_json, report, lambda: console.print(table("Simulation", ["what", "measured"], rows)))
