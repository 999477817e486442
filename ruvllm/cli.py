"""The `ruvllm` command: verbs over the domain packages. No work of its own; heavy parts load inside the verbs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ruvllm import __version__
from ruvllm.commands import analysts, backup, cache, flows, judge, keys, memory, models, registry, router, vllm
from ruvllm.commands.console import Bars, console, errors, table
from ruvllm.commands.verbs import Json, plainly, say, settings_here
from ruvllm.progress import reporting
from ruvllm.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A self-learning LLM system: a router that learns every night which model answers which question.\n\n"
    "Begin with [bold]ruvllm cycle[/], then [bold]ruvllm ask[/]. Settings are RUVLLM_ variables; "
    "[bold]ruvllm doctor[/] says what is missing.",
    rich_markup_mode="rich",
)
db_app = typer.Typer(no_args_is_help=True, help="The database: psql, and logins for analysts.")
app.add_typer(models.app, name="models")
app.add_typer(memory.app, name="memory")
app.add_typer(db_app, name="db")
db_app.add_typer(analysts.app, name="analyst")
app.add_typer(registry.app, name="registry")
app.add_typer(router.app, name="router")
app.add_typer(judge.app, name="judge")
app.add_typer(cache.app, name="cache")
app.add_typer(vllm.app, name="vllm")
app.add_typer(flows.app, name="flows")
app.add_typer(keys.app, name="keys")
backup.add_to(app, db_app)

Gemma = Annotated[bool, typer.Option("--accept-gemma-terms", help="Accept the Gemma Terms of Use for Gemma 3 270M.")]


@app.command()
@plainly
def version(as_json: Json = False) -> None:
    """The version of RuvLLM."""
    say(as_json, {"version": __version__}, lambda: console.print(f"ruvllm {__version__}"))


@app.command()
@plainly
def doctor(as_json: Json = False) -> None:
    """Check every dependency; say what is wrong and how to mend it. Exits with 1 if anything is."""
    from ruvllm.doctor import run_checks

    checks = run_checks(settings_here())
    rows = [
        ["ok" if c.ok else Text("wrong", style="red"), c.name, c.detail if c.ok else f"{c.detail}\n→ {c.mend}"]
        for c in checks
    ]
    say(
        as_json,
        [{"name": c.name, "ok": c.ok, "detail": c.detail, "mend": c.mend} for c in checks],
        lambda: console.print(table("ruvllm doctor", ["", "what", "found"], rows)),
    )
    if not all(c.ok for c in checks):
        raise typer.Exit(1)


@app.command()
@plainly
def cycle(
    accept_gemma_terms: Gemma = False,
    approve_as: Annotated[str, typer.Option(help="Approve the candidate under this name; else a reviewer does.")] = "",
    budget: Annotated[float | None, typer.Option(help="Seconds of oracle collection; 3600 is the wide run.")] = None,
    questions: Annotated[int, typer.Option(help="Questions asked as the day's traffic.", min=1)] = 24,
    as_json: Json = False,
) -> None:
    """Run one whole learning cycle: ask, collect, train, evaluate, propose, promote, consolidate, maintain, serve.

    A cycle that was stopped is taken up where it was; a second one is the next night on the same memory and registry.
    """
    from ruvllm.commands.summary import show_night
    from ruvllm.nightly.nightshift import run_night

    settings = settings_here(accept_gemma_terms)
    with Bars() as bars, reporting(bars):
        result = run_night(settings, questions, budget, approve_as)
    say(as_json, result, lambda: show_night(settings, result))


@app.command()
@plainly
def report(
    night: Annotated[int | None, typer.Option(help="Which night, counted from 1; by default the last.", min=1)] = None,
    markdown: Annotated[bool, typer.Option(help="Only the evaluation, as a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Show again what a finished night did: traffic, learning, the router beside its baselines, gates."""
    from ruvllm.commands.summary import show_night
    from ruvllm.nightly.night import results

    settings = settings_here()
    result = results(settings, night)
    if markdown:
        print(result["steps"]["evaluate"]["table"])
    else:
        say(as_json, result, lambda: show_night(settings, result))


