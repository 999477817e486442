"""`ruvllm cache calibrate|show`: from which similarity on an answer may be given again. No work of its own."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ruvllm.commands.console import console
from ruvllm.commands.shared import opened, showing
from ruvllm.commands.verbs import Json, plainly, say, settings_here

if TYPE_CHECKING:
    from ruvllm.serving.cache import Calibration
    from ruvllm.serving.calibration import Known

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The answer cache (RUVLLM_ANSWER_CACHE): a question close to a well-answered one gets that answer.",
)


@app.command()
@plainly
def calibrate(
    target: Annotated[float, typer.Option(help="Share of hits that may be false.")] = 0.02,
    confidence: Annotated[float, typer.Option(help="That the share holds.")] = 0.95,
    questions: Annotated[int, typer.Option(help="Facts of the corpus that are asked, about.", min=20)] = 1200,
    as_json: Json = False,
) -> None:
    """Find the lowest similarity at which few hits are false, on the corpus's questions, and keep it.

    Half of the facts are held as answers; all are asked, in other words. Those that are not held show what a false hit
    is: the same country, another question.

    [dim]ruvllm cache calibrate --target 0.02[/]
    """
    from ruvllm.embedding import open_embedder
    from ruvllm.serving import cache, calibration

    embedder = open_embedder(settings_here())
    stored, asked = _sets(questions)
    with showing(as_json, "Calibrating") as progress:
        found = calibration.lookups(embedder, stored, asked)
        progress(1, 1)
    digest = calibration.digest_of(stored, asked)
    made = calibration.calibrate(found, len(asked), embedder.id, digest, target, confidence)
    with opened() as database:
        cache.keep_calibration(database, made)
    say(as_json, asdict(made), lambda: _show(made))


@app.command()
@plainly
def show(as_json: Json = False) -> None:
    """The calibration that counts for this encoder."""
    from ruvllm.embedding import open_embedder
    from ruvllm.serving.cache import newest_calibration

    embedder = open_embedder(settings_here())
    with opened() as database:
        found = newest_calibration(database, embedder.id)
    say(as_json, asdict(found) if found else None, lambda: _show(found))


def _sets(count: int) -> tuple[list[Known], list[Known]]:
    """(held as answers, asked): facts in one wording, and in another one; the held half is drawn by a fixed seed."""
    from ruvllm.corpus.questions import questions
    from ruvllm.corpus.standalone import rephrased
    from ruvllm.serving.calibration import Known

    pairs = [(each, other) for each in questions() if (other := rephrased(each)) is not None]
    random.Random("answer cache").shuffle(pairs)  # an order, not a secret
    pairs = pairs[:count]
    stored = [Known(each.text, each.gold) for each, _ in pairs[::2]]
    return stored, [Known(other.text, other.gold) for _, other in pairs]


def _show(made: Calibration | None) -> None:
    if made is None:
        console.print("no calibration of this encoder: the cache never hits; ruvllm cache calibrate makes one")
        return
    if made.threshold is None:
        console.print(
            f"no threshold holds {made.target:.1%} false hits at {made.confidence:.0%}: the cache never hits "
            f"({made.questions} questions)",
            markup=False,
        )
        return
    console.print(
        f"from similarity {made.threshold:.3f} on: {made.hits} hits among {made.questions} questions, "
        f"{made.false_hits} false, at most {made.bound:.2%} at {made.confidence:.0%} (target {made.target:.1%})",
        markup=False,
    )
