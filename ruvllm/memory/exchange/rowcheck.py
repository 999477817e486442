"""Is a row of an exported file one that memory can hold? Knows nothing of files or of the database.

What is refused here is what the database's CHECKs would refuse one by one, in the middle of an import.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np

from ruvllm.errors import InputError
from ruvllm.memory.exchange.dump import EDGE_COLUMNS, NODE_COLUMNS, Row
from ruvllm.memory.records import KINDS, RELATIONS, TRUSTS
from ruvllm.text import clean_text

_LONGEST = 2_000  # characters of a name: source, domain, writer, tag
_DEEPEST = 64  # levels of metadata
_LARGEST = 2**63 - 1


class NodeCheck:
    """Looks at the rows of a file of nodes, one after the other; `seen` are the uuids of the sound ones."""

    def __init__(self, dimension: int, with_vectors: bool) -> None:
        self._dimension, self._with_vectors = dimension, with_vectors
        self.seen: set[bytes] = set()

    def problem(self, row: Row) -> str | None:
        """What is wrong with `row`, or None; a sound row is remembered."""
        found = _wrong(row, NODE_COLUMNS) or _wrong_node(row) or self._wrong_vector(row)
        if found is None:
            self.seen.add(key(row["uuid"]))
        return found

    def _wrong_vector(self, row: Row) -> str | None:
        if key(row["uuid"]) in self.seen:
            return f"uuid {row['uuid']} came before"
        if not self._with_vectors:
            return None
        vector = row["embedding"]
        if vector is None or vector.shape != (self._dimension,):
            return f"embedding: got shape {getattr(vector, 'shape', None)}, want ({self._dimension},)"
        length = float(np.linalg.norm(vector))
        return None if 0.98 <= length <= 1.02 else f"embedding: got length {length:.3g}, want a unit vector"


class EdgeCheck:
    """Looks at the rows of a file of edges; `nodes` are the uuids that an end may have."""

    def __init__(self, nodes: set[bytes]) -> None:
        self._nodes = nodes
        self._seen: set[bytes] = set()

    def problem(self, row: Row) -> str | None:
        found = _wrong(row, EDGE_COLUMNS) or self._wrong_ends(row)
        if found is None:
            self._seen.add(key(row["uuid"]))
        return found

    def _wrong_ends(self, row: Row) -> str | None:
        if row["rel"] not in RELATIONS:
            return f"rel: got {row['rel']!r}, want one of {', '.join(RELATIONS)}"
        for name in ("uuid", "src", "dst"):
            if not _is_uuid(row[name]):
                return f"{name}: got {row[name]!r}, want a UUID"
        if key(row["uuid"]) in self._seen:
            return f"uuid {row['uuid']} came before"
        if key(row["src"]) == key(row["dst"]):
            return f"src and dst: got {row['src']} twice, want two nodes"
        missing = next((name for name in ("src", "dst") if key(row[name]) not in self._nodes), None)
        return f"{missing}: node {row[missing]} is not among the file's sound nodes" if missing else None


def key(text: str) -> bytes:
    """A UUID as 16 bytes, whatever its spelling."""
    return uuid.UUID(text).bytes


def _wrong(row: Row, columns: dict[str, str]) -> str | None:
    if "broken" in row:
        return str(row["broken"])
    for name, kind in columns.items():
        value = row[name]
        if value is None and (kind.endswith("?") or kind == "vector"):
            continue
        if found := _CHECKS[kind.rstrip("?")](value):
            return f"{name}: {found}" if name != "text" else found
    return None


def _wrong_node(row: Row) -> str | None:
    for name, known in (("kind", KINDS), ("trust", TRUSTS)):
        if row[name] not in known:
            return f"{name}: got {row[name]!r}, want one of {', '.join(known)}"
    for name in ("uuid", "superseded_by"):
        if row[name] is not None and not _is_uuid(row[name]):
            return f"{name}: got {row[name]!r}, want a UUID"
    if row["version"] < 1 or row["version"] >= 2**31:
        return f"version: got {row['version']}, want 1 or more"
    if row["superseded_by"] is not None and row["archived_at"] is None:
        return "superseded_by: is set, and archived_at is not: want both or none"
    if row["span_start"] and row["span_end"] and row["span_start"] > row["span_end"]:
        return "span_end: is before span_start"
    return _wrong_text(row["text"])


def _wrong_text(text: str) -> str | None:
    try:
        clean_text(text)
    except InputError as error:
        return str(error)
    return None


def _is_uuid(value: str) -> bool:
    try:
        uuid.UUID(value)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"got {type(value).__name__}, want a text"
    return None if _storable(value) else "got a NUL or a lone surrogate, want valid Unicode"


def _texts(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"got {type(value).__name__}, want a list of texts"
    return next((found for each in value if (found := _text(each))), None)


def _object(value: Any) -> str | None:
    if not isinstance(value, dict):
        return f"got {type(value).__name__}, want an object"
    return None if _sound(value, _DEEPEST) else f"holds NUL, NaN or more than {_DEEPEST} levels"


def _sound(value: Any, levels: int) -> bool:
    """Whether jsonb can hold it."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return levels > 0 and all(_storable(k) and _sound(v, levels - 1) for k, v in value.items())
    return not isinstance(value, list) or (levels > 0 and all(_sound(each, levels - 1) for each in value))


def _storable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _share(value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and 0 <= value <= 1 else f"got {value!r}, want a number from 0 to 1"


def _count(value: Any) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return None if number and 0 <= value <= _LARGEST else f"got {value!r}, want a whole number from 0 on"


def _time(value: Any) -> str | None:
    sound = isinstance(value, datetime) and value.tzinfo is not None
    return None if sound else f"got {value!s:.40}, want a time with its zone"


def _vector(value: Any) -> str | None:
    return None if isinstance(value, np.ndarray) else f"got {type(value).__name__}, want a list of numbers"


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "text": _text, "texts": _texts, "object": _object, "real": _share, "int": _count, "time": _time,
    "vector": _vector,
}  # fmt: skip
