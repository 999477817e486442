"""`ruvllm memory audit|dedup|compact|archive|decay|undo|runs|reindex`. No work of its own.

The verbs that change rows are dry runs until one of their kind is on record; --apply and --dry-run say which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import opened, showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.memory.tidy.runs import Run

app = typer.Typer(rich_markup_mode="rich")
Apply = Annotated[
    bool | None,
    typer.Option("--apply/--dry-run", help="Do it, or only say what would be done. [default: dry the first time]"),
]
Cap = Annotated[int | None, typer.Option(help="At most so many rows change; by default 1 % of the live ones.", min=0)]


@app.command()
@plainly
def audit(
    sample: Annotated[int, typer.Option(help="Stored vectors to ask with.", min=1, max=1000)] = 50,
    as_json: Json = False,
) -> None:
    """Compare the index with exact search, ask the canary's questions, look for orphans. Exits with 1 on an alarm."""
    from ruvllm.memory.tidy.audit import audit as audited

    with opened() as database:
        report = audited(database, sample)
    rows = [[name, _shown(value)] for name, value in report.as_dict().items()]
    say(as_json, report.as_dict(), lambda: console.print(table("Audit of memory", ["what", "found"], rows)))
    if report.alarms:
        raise typer.Exit(1)


@app.command()
@plainly
def dedup(
    apply: Apply = None,
    cap: Cap = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All nodes, not only those since last time.")
    ] = False,
    protect: Annotated[list[str] | None, typer.Option(help="A kind that is not merged; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Merge exact and near duplicates by the conflict rule. The merged ones stay as old versions.

    [dim]ruvllm memory dedup --dry-run[/]
    [dim]ruvllm memory dedup --apply --cap 100[/]
    """
    from ruvllm.memory.tidy.dedup import dedup as merged

    settings = settings_here()
    with opened() as database, showing(as_json, "Merging duplicates") as progress:
        report = merged(database, settings, progress, everything, apply, cap, tuple(protect or ()))
    rows = [[how, node, heir] for node, heir, how in report.pairs]
    pairs = table("Pairs, the first 100", ["how", "node", "into"], rows) if rows else None
    _say_run(as_json, {**report.as_dict(), "pairs": [list(pair) for pair in report.pairs]}, report.dry, "dedup", pairs)


@app.command()
@plainly
def compact(apply: Apply = None, cap: Cap = None, as_json: Json = False) -> None:
    """Sum up clusters of old small nodes in Concepts, written by the largest tier. Raw nodes are archived, not lost.

    [dim]ruvllm memory compact --dry-run[/]
    """
    from ruvllm.memory.tidy.compaction import compact as compacted
    from ruvllm.nightly.tidying import largest_tier
    from ruvllm.workplace import open_workplace

    settings = settings_here()
    with (
        open_workplace(settings) as place,
        showing(as_json, "Summing up clusters") as progress,
        largest_tier(settings, place.ladder) as (summarise, name),
    ):
        report = compacted(place.database, place.embedder, summarise, name, apply=apply, cap=cap, progress=progress)
    rows = [[each.text, len(each.members), each.concept, each.why] for each in report.clusters]
    clusters = table("Clusters", ["around", "members", "concept", "why not"], rows) if rows else None
    shown = {**report.as_dict(), "found": [asdict(each) for each in report.clusters]}
    _say_run(as_json, shown, report.dry, "compact", clusters)


@app.command()
@plainly
def archive(
    days: Annotated[int, typer.Option(help="Neither written nor used within so many.", min=1)] = 90,
    apply: Apply = None,
    cap: Cap = None,
    as_json: Json = False,
) -> None:
    """Take out of search what nobody used. It stays in memory and comes back when it is wanted."""
    from ruvllm.memory.tidy.archive import archive as archived

    with opened() as database, showing(as_json, "Archiving what is not used") as progress:
        report = archived(database, days, apply=apply, cap=cap, progress=progress)
    _say_run(as_json, report.as_dict(), report.dry, "archive", None)


@app.command()
@plainly
def decay(apply: Apply = None, cap: Cap = None, as_json: Json = False) -> None:
    """Let edges that are not used fade, and prune the lightest."""
    from ruvllm.memory.tidy.decay import decay as faded

    with opened() as database, showing(as_json, "Fading edges") as progress:
        report = faded(database, apply=apply, cap=cap, progress=progress)
    _say_run(as_json, report.as_dict(), report.dry, "decay", None)


@app.command()
@plainly
def undo(
    run: Annotated[int, typer.Argument(help="The run's number, as ruvllm memory runs shows it.")], as_json: Json = False
) -> None:
    """Take a run back: every row that it changed is as it was before.

    [dim]ruvllm memory runs[/]
    [dim]ruvllm memory undo 7[/]
    """
    from ruvllm.memory.tidy.runs import undo as taken_back

    with opened() as database:
        report = taken_back(database, run).as_dict()
    rows = [[name, number] for name, number in report.items()]
    say(as_json, {"run": run, **report},
        lambda: console.print(table(f"Run {run} was taken back", ["rows", "count"], rows)))  # fmt: skip


@app.command("runs")
@plainly
def list_runs(
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1, max=1000)] = 20, as_json: Json = False
) -> None:
    """The runs that tidied memory, dry ones too: what each did, and whether its canary let it stand."""
    from ruvllm.memory.tidy.runs import latest

    with opened() as database:
        found = latest(database, limit)
    say(as_json, [asdict(each) for each in found], lambda: console.print(runs_table(found)))


@app.command()
@plainly
def reindex(
    if_due: Annotated[bool, typer.Option("--if-due", help="Only where rows or recall ask for it.")] = False,
    as_json: Json = False,
) -> None:
    """Build the HNSW index anew while memory is read and written. Exits with 1 where this login may not."""
    from ruvllm.memory.tidy.upkeep import reindex as rebuilt

    with opened() as database, showing(as_json, "Building the index anew") as progress:
        progress(0, 1, "for minutes where memory is large")
        step = rebuilt(database, force=not if_due)
        progress(1, 1)
    told = f"{step.outcome}: {step.said} ({step.seconds:.1f} s)"
    say(as_json, asdict(step), lambda: console.print(told, soft_wrap=True))
    if step.outcome == "not done":
        raise typer.Exit(1)


def runs_table(found: Sequence[Run]) -> Table:
    rows = [
        [each.id, each.kind + (" (dry)" if each.dry_run else ""), each.status, f"{each.started_at:%Y-%m-%d %H:%M}",
         _shown(each.counts), _recalls(each)] for each in found
    ]  # fmt: skip
    return table("Runs", ["run", "kind", "status", "started", "counts", "canary"], rows)


def _recalls(run: Run) -> str:
    if run.canary_before is None:
        return "-"
    return f"{run.canary_before:.3f} -> " + ("-" if run.canary_after is None else f"{run.canary_after:.3f}")


def _say_run(as_json: bool, report: Mapping[str, Any], dry: bool, verb: str, more: Table | None) -> None:
    """The figures of a run and how to go on: apply what was dry, take back what was done."""

    def show() -> None:
        rows = [[name, _shown(value)] for name, value in report.items() if not isinstance(value, list)]
        console.print("A dry run: nothing was changed" if dry else "Done", table("", ["what", "found"], rows), sep="\n")
        if more is not None:
            console.print(more)
        again = f"ruvllm memory {verb} --apply" if dry else f"ruvllm memory undo {report['run']}"
        console.print(f"\n{'do it' if dry else 'take it back'}: {again}")

    say(as_json, report, show)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value)) or "-"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