@app.command()
@plainly
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    tier: Annotated[str | None, typer.Option(help="Force a tier instead of the router's choice.")] = None,
    context: Annotated[int | None, typer.Option(help="Force a context bin: 256, 512 or 1024 tokens.")] = None,
    accept_gemma_terms: Gemma = False,
    as_json: Json = False,
) -> None:
    """Ask one question of the promoted router, in this process."""
    from ruvllm.answering.answer import Ask
    from ruvllm.commands.summary import answer_dict, show_answer
    from ruvllm.workplace import open_workplace

    settings = settings_here(accept_gemma_terms)
    with open_workplace(settings) as place, place.answerer(place.champion()) as answerer:
        answer = answerer.answer(Ask(question, forced_tier=tier, forced_bin=context))
        answerer.settle_outbox()
    say(as_json, answer_dict(answer), lambda: show_answer(answer))


@app.command()
@plainly
def serve(accept_gemma_terms: Gemma = False) -> None:
    """Serve the promoted router over an OpenAI-compatible API until stopped: POST /v1/chat/completions."""
    from ruvllm import services
    from ruvllm.serving.__main__ import main

    settings = settings_here(accept_gemma_terms)
    with services.postgres_as_found(settings):
        main(settings)


@app.command()
@plainly
def up(
    accept_gemma_terms: Gemma = False,
    foreground: Annotated[bool, typer.Option(help="Stay, and stop everything when stopped.")] = False,
) -> None:
    """Start Postgres, the Prefect server, the MLflow server, the flows and the gateway, and keep them running."""
    from ruvllm import services

    settings = settings_here(accept_gemma_terms)
    with Bars() as bars:
        services.up(settings, bars.stage("Starting services"), foreground=foreground)
    _show_services(settings, as_json=False)


@app.command()
@plainly
def down() -> None:
    """Stop what `ruvllm up` started."""
    from ruvllm import services

    with Bars() as bars:
        services.down(settings_here(), bars.stage("Stopping services"))


@app.command()
@plainly
def status(as_json: Json = False) -> None:
    """What runs, where, and where its log is."""
    _show_services(settings_here(), as_json)


def _show_services(settings: Settings, as_json: bool) -> None:
    from ruvllm import services

    rows = services.status(settings)
    say(
        as_json,
        [asdict(row) for row in rows],
        lambda: console.print(
            table(
                "Services",
                ["service", "runs", "pid", "url", "log"],
                [[r.name, "yes" if r.running else "no", r.pid, r.url, str(r.log)] for r in rows],
            )
        ),
    )


@app.command()
@plainly
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Markdown, text and JSONL files, or folders of them.")],
    as_json: Json = False,
) -> None:
    """Bring your own documents into memory. A second run adds nothing; a bad file is named and skipped (exit 1)."""
    from ruvllm.memory.writing.ingest import ingest_paths
    from ruvllm.workplace import open_workplace

    with open_workplace(settings_here()) as place, Bars() as bars:
        report = ingest_paths(place.memory, paths, bars.stage("Ingesting"))
    linked = ", ".join(f"{count} by {kind}" for kind, count in report.links.items()) or "none"
    say(
        as_json,
        {"files": report.files, "written": report.nodes_written, "skipped": report.nodes_skipped,
         "links": dict(report.links), "bad": report.bad},
        lambda: console.print(
            f"{report.files} files: {report.nodes_written} nodes written, {report.nodes_skipped} were there already; "
            f"new edges: {linked}"
        ),
    )  # fmt: skip
    for path, reason in report.bad:
        errors.print(Text.assemble(("skipped ", "red"), f"{path}: {reason}"), soft_wrap=True)
    if report.bad:
        raise typer.Exit(1)


@db_app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@plainly
def db_psql(context: typer.Context) -> None:
    """Query the database with SQL: psql of the embedded server; everything behind it goes to psql (-c "SELECT …")."""
    from ruvllm.database.shell import run_psql

    raise typer.Exit(run_psql(settings_here(), context.args))
