"""Answers that Postgres could not take, on disk until it can: appended with fsync, bounded, replayed in their order.

Knows nothing of SQL: who replays says how one is stored, and stores one of a known request id only once. So a crash in
the middle of a replay repeats some and loses none. A line is a CRC-32 and JSON; one that a crash tore is left out.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ruvllm.answering.interactions import Interaction
from ruvllm.errors import DatabaseError, RuvllmError, SpoolFullError
from ruvllm.process import lock

log = logging.getLogger(__name__)

_LOCK_S = 10.0  # another process of this checkout appends or replays
Record = Callable[[str, Interaction], None]


@dataclass(frozen=True)
class Spooled:
    """One line. `values` are the columns of the interaction."""

    tenant: str
    values: dict[str, object]

    def to_line(self) -> bytes:
        content = json.dumps(vars(self), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
        return b"%08x %s\n" % (zlib.crc32(content), content)

    @classmethod
    def from_line(cls, line: bytes) -> Spooled | None:
        """None where the line is not whole."""
        digits, _, content = line.rstrip(b"\n").partition(b" ")
        if digits != b"%08x" % zlib.crc32(content):
            return None
        return cls(**json.loads(content))


class Spool:
    """The spool in `folder`, which is made when it is first needed. Safe among threads and processes."""

    def __init__(self, folder: Path, limit_bytes: int = 64 * 2**20) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._waiting, self._replaying = folder / "waiting.log", folder / "replaying.log"
        self._refused = folder / "refused.log"
        self._replay, self._writing = threading.Lock(), threading.Lock()
        self._stored = 0  # bytes of `replaying.log` that this process has brought home

    def append(self, tenant: str, row: Interaction) -> None:
        """Keep `row`; it is on disk when this returns.

        Raises:
            SpoolFullError: the bound is reached, or the disk is full; nothing was kept.
        """
        line = Spooled(tenant, row.values).to_line()
        try:
            with self._locked():
                if self.size + len(line) > self.limit_bytes:
                    raise SpoolFullError(
                        f"spool {self.folder}: {self.size} bytes wait for Postgres, want at most {self.limit_bytes}"
                        " (RUVLLM_SPOOL_MB); this answer is not kept"
                    )
                _append(self._waiting, line)
        except OSError as error:
            raise SpoolFullError(f"spool {self.folder}: not written ({error.strerror or error})") from error

    def replay(self, record: Record) -> int:
        """Store what waits with `record`, oldest first; returns how many it took.

        What `record` refuses for a reason of the row's own goes to refused.log, and the others go on.

        Raises:
            DatabaseError: Postgres is away (again); the rest waits.
        """
        taken = 0
        with self._replay:
            while self._begin():
                taken += self._replay_file(record)
        return taken

    @property
    def size(self) -> int:
        """Bytes on disk, but what was refused."""
        return sum(_size(path) for path in (self._waiting, self._replaying))

    @property
    def depth(self) -> int:
        """Answers that wait."""
        left = sum(1 for _ in _lines(self._replaying, self._stored))
        return left + sum(1 for _ in _lines(self._waiting, 0))

    @property
    def refused(self) -> int:
        return sum(1 for _ in _lines(self._refused, 0))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            self._writing,
            lock(self.folder / "lock", _LOCK_S),
        ):  # threads first: the file's lock is waited for by looks
            yield

    def _begin(self) -> bool:
        """Whether there is something to replay: what a replay left, else all that waits now."""
        if self._replaying.exists():
            return True
        if not self._waiting.exists():
            return False
        with self._locked():
            self._waiting.rename(self._replaying)
        self._stored = 0
        return True

    def _replay_file(self, record: Record) -> int:
        taken = 0
        for line, end in _lines(self._replaying, self._stored):
            taken += self._replay_line(line, record)
            self._stored = end
        self._replaying.unlink()
        self._stored = 0
        return taken

    def _replay_line(self, line: bytes, record: Record) -> bool:
        found = Spooled.from_line(line)
        if found is None:
            log.warning("spool %s: a line of %d bytes is torn and left out", self.folder, len(line))
            return False
        try:
            record(found.tenant, Interaction(found.values))
        except DatabaseError:
            raise
        except (psycopg.Error, RuvllmError) as error:
            log.warning("spool %s: request %s: %s", self.folder, found.values.get("request_id"), error)
            with self._locked():
                _append(self._refused, line)
            return False
        return True


def _append(path: Path, line: bytes) -> None:
    """All of `line` or, where the disk is full, nothing of it."""
    with open(path, "ab", opener=_private) as file:
        before = file.tell()
        # a line that a crash tore ends here at the latest; an empty line is no line
        try:
            file.write(b"\n" + line if before else line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    if not before:
        _sync_folder(path.parent)


def _lines(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """Each line that is not empty, from byte `start` on, with the byte where it ends."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        end = start
        for line in file:
            end += len(line)
            if line.strip():
                yield line, end


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
