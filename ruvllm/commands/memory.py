"""`ruvllm memory …`: look into memory, carry it, forget. No work of its own; heavy parts load inside the verbs."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ruvllm.commands import attention, shards, tidy
from ruvllm.commands.console import console, table
from ruvllm.commands.shared import opened, showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here
from ruvllm.errors import InputError

if TYPE_CHECKING:
    from ruvllm.database.pool import Database
    from ruvllm.memory.filters import Filter
    from ruvllm.memory.overview import Overview
    from ruvllm.memory.records import Hit, Neighbourhood, Node, Vector
    from ruvllm.memory.store import Memory
    from ruvllm.memory.tidy.forget import ForgetReport

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Memory: look into it, search it, tidy it, carry it elsewhere, forget.\n\n"
    "Begin with [bold]ruvllm memory stats[/] and [bold]ruvllm memory search TEXT[/]. What changes many rows is a dry "
    "run at first; [bold]ruvllm memory undo RUN[/] takes a run back. With SQL: [bold]ruvllm db analyst add NAME[/].",
)
app.add_typer(tidy.app)  # audit, dedup, compact, archive, decay, undo, runs, reindex
app.add_typer(attention.app)  # explain, link
app.add_typer(shards.app, name="shards")

Node_ = Annotated[str, typer.Argument(metavar="NODE", help="A node's uuid, as search shows it.")]


@app.command()
@plainly
def stats(as_json: Json = False) -> None:
    """What memory holds: nodes by kind, edges, the index and its parameters, the saved replica, queues, last runs.

    [dim]ruvllm memory stats --json | jq .counts[/]
    """
    from ruvllm.memory.overview import overview

    with opened() as database:
        found = overview(database, settings_here().replica_dir)
    say(as_json, found.as_dict(), lambda: _show_overview(found))


def _show_overview(found: Overview) -> None:
    console.print(
        table("Memory", ["what", "count"], [[name, n] for name, n in {**found.counts, **found.waiting}.items()])
    )
    if index := found.index:
        state = "" if index.valid else ", NOT VALID: run ruvllm memory reindex"
        fits = "" if index.parameters == index.wanted else f"; this size wants {index.wanted}: ruvllm memory reindex"
        console.print(f"\nindex {index.name}: {index.bytes / 2**20:.1f} MiB, {index.parameters}, efSearch "
                      f"{index.ef_search}{fits}{state}", soft_wrap=True)  # fmt: skip
    if saved := found.replica:
        size = saved.bytes / 2**20
        console.print(f"replica: {saved.nodes} nodes, {size:.1f} MiB, saved at {saved.position}", soft_wrap=True)
    else:
        console.print("replica: none is saved")
    if found.runs:
        console.print(tidy.runs_table(found.runs))


@app.command()
@plainly
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many nodes.", min=1, max=1000)] = 5,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be given several times.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Only this domain; any of several.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; all of several.")] = None,
    trust: Annotated[list[str] | None, typer.Option(help="Only system, corroborated or untrusted.")] = None,
    since: Annotated[str, typer.Option(help="Written at or after, for example 2026-01-31 (UTC).")] = "",
    until: Annotated[str, typer.Option(help="Written before.")] = "",
    min_confidence: Annotated[float, typer.Option(help="From 0 to 1.")] = 0.0,
    reader: Annotated[str, typer.Option(help="Whose untrusted nodes are found, too.")] = "",
    words: Annotated[bool, typer.Option("--words", help="By words instead of by meaning.")] = False,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="By meaning and words together.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every node instead of walking the index.")] = False,
    as_json: Json = False,
) -> None:
    """The nodes of memory that are nearest in meaning.

    [dim]ruvllm memory search "highest mountain" --kind Fact --since 2026-01-01 -k 10[/]
    [dim]ruvllm memory search "exports of Ghana" --hybrid --tag atlas[/]
    """
    from ruvllm.memory.filters import Filter
    from ruvllm.workplace import open_workplace

    if words + hybrid + exact > 1:
        raise InputError("search: got several of --words, --hybrid and --exact, want at most one")
    wanted = Filter(
        kinds=tuple(kind or ()), domains=tuple(domain or ()), tags=tuple(tag or ()), trusts=tuple(trust or ()),
        since=_moment(since), until=_moment(until), min_confidence=min_confidence, reader=reader,
    )  # fmt: skip
    with open_workplace(settings_here()) as place:
        hits = _found(place.memory, query, k, wanted, "words" if words else "hybrid" if hybrid else "exact" * exact)
    rows = [[h.similarity, h.node.kind, h.node.source, h.node.uuid, h.node.text] for h in hits]
    columns = ["score" if words else "similarity", "kind", "source", "id", "text"]
    say(as_json, [_hit(hit) for hit in hits],
        lambda: console.print(table(f"Memory near {query!r}", columns, rows)))  # fmt: skip


def _found(memory: Memory, query: str, k: int, wanted: Filter, how: str) -> list[Hit]:
    if how == "words":
        return memory.search_words(query, k, wanted)
    if how == "hybrid":
        return memory.hybrid(query, k, wanted)
    if how == "exact":
        from ruvllm.text import clean_text

        return memory.search(memory.embedder.embed_one(clean_text(query)), k, filter=wanted, exact=True)
    return memory.search_text(query, k, filter=wanted)


def _moment(text: str) -> datetime | None:
    """A time without a zone is UTC's."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"time: got {text!r}, want one like 2026-01-31 or 2026-01-31T12:00+02:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _hit(hit: Hit) -> dict[str, object]:
    return {"similarity": hit.similarity, **_node(hit.node)}


