"""What a node says, by name: packed records in one mapped file. Knows nothing of search.

A record is the fields of Node in their order, metadata as JSON text; msgpack runs no code when it is read.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.records import Node

_RECORDS, _PLACES = "records.msgpack", "places.npy"
_TEXT, _TAGS, _METADATA = 5, 8, 9  # places in a record
_FIELDS = tuple(field.name for field in fields(Node))
_ARRAY = b"\xdd"  # msgpack: an array of so many as the next four bytes say


class Texts:
    """Records of the names 0 to n - 1, mapped."""

    def __init__(self, folder: Path) -> None:
        # (n, 2) int64: start, end
        self._places = np.asarray(np.load(folder / _PLACES, mmap_mode="r", allow_pickle=False))
        with (folder / _RECORDS).open("rb") as file:
            # an empty file cannot be mapped
            size = (folder / _RECORDS).stat().st_size
            self._map: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def packed(self, names: NDArray[np.int64]) -> list[bytes]:
        """Empty for a row that no node has any more."""
        return [self._map[start:end] for start, end in self._places[names].tolist()]

    def __iter__(self) -> Iterator[str]:
        """The texts alone, by name."""
        for start, end in self._places.tolist():
            yield text_of(self._map[start:end])


class Writer:
    """Writes records as they come; a context manager, and whole once `finish` was called."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._end = folder, 0
        self._places: dict[int, tuple[int, int]] = {}
        self._file = (folder / _RECORDS).open("wb")

    def add(self, name: int, packed: bytes) -> None:
        self._file.write(packed)
        self._places[name] = (self._end, self._end + len(packed))
        self._end += len(packed)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self, names: int) -> None:
        """Of `names` in all; one that was not added has no record."""
        places = np.zeros((names, 2), dtype=np.int64)
        if self._places:
            places[list(self._places)] = list(self._places.values())
        np.save(self._folder / _PLACES, places, allow_pickle=False)


def pack(record: Sequence[Any]) -> bytes:
    """Metadata as it is, 4 µs a node cheaper to read than JSON, unless it holds a number that msgpack cannot."""
    fields = list(record)
    if isinstance(metadata := json.loads(fields[_METADATA]), dict):
        fields[_METADATA] = metadata
    try:
        packed: bytes = msgpack.packb(fields)
    except (OverflowError, ValueError):  # beyond 64 bits; nested too deep
        packed = msgpack.packb(list(record))
    return packed


def unpack(packed: Sequence[bytes]) -> list[Node]:
    return [_node(record) for record in msgpack.unpackb(_ARRAY + struct.pack(">I", len(packed)) + b"".join(packed))]


def _node(record: list[Any]) -> Node:
    record[_TAGS] = tuple(record[_TAGS])
    if isinstance(record[_METADATA], str):
        record[_METADATA] = json.loads(record[_METADATA])
    node = object.__new__(Node)
    # what Node's own __init__ does, field by field because it is frozen, in four times as long
    node.__dict__.update(zip(_FIELDS, record, strict=True))
    return node


def text_of(packed: bytes) -> str:
    return str(msgpack.unpackb(packed)[_TEXT]) if packed else ""
