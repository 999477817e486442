"""Items to be judged from a file of JSON lines. Knows nothing of judges.

    {"question": "...", "answer": "...", "context": ["...", ...], "gold": 0.5 or ["accepted", ...], "group": "..."}

`context` (a text or a list), `gold` and `group` may be left out. Gold is a quality in [0, 1], or accepted answers: then
the answer is scored as everywhere else (evaluation/qa.py). Answers to one question are a group unless `group` differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruvllm.errors import InputError
from ruvllm.evaluation.qa import score_answer
from ruvllm.inference.judge.records import Item

MAX_LINES = 1_000_000
_KNOWN = {"question", "answer", "context", "gold", "group"}


def read_items(path: Path) -> list[Item]:
    """Every item of the file, in order; empty lines are left out.

    Raises:
        InputError: no such file, not UTF-8, or a line is not such an item; the message names the line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            items = list(_items(path, lines))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"judge's data {path}: {error}; want a file of JSON lines in UTF-8") from error
    if not items:
        raise InputError(f"judge's data {path}: got no item, want a JSON object a line")
    return items


def _items(path: Path, lines: Iterable[str]) -> Iterator[Item]:
    for number, line in enumerate(lines, start=1):
        if number > MAX_LINES:
            raise InputError(f"judge's data {path}: more than {MAX_LINES:,} lines; split it")
        if line.strip():
            try:
                yield to_item(json.loads(line))
            except (ValueError, RecursionError, InputError) as error:
                raise InputError(f"judge's data {path}, line {number}: {error}") from error


def to_item(row: Any) -> Item:
    """The item of one line's object.

    Raises:
        InputError: a field is missing, unknown or of another kind.
    """
    if not isinstance(row, dict) or set(row) - _KNOWN or not {"question", "answer"} <= set(row):
        raise InputError(f"got {_kind(row)}, want an object with question, answer and perhaps context, gold, group")
    answer = _text(row, "answer")
    return Item(
        question=_text(row, "question"),
        answer=answer,
        passages=tuple(_texts(row.get("context"), "context")),
        gold=_gold(row.get("gold"), answer),
        group=_text(row, "group") if row.get("group") else "",
    )


def _gold(value: Any, answer: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return score_answer(answer, _texts(value, "gold"))


def _texts(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name}: got {_kind(value)}, want a text or a list of texts")
    return texts


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise InputError(f"{name}: got {_kind(row[name])}, want a text")
    return str(row[name])


def _kind(value: Any) -> str:
    return f"an object with {', '.join(map(repr, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
