"""Source numbers read back from an answer: "[1]", "[1, 3]", "[2-4]". Knows nothing of how an answer was made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruvllm.attention.context import Context

_CITED = re.compile(r"\s?\[(\s*\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*\s*)\]")
_RANGE = re.compile(r"(\d{1,3})\s*[–-]\s*(\d{1,3})")


@dataclass(frozen=True)
class Cited:
    """`ids` of sources in the order of their first citation; `unknown` numbers name no source."""

    text: str  # the answer without them
    ids: tuple[int, ...]
    unknown: tuple[int, ...]


def cited(answer: str, context: Context) -> Cited:
    """What `answer` cites of `context`. A number out of range is told apart, never dropped in silence."""
    by_number = {each.number: each.id for each in context.shown}
    numbers = list(dict.fromkeys(n for found in _CITED.findall(answer) for n in _numbers(found)))
    return Cited(
        _CITED.sub("", answer).strip(),
        tuple(by_number[n] for n in numbers if n in by_number),
        tuple(n for n in numbers if n not in by_number),
    )


def _numbers(inside: str) -> Iterator[int]:
    for part in re.split(r"[,;]", inside):
        if found := _RANGE.fullmatch(part.strip()):
            first, last = int(found[1]), int(found[2])
            yield from range(first, last + 1) if first <= last else (first, last)
        else:
            yield from (int(number) for number in re.findall(r"\d+", part))
