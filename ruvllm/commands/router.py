"""`ruvllm router …`: explain, train, evaluate, ablate, refine, measure. No work of its own; heavy parts load late."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here
from ruvllm.errors import BundleError, LearningError

if TYPE_CHECKING:
    from ruvllm.evaluation.regret import Interval
    from ruvllm.learning.ablation import Ablation
    from ruvllm.learning.config import Config
    from ruvllm.router.asked import Asked
    from ruvllm.router.bundle import Bundle
    from ruvllm.router.runtime import RouterRuntime
    from ruvllm.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The router: explain its decisions, train and evaluate one, take it apart, refine the champion on feedback, "
    "measure it on a ladder of your own.\n\nBegin with [bold]ruvllm router explain[/]: why the last question went "
    "where it went.",
)
Snapshot = Annotated[Path | None, typer.Option(help="A night's snapshot.npz; by default the last night's.")]
Params = Annotated[Path | None, typer.Option(help="Settings of the learner; by default params.yaml.")]


@app.command()
@plainly
def explain(
    request: Annotated[str, typer.Argument(help="Request id of a stored question; by default the last one.")] = "",
    most: Annotated[int, typer.Option(help="How many features to show.", min=1)] = 12,
    last: Annotated[int, typer.Option(help="Explain so many of the last questions.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Which features moved the promoted router's decision on a stored question, in log-odds, utility and confidence.

    [dim]ruvllm router explain --last 10 --most 5[/]
    """
    from ruvllm.router.asked import asked, latest
    from ruvllm.router.bundle import read_bundle
    from ruvllm.workplace import open_workplace

    with open_workplace(settings_here()) as place:
        runtime = place.champion()
        if runtime is None or runtime.path is None:
            raise BundleError("no promoted router for this ladder; run `ruvllm cycle` and approve its candidate")
        found = [asked(place.database, request)] if request else latest(place.database, last)
    bundle = read_bundle(runtime.path, runtime.sha256)
    explained = [_explained(bundle, runtime, stored, most) for stored in found]
    about = [each for each, _ in explained]
    lines = [line for _, shown in explained for line in (*shown, "")]
    say(as_json, about if last > 1 else about[0],
        lambda: console.print("\n".join(lines), markup=False, soft_wrap=True))  # fmt: skip


def _explained(bundle: Bundle, runtime: RouterRuntime, stored: Asked, most: int) -> tuple[dict[str, Any], list[str]]:
    """For a script, and to read."""
    from ruvllm.router.explain import explain as explained
    from ruvllm.router.explain import explanation_table

    why = explained(bundle, stored.features)
    then = {name: value for name, value in vars(stored).items() if name != "features"}
    about = {"asked": then, "router": runtime.version, **asdict(why), "groups": why.groups}
    utilities = [f"{name} {value:+.3f}" for name, value in zip(runtime.tiers, why.utility, strict=True) if name]
    lines = [
        f"Question {stored.request_id}: {stored.question}",
        f"Then: {stored.tier} with {stored.context_bin} tokens, decided by {stored.decided_by}",
        f"Router {runtime.version} now; expected utility: {', '.join(utilities)}",
        *explanation_table(why, most),
    ]
    return about, lines