def _node(node: Node) -> dict[str, object]:
    return {"id": node.uuid, "kind": node.kind, "domain": node.domain, "source": node.source, "trust": node.trust,
            "confidence": node.confidence, "tags": list(node.tags), "text": node.text}  # fmt: skip


@app.command()
@plainly
def neighbours(
    node: Node_,
    hops: Annotated[int, typer.Option(help="How far.", min=1, max=4)] = 2,
    relation: Annotated[list[str] | None, typer.Option(help="Only edges of this relation; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="How many nodes.", min=1, max=256)] = 20,
    reader: Annotated[str, typer.Option(help="Whose untrusted nodes are walked through, too.")] = "",
    as_json: Json = False,
) -> None:
    """What a node is linked to, both directions, nearest hops first.

    [dim]ruvllm memory neighbours 0189a3c0-…  --hops 1 --relation Cites[/]
    """
    from ruvllm.memory.records import RELATIONS, Walk
    from ruvllm.workplace import open_workplace

    if unknown := set(relation or ()) - set(RELATIONS):
        raise InputError(f"relation: got {sorted(unknown)[0]!r}, want one of {', '.join(RELATIONS)}")
    with open_workplace(settings_here()) as place:
        seed = _seed(place.database, node)
        walked = place.memory.walk([seed], Walk(hops, limit=limit, relations=tuple(relation or ()), reader=reader))
        nodes = {each.id: each for each in place.memory.get([int(id) for id in walked.ids])}
    rows = [
        [int(hop), float(score), nodes[int(id)].kind, nodes[int(id)].uuid, nodes[int(id)].text]
        for id, hop, score in zip(walked.ids, walked.hops, walked.scores, strict=True)
    ]
    say(as_json, _walked(walked, nodes),
        lambda: console.print(table(f"Around {node}", ["hop", "score", "kind", "id", "text"], rows)))  # fmt: skip


def _seed(database: Database, node: str) -> int:
    try:
        wanted = uuid.UUID(node)
    except ValueError as error:
        raise InputError(f"node: got {node!r}, want a uuid as memory search shows it") from error
    with database.transaction() as connection:
        row = connection.execute("SELECT id FROM memory.nodes WHERE uuid = %s", [wanted]).fetchone()
    if row is None:
        raise InputError(f"node {node}: memory holds no such node")
    return int(row[0])


def _walked(walked: Neighbourhood, nodes: dict[int, Node]) -> dict[str, object]:
    found = [
        {"hop": int(hop), "score": float(score), **_node(nodes[int(id)])}
        for id, hop, score in zip(walked.ids, walked.hops, walked.scores, strict=True)
    ]
    edges = [
        {"src": nodes[src].uuid, "dst": nodes[dst].uuid, "relation": relation, "weight": weight}
        for src, dst, relation, weight in walked.edges
    ]
    return {"nodes": found, "edges": edges}


@app.command()
@plainly
def embed(
    text: Annotated[str, typer.Argument(help="A question, or with --document a passage.")],
    document: Annotated[bool, typer.Option("--document", help="Embed it as a stored passage is.")] = False,
    as_json: Json = False,
) -> None:
    """The vector of a text as SQL takes it, for memory_search.

    [dim]psql … -v v="$(ruvllm memory embed 'highest mountain')" <<< "SELECT * FROM memory_search(:'v', 5)"[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.text import clean_text

    embedder = open_embedder(settings_here())
    vector = embedder.embed_one(clean_text(text), "document" if document else "query")
    say(as_json, {"encoder": embedder.id, "vector": vector.tolist()}, lambda: print(_literal(vector)))


def _literal(vector: Vector) -> str:
    return "[" + ",".join(f"{number:.6g}" for number in vector) + "]"


@app.command()
@plainly
def calibrate(as_json: Json = False) -> None:
    """Measure the encoder's thresholds for duplicates on made pairs: two curves, and what they recommend.

    It changes nothing; RUVLLM_PARAPHRASE_COSINE sets another threshold.
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.memory.likeness.calibrate import calibrate as measured

    with showing(as_json, "Embedding the pairs") as progress:
        found = measured(open_embedder(settings_here()), progress)
    say(as_json, asdict(found), lambda: print(found.as_table()))


@app.command("export")
@plainly
def export_(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    format: Annotated[str, typer.Option(help="parquet or jsonl.")] = "parquet",
    as_json: Json = False,
) -> None:
    """Write all of this tenant's memory to files: nodes with vectors and texts, edges, a manifest with hashes.

    [dim]ruvllm memory export backup/[/]
    [dim]ruvllm memory export readable/ --format jsonl[/]
    """
    from ruvllm.memory.exchange.transfer import export_memory

    with opened() as database, showing(as_json, "Exporting memory") as progress:
        report = export_memory(database, folder, format, progress)
    told = f"{report.nodes} nodes and {report.edges} edges in {report.folder}"
    say(as_json, asdict(report), lambda: console.print(told, soft_wrap=True))


@app.command("import")
@plainly
def import_(
    folder: Annotated[Path, typer.Argument(help="What ruvllm memory export wrote.")],
    re_embed: Annotated[bool, typer.Option("--re-embed", help="Make every vector anew, for another encoder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and list them.")] = False,
    edited: Annotated[bool, typer.Option("--edited", help="The files were changed on purpose.")] = False,
    as_json: Json = False,
) -> None:
    """Bring an exported memory in. Every row is checked first; a second run adds nothing; a killed one goes on.

    [dim]ruvllm memory import backup/[/]
    [dim]RUVLLM_ENCODER=lfm2 ruvllm memory import backup/ --re-embed[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.memory.exchange.transfer import ImportOptions, import_memory

    settings, options = settings_here(), ImportOptions(re_embed, skip_bad, edited)
    with opened() as database, showing(as_json, "Importing memory") as progress:
        report = import_memory(database, folder, lambda: open_embedder(settings), options, progress)
    lines = [f"left out {bad}" for bad in report.bad]
    told = f"{report.nodes} nodes and {report.edges} edges written; {report.there} nodes were there already"
    say(as_json, asdict(report), lambda: console.print("\n".join([*lines, told]), markup=False, soft_wrap=True))


@app.command()
@plainly
def forget(
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", help="Nodes' uuids.")] = None,
    writer: Annotated[str, typer.Option(help="All that this writer wrote, instead of nodes.")] = "",
    only_memory: Annotated[bool, typer.Option("--only-memory", help="Leave requests and oracle alone.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only count.")] = False,
    as_json: Json = False,
) -> None:
    """Delete for good: nodes, or a writer, everywhere. Cannot be undone, so without --yes it only counts.

    [dim]ruvllm memory forget 0189a3c0-…[/]
    [dim]ruvllm memory forget --writer mallory --yes[/]
    """
    from ruvllm.memory.tidy.forget import forget_nodes, forget_writer, wipe_saved_replicas

    if bool(nodes) == bool(writer):
        raise InputError("forget: want nodes' uuids, or --writer NAME, and not both")
    with opened() as database, showing(as_json, "Forgetting") as progress:
        if writer:
            report = forget_writer(database, writer, yes, only_memory, progress)
        else:
            report = forget_nodes(database, nodes or [], yes, only_memory, progress)
        if not report.dry:
            wipe_saved_replicas(settings_here().replica_dir, database.tenant)
    say(as_json, report.as_dict(), lambda: _show_forgotten(report))


def _show_forgotten(report: ForgetReport) -> None:
    console.print("Would be deleted; nothing was: --yes does it" if report.dry else "Deleted for good")
    rows = [[name.replace("_", " "), number] for name, number in report.counts.items() if number]
    console.print(table("", ["what", "rows"], rows))
    for each in report.missing:
        console.print(f"not in memory: {each}")
    if report.derived:
        console.print(f"{report.derived} nodes were answered from them and stay; name them, too, if they have to go")
    if not report.dry and not report.vacuumed:
        console.print("the rows' space is wiped at the next vacuum: this login may not do it now")
