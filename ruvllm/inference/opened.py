"""A model file held open, so that what was hashed is what is loaded. Knows nothing of processes or of what parses it.

A name can be given to another file between the hash and the parser's `open`. So the file is opened first, its name is
verified, and the two are compared by inode and times; the child then loads the open file (/proc/self/fd/N) and looks
again afterwards. Who can write into the file itself still changes a loaded model's pages, as with any mapped file; a
write before the load is over is found, one after it is found at the next start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ruvllm.errors import ModelFileError
from ruvllm.inference.files import check_kind, ensure, verify
from ruvllm.inference.tiers import Tier
from ruvllm.settings import Settings

_OPEN_FILES = Path("/proc/self/fd")
Mark = tuple[int, int, int, int, int]  # device, inode, size, time of the last write, of the last change


@dataclass(frozen=True)
class ModelFile:
    """An open file. `sha256` is empty where nobody verified it: a file made for a test or a measurement."""

    path: Path
    number: int  # of the descriptor
    mark: Mark
    sha256: str = ""

    @property
    def identity(self) -> str:
        """What a state of the model depends on: the file's content, by hash or, unverified, by its mark."""
        return self.sha256 or f"unverified {self.mark}"


@contextmanager
def opened(path: Path) -> Iterator[ModelFile]:
    """
    Raises:
        ModelFileError: it cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelFileError(f"model file {path}: {error.strerror}; want a readable file there") from error
    try:
        yield ModelFile(path, number, mark(number))
    finally:
        os.close(number)


@contextmanager
def verified(tier: Tier, settings: Settings) -> Iterator[ModelFile]:
    """The tier's file, open, its hash checked.

    Raises:
        ModelFileError: missing, altered, of another kind, or given to another file while it was verified.
    """
    with opened(ensure(tier, settings)) as file:
        sha256 = verify(tier, settings, path=file.path)  # remembered from `ensure`: it costs a stat
        check_same(file.path, file.mark, mark(file.path))
        check_kind(tier, file.path)
        yield ModelFile(file.path, file.number, file.mark, sha256)


def source(number: int, path: Path) -> Path:
    """Where a child that was given descriptor `number` finds that very file; by name where the system has no door."""
    there = _OPEN_FILES / str(number)
    return there if there.exists() else path


def mark(file: int | Path) -> Mark:
    stat = os.stat(file)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def check_same(path: Path, was: Mark, now: Mark) -> None:
    """
    Raises:
        ModelFileError: another file, or the same one written to.
    """
    if was != now:
        raise ModelFileError(
            f"model file {path}: changed between its verification and its loading; wait for what writes it, try again"
        )
