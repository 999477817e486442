"""Keeps mapped files in memory. Knows nothing of what is in them.

The pages of a mapped file are the first that a system short of memory takes back, and an idle replica's the first of
all; each then costs a read from disk (tests/benchmarks/memory/test_speed.py, whose replica waits while the other
contenders are built: p99 at k = 10 was 31 ms without a lock). A locked page stays, for every mapping of its file,
faiss's too.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_READ, _SHARED = 1, 1  # PROT_READ, MAP_SHARED
_FAILED = ctypes.c_void_p(-1).value


class Pinned:
    """`paths` locked in memory until `close`, as far as the system allows (`ulimit -l`); what it refuses is logged."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._libc = _libc()
        self._held: list[tuple[int, int]] = []  # (address, bytes)
        for path in paths if self._libc is not None else ():
            if not self._pin(path):
                break

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self._held)

    def _pin(self, path: Path) -> bool:
        assert self._libc is not None
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return True
            address = self._libc.mmap(None, size, _READ, _SHARED, file.fileno(), 0)
        if address in (None, _FAILED) or self._libc.mlock(address, size) != 0:
            log.info(
                "replica: %s and what follows stay unlocked (%s); raise `ulimit -l` and the first searches after an "
                "idle while stay fast on a machine short of memory", path.name, os.strerror(ctypes.get_errno()),
            )  # fmt: skip
            if address not in (None, _FAILED):
                self._libc.munmap(address, size)
            return False
        self._held.append((address, size))
        return True

    def close(self) -> None:
        """Unlocks and unmaps; a second time nothing happens."""
        while self._held:
            assert self._libc is not None
            self._libc.munmap(*self._held.pop())

    def __del__(self) -> None:
        self.close()


def _libc() -> ctypes.CDLL | None:
    """The calls with their types; None where the system has none of them."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.mlock.argtypes = libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    except (AttributeError, OSError):
        return None
    return libc
