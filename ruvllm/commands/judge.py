"""`ruvllm judge score|calibrate|agreement|requests|list`: a tier as judge of answers. No work of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ruvllm.commands.console import console, table
from ruvllm.commands.shared import opened, showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here
from ruvllm.errors import InputError

if TYPE_CHECKING:
    from ruvllm.inference.judge.assessment import Agreement
    from ruvllm.inference.judge.judging import Judging
    from ruvllm.inference.judge.labels import LabelSource
    from ruvllm.inference.judge.records import Item, Judged
    from ruvllm.inference.judge.store import Calibration

app = typer.Typer(
    no_args_is_help=True, help="A tier as judge of answers: score, hold against gold, list.", rich_markup_mode="rich"
)
TierName = Annotated[str | None, typer.Option("--tier", help="Who judges; by default the ladder's largest tier.")]
Data = Annotated[
    list[Path],
    typer.Option("--data", help="JSON lines: question, answer, perhaps context, gold, group. May be repeated."),
]


@app.command()
@plainly
def score(
    data: Annotated[Path, typer.Option("--data", help="JSON lines: question, answer, perhaps context, gold, group.")],
    out: Annotated[Path | None, typer.Option(help="A file for the scores, a JSON line per item.")] = None,
    tier: TierName = None,
    as_json: Json = False,
) -> None:
    """Score answers from 1 to 5. What this judge scored before is not asked again, so a stopped run goes on.

    [dim]ruvllm judge score --data answers.jsonl --out scores.jsonl[/]
    """
    from ruvllm.inference.judge.files import read_items
    from ruvllm.inference.judge.labels import labels_said

    items = read_items(data)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out}: want a file in a folder that is there; nothing was scored")
    with _judging(tier) as judging, showing(as_json, "Judging") as progress:
        judged, source = judging.score(items, progress), judging.source()
    if out is not None:
        _write(out, judged, source)
    shown = {"judge": source.judge, **_counts(judged), "labels": labels_said(source, judged)}
    _say(as_json, shown, "Scores")


@app.command()
@plainly
def agreement(data: Data, tier: TierName = None, as_json: Json = False) -> None:
    """How far a judge agrees with gold, with 95 % intervals. Nothing is decided or changed.

    [dim]ruvllm judge agreement --data squad.jsonl --data truthful.jsonl[/]
    """
    from ruvllm.inference.judge.assessment import agreement as agrees

    sets = _sets(data)
    with _judging(tier) as judging, showing(as_json, "Judging") as progress:
        judged = judging.judged(sets, progress)
    found = [agrees(name, each) for name, each in judged.items()]
    say(as_json, [each.as_dict() | {"refusals": each.refusals} for each in found], lambda: _show_agreement(found))


@app.command()
@plainly
def calibrate(data: Data, tier: TierName = None, as_json: Json = False) -> None:
    """Hold a judge against gold and store what came out: it labels from now on, or it is refused and gold alone does.

    [dim]ruvllm judge calibrate --data squad.jsonl --data truthful.jsonl[/]
    """
    sets = _sets(data)
    with _judging(tier) as judging, showing(as_json, "Judging") as progress:
        made = judging.calibrate(sets, progress)
        source = judging.source()
    shown = {**_calibration(made), "decision": "accepted" if source.accepted else "refused", "labels": source.reason}
    _say(as_json, shown, "Calibration")


@app.command()
@plainly
def requests(tier: TierName = None, as_json: Json = False) -> None:
    """Give answered requests without gold or feedback a quality; only an accepted judge does, else all are skipped."""
    from ruvllm.inference.judge.requests import label_requests

    with _judging(tier) as judging, showing(as_json, "Judging requests") as progress:
        report = label_requests(judging, progress)
    shown = {"labelled": report.labelled, "skipped": report.skipped, "labels": report.reason}
    _say(as_json, shown, "Requests")


@app.command("list")
@plainly
def list_calibrations(as_json: Json = False) -> None:
    """Every calibration, the newest first; the newest of a judge decides whether it may label."""
    from ruvllm.inference.judge.store import JudgeStore

    with opened() as database:
        found = [_calibration(each) for each in JudgeStore(database).calibrations()]
    columns = ["calibration", "judge", "tier", "n", "data", "calibrated", "refusals"]
    say(
        as_json,
        found,
        lambda: console.print(
            table("Calibrations of judges", columns, [[_cell(row[name]) for name in columns] for row in found])
            if found
            else "no calibration yet: ruvllm judge calibrate makes the first; until then labels come from gold alone"
        ),
    )


@contextmanager
def _judging(tier: str | None) -> Iterator[Judging]:
    from ruvllm.inference.judge.judging import open_judging

    with opened() as database, open_judging(settings_here(), database, tier) as judging:
        yield judging


def _sets(paths: Sequence[Path]) -> dict[str, list[Item]]:
    """The items of each file under its name without its ending."""
    from ruvllm.inference.judge.files import read_items

    sets = {path.stem: read_items(path) for path in paths}
    if len(sets) < len(paths):
        raise InputError("judge's data: two files of one name; rename one, the name stands for the data in reports")
    return sets


def _counts(judged: Sequence[Judged]) -> dict[str, Any]:
    scores = [each.verdict.score for each in judged if each.verdict.score is not None]
    reasons = [each.verdict.reason for each in judged if each.verdict.score is None]
    return {
        "items": len(judged),
        "scored": len(scores),
        "mean score": sum(scores) / len(scores) if scores else None,
        "without a score": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def _write(path: Path, judged: Sequence[Judged], source: LabelSource) -> None:
    """A line per item, in the data's order; quality only where the judge may label."""
    rows = [
        {"item": each.item.key, "score": each.verdict.score, "quality": source.quality(each.verdict),
         "probabilities": each.verdict.probabilities, "reason": each.verdict.reason}
        for each in judged
    ]  # fmt: skip
    from ruvllm.router.durable import replace_file

    try:
        replace_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; want a file in a folder that is there. The scores are kept: give "
            "another --out, and nothing is scored again"
        ) from error


def _calibration(of: Calibration) -> dict[str, Any]:
    return {
        "calibration": of.id,
        "judge": of.judge.version,
        "tier": of.judge.tier,
        "model_sha256": of.judge.model_sha256,
        "template_hash": of.judge.template_hash,
        "data_digest": of.data_digest,
        "n": of.n,
        "data": [figures["name"] for figures in of.agreement],
        "calibrated": of.calibrated_at,
        "refusals": list(of.refusals),
    }


def _show_agreement(found: Sequence[Agreement]) -> None:
    columns = ["data", "n", "questions", "unscored", "Spearman", "kappa", "kappa, raw", "length bias", "refused"]
    rows = [
        [each.name, each.n, each.groups, each.unscored, *map(_interval, (each.spearman, each.kappa, each.kappa_raw,
                                                                        each.length)), "yes" if each.refusals else "no"]
        for each in found
    ]  # fmt: skip
    console.print(table("Agreement with gold", columns, rows))
    for why in [why for each in found for why in each.refusals]:
        console.print(why, soft_wrap=True)


def _interval(estimate: Any) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _say(as_json: bool, shown: Mapping[str, Any], title: str) -> None:
    rows = [[name, _cell(value)] for name, value in shown.items()]
    say(as_json, shown, lambda: console.print(table(title, ["what", "found"], rows)))


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {number}" for name, number in value.items()) or "-"
    return "\n".join(map(str, value)) or "-" if isinstance(value, list | tuple) else value