@app.command()
@plainly
def classifiers(
    out: Annotated[Path | None, typer.Option(help="Folder for the file; without it nothing is written.")] = None,
    as_json: Json = False,
) -> None:
    """Fit the classifiers of domain and query type again and show their held-out accuracy. About half a minute.

    [dim]ruvllm router classifiers[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.router.fitting import fit_for
    from ruvllm.router.fitting import table as accuracy_table

    fitted = fit_for(open_embedder(settings_here()))
    path = fitted.write(out) if out else None
    about = {
        "encoder": fitted.encoder_id,
        "sha256": fitted.sha256,
        "file": path,
        "accuracy": {name: asdict(got) for name, got in fitted.accuracy.items()},
    }
    lines = [*accuracy_table(fitted), f"{path or fitted.encoder_id}: sha256 {fitted.sha256}"]
    say(as_json, about, lambda: console.print("\n".join(lines), markup=False, soft_wrap=True))


@app.command()
@plainly
def train(
    out: Annotated[Path, typer.Option(help="Folder for the bundle; must not be there.")],
    snapshot: Snapshot = None,
    params: Params = None,
    ewc: Annotated[Path | None, typer.Option(help="EWC state to start from.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of a run that may be killed; it goes on from there.")
    ] = None,
    version: Annotated[str, typer.Option(help="Name of the router in its manifest.")] = "router",
    as_json: Json = False,
) -> None:
    """Train a router on a night's snapshot, outside any night. Nothing is registered: it is for looking and comparing.

    [dim]ruvllm router train --out /tmp/router[/]
    """
    from ruvllm.learning import train as training
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.data import load_snapshot
    from ruvllm.learning.ewc import load_ewc
    from ruvllm.learning.inputs import Inputs

    single_thread()
    settings = settings_here()
    config, lesson = _config(params), load_snapshot(_snapshot(settings, snapshot))
    with showing(as_json, "Training the router") as progress:
        trained = training.train(lesson, config, load_ewc(ewc) if ewc else None, progress, work)
    digest = training.write(trained, config, Inputs(version, datetime.now(UTC).isoformat(timespec="seconds")), out)
    figures = training.metrics_of(trained)
    say(as_json, {"bundle": out, "sha256": digest, **figures}, lambda: _show_trained(out, digest, figures))


def _show_trained(out: Path, digest: str, figures: dict[str, Any]) -> None:
    flat = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    console.print(table(f"Router {out}", ["what", "figure"], [[name, value] for name, value in flat.items()]))
    for warning in figures["warnings"]:
        console.print(f"note: {warning}", markup=False, soft_wrap=True)
    console.print(f"sha256 {digest}", markup=False)


@app.command()
@plainly
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder that the trainer wrote.")],
    snapshot: Snapshot = None,
    champion: Annotated[Path | None, typer.Option(help="Bundle that it is compared with.")] = None,
    traffic: Annotated[Path | None, typer.Option(help="traffic.npz of a night, for the off-policy estimate.")] = None,
    params: Params = None,
    as_json: Json = False,
) -> None:
    """A router beside every baseline on the snapshot's held-out questions: utility, regret, accuracy, calibration.

    [dim]ruvllm router evaluate /tmp/router --json[/]
    """
    from ruvllm.evaluation.table import report_markdown
    from ruvllm.learning import evaluate as evaluation
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.data import load_snapshot
    from ruvllm.learning.traffic import load_traffic

    single_thread()
    questions = load_snapshot(_snapshot(settings_here(), snapshot))
    stored = load_traffic(traffic) if traffic else None
    report = evaluation.evaluate(questions, bundle, champion, _config(params), stored)
    say(as_json, report, lambda: console.print(report_markdown(report), markup=False, soft_wrap=True))


@app.command()
@plainly
def ablate(
    snapshot: Snapshot = None,
    params: Params = None,
    ewc: Annotated[Path | None, typer.Option(help="EWC state that the whole router starts from.")] = None,
    seeds: Annotated[
        int, typer.Option(help="Orders of the questions that the ways to explore are played over.", min=1)
    ] = 20,
    as_json: Json = False,
) -> None:
    """What each part of the router is worth: trained without it, on a night's held-out questions. A few minutes.

    Recurrence, rank, sparsity, quantisation, curriculum, replay, EWC, the quality head, ways to explore. A part that
    the snapshot has no use for is said to be absent.

    [dim]ruvllm router ablate[/]
    """
    from ruvllm.learning.ablation import ablate as ablated
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.data import load_snapshot
    from ruvllm.learning.ewc import load_ewc

    single_thread()
    config, lesson = _config(params), load_snapshot(_snapshot(settings_here(), snapshot))
    with showing(as_json, "Training without each part") as progress:
        found = ablated(lesson, config, load_ewc(ewc) if ewc else None, progress, seeds)
    say(as_json, asdict(found), lambda: _show_ablated(found))


def _show_ablated(found: Ablation) -> None:
    from ruvllm.learning.ablation import lines

    title = f"{found.tested} held-out questions"
    console.print(table(title, ["", "utility", "difference [95 %]"], [list(row) for row in lines(found)]))
    exploring = [[each.way, f"{each.regret:.4f}", each.seeds] for each in found.exploring]
    console.print(
        table("Learning from what it is told alone", ["way to explore", "regret a question", "orders"], exploring)
    )


@app.command()
@plainly
def refine(
    every: Annotated[int, typer.Option(help="New scored answers there must be; fewer: nothing is done.", min=1)] = 200,
    approve_as: Annotated[str, typer.Option(help="Approve a small change under this name; else a reviewer does.")] = "",
    most_changed: Annotated[float, typer.Option(help="Share of decisions that a small change changes.")] = 0.1,
    as_json: Json = False,
) -> None:
    """Refine the champion on what users said of its answers, and register the result as a candidate.

    It passes the gates of any candidate. Run it as often as you like: it waits until there is something new.

    [dim]ruvllm router refine --every 100[/]
    """
    from ruvllm.nightly.refining import Small, refine_champion

    small = Small(approve_as, most_changed) if approve_as else None
    made = refine_champion(settings_here(), every, small)
    say(as_json, made, lambda: _show_refined(made))


def _show_refined(made: dict[str, Any]) -> None:
    if not made["refined"]:
        console.print(f"not refined: {made['why']}", markup=False, soft_wrap=True)
        return
    figures = [[name, value] for name, value in made["figures"].items()]
    gates = [f"{gate['name']}: {gate['outcome']}" for gate in made["gates"] if gate["blocks"]]
    console.print(table(f"Version {made['version']}", ["what", "figure"], figures))
    console.print(f"{made['changed']:.0%} of the held-out decisions changed; {'; '.join(gates)}", soft_wrap=True)
    said = "promoted" if made["promoted"] else f"not promoted: {made['why']}"
    console.print(said, markup=False, soft_wrap=True)


@app.command()
@plainly
def bench(
    file: Annotated[Path, typer.Argument(help="NAME.jsonl or .jsonl.gz of outcomes.")],
    tier: Annotated[list[str] | None, typer.Option(help="A model of the file, 2 to 4 of them; by default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds and networks.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Measure the router on a ladder of yours: a file of outcomes, queries it never saw, simple rivals beside it.

    A line a query: {"id", "query", "domain", "scores": [0 to 1 of each model], "cost_usd": [of each]}; null where a
    model was not run, "split": "train" or "test" where there is one. NAME.meta.json beside it names the "models".
    Vectors of queries are kept, so a second run is quick.

    [dim]ruvllm router bench outcomes.jsonl.gz --tier small-model --tier large-model[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.learning.command import single_thread
    from ruvllm.learning.outcomes.bench import bench as benched
    from ruvllm.learning.outcomes.features import EmbeddingCache
    from ruvllm.learning.outcomes.files import Choice, read_outcomes
    from ruvllm.learning.outcomes.splits import without_repeats

    single_thread()
    settings = settings_here()
    outcomes = without_repeats(read_outcomes(file, Choice(tiers=tuple(tier or ()))))
    outcomes = outcomes.rows(outcomes.complete)
    vectors = EmbeddingCache(settings.cache_dir / "vectors", open_embedder(settings)).embed(outcomes.queries)
    with showing(as_json, "Routing outcomes") as progress:
        found = benched(outcomes, vectors, seed, progress)
    title = f"{outcomes.name}: {found.tested} queries, lambda {found.exchange:.4g} a {outcomes.cost_unit}"
    columns = ["", "quality", "cost", "utility", "regret [95 %]", "APGR over cost [95 %]", "above the hull"]
    rows = [
        [r.name, r.quality, f"{r.cost:.4g}", r.utility, _interval(r.regret), _interval(r.apgr),
         "-" if r.above is None else f"{r.above} of 9"]
        for r in found.rows
    ]  # fmt: skip
    say(as_json, asdict(found), lambda: console.print(table(title, columns, rows)))


def _interval(found: Interval | None) -> str:
    return "-" if found is None else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _config(params: Path | None) -> Config:
    from ruvllm.learning.config import load_config
    from ruvllm.settings import PROJECT_ROOT

    return load_config(params or PROJECT_ROOT / "params.yaml")


def _snapshot(settings: Settings, given: Path | None) -> Path:
    """The one that is given, or that of the last night that has one."""
    if given is not None:
        return given
    made = sorted((settings.state_dir / "cycles").glob("*/snapshot.npz"), key=lambda path: path.stat().st_mtime_ns)
    if not made:
        raise LearningError(f"no night's snapshot in {settings.state_dir}; run `ruvllm cycle`, or give --snapshot FILE")
    return made[-1]
