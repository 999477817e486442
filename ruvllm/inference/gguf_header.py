"""The first few facts that a GGUF states of itself; knows nothing of tensors and never reads more than its first MiB.

Only for files whose hash was checked. Reads Python integers within bounds, so a mistake costs an error, not memory.
Format: ggml-org/ggml docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ruvllm.errors import ModelFileError

MAGIC = b"GGUF"
_MOST = 1024 * 1024
_MOST_KEYS = 4096
_STRING, _ARRAY = 8, 9
# struct's letter of each scalar type: u8 i8 u16 i16 u32 i32 f32 bool, then u64 i64 f64.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Header:
    """What is not stated is empty or 0."""

    architecture: str
    name: str
    layers: int
    width: int


def read_header(path: Path) -> Header:
    """
    Raises:
        ModelFileError: it is no GGUF, or its metadata is not what the format says.
    """
    with path.open("rb") as file:
        content = file.read(_MOST)
    try:
        facts = _Reader(content).facts()
    except (struct.error, ValueError, KeyError) as error:
        raise ModelFileError(f"model file {path}: its header cannot be read ({error}); pull it again") from error
    architecture = str(facts.get("general.architecture", ""))
    return Header(
        architecture=architecture,
        name=str(facts.get("general.name", "")),
        layers=_number(facts.get(f"{architecture}.block_count")),
        width=_number(facts.get(f"{architecture}.embedding_length")),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


class _Reader:
    """Walks the metadata up to the tokeniser, whose lists are long and come last."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def facts(self) -> dict[str, object]:
        if self._content[:4] != MAGIC:
            raise ValueError(f"it begins with {self._content[:4]!r}, want {MAGIC!r}")
        self._at = 4
        version, _, keys = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3) or not 0 < int(keys) <= _MOST_KEYS:
            raise ValueError(f"got version {version} and {keys} keys, want version 2 or 3 and at most {_MOST_KEYS}")
        found: dict[str, object] = {}
        for _ in range(int(keys)):
            key = self._string()
            if key.startswith("tokenizer."):
                break
            found[key] = self._value(int(self._take("I")))
        return found

    def _take(self, letter: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(f"<{letter}", self._content, self._at)[0]
        self._at += struct.calcsize(f"<{letter}")
        return value

    def _string(self) -> str:
        length = int(self._take("Q"))
        if length > len(self._content) - self._at:
            raise ValueError(f"a text of {length} bytes at {self._at}")
        self._at += length
        return self._content[self._at - length : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])
        inner, count = int(self._take("I")), int(self._take("Q"))
        if inner == _ARRAY or count > len(self._content):
            raise ValueError(f"a list of {count} of type {inner} at {self._at}")
        return [self._value(inner) for _ in range(count)]
