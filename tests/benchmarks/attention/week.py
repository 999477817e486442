"""What attention would learn from the nights that a state directory holds, and whether its gate would let it pass.

    python -m tests.benchmarks.attention.week STATE docs/attention-week.md

STATE is the state directory of nights that have been run (`make cycle`, or tests/benchmarks/night/week.py). What the
step `attend` of the next night would do, with nothing packed or registered; runs no model that answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ruvllm.learning.attention_lessons import Lessons, corpus_gold, read_lessons
from ruvllm.learning.attention_part import Part, champion_part, choose_part
from ruvllm.settings import load_settings
from ruvllm.workplace import open_workplace
from tests.benchmarks.memory.report import conditions

_PAGE = """# Attention after {nights} nights

Made by `python -m tests.benchmarks.attention.week STATE docs/attention-week.md` on {date}, revision {revision};
{processor}, {memory}; no figure is typed by hand. The questions, the models and the nights are those of
[week.md](week.md); it is the step `attend` of the night after them.

| what | figure |
|---|---|
| lessons, by where they come from | {lessons} |
| questions that teach / that judge and teach nothing | {train} / {held} |
| reading the lessons | {reading:.1f} s |
| training and judging, one thread | {training:.1f} s |
| what the next bundle would carry | {kind}: {why} |

{tables}

The first row has to rise with the whole interval, the second must not fall: the gate is
`ruvllm/learning/attention_gate.py`. `plain search` is what a request finds without attention, `before attention` the
order that attention starts from: meaning, words and a walk of two hops.
"""


def text(state: Path) -> str:
    """The page."""
    nights = len(list((state / "cycles").glob("night-*/snapshot.npz")))
    if not nights:
        raise FileNotFoundError(f"{state / 'cycles'}: no night has a snapshot; run `make cycle` or the week first")
    with open_workplace(load_settings(state_dir=state)) as place:
        began = time.perf_counter()
        lessons = read_lessons(place.memory, corpus_gold())
        read = time.perf_counter()
        champion = champion_part(place.champion(), place.embedder.id)
        part = choose_part(lessons, champion, place.embedder.id, place.embedder.dimension, "next")
        return _page(nights, lessons, part, read - began, time.perf_counter() - read)


def _page(nights: int, lessons: Lessons, part: Part, reading: float, training: float) -> str:
    return _PAGE.format(
        nights=nights,
        lessons=", ".join(f"{count} {origin}" for origin, count in lessons.counts.items()),
        train=len(lessons.train),
        held=len(lessons.held),
        reading=reading,
        training=training,
        kind=part.kind,
        why=part.why,
        tables="\n\n".join(f"## {name}\n\n{table.strip()}" for name, table in part.tables.items()),
        **conditions(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("state", type=Path)
    parser.add_argument("page", type=Path)
    chosen = parser.parse_args(arguments)
    chosen.page.write_text(text(chosen.state.absolute()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
