"""What a model's process may take, and when it has grown too much; knows nothing of models or messages.

RLIMIT_DATA and not RLIMIT_AS: weights are mapped read-only and shared, so they are no data; a limit of addresses would
count them, and the pages that allocators and threads reserve and never touch (measured: SmolLM2 in use has 493 MiB of
addresses, 275 of data, 257 resident).
RLIMIT_NPROC is left alone: it counts every process and thread of the user, not of this process, so a limit that means
anything here would stop OpenMP from starting its threads whenever the user's other programs have many.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from ruvllm.inference.threads import cores
from ruvllm.inference.tiers import Tier, memory
from ruvllm.settings import Settings

MEMORY_EXIT = 70  # exit code of a worker that was refused memory
MAX_FILES = 64  # libraries, log, socket, the model: about 15
_MIB = 2**20
_SPARE_MB = 512  # interpreter, libraries, allocators' slack
_STACK_MB = 16  # a thread's stack and allocator, counted whether touched or not


def memory_limit(tier: Tier, settings: Settings) -> int:
    """Bytes of data that the tier's process may take: the setting, else twice its size at this context, and spare."""
    if settings.model_memory_mb:
        return settings.model_memory_mb * _MIB
    spare = settings.snapshots_mb + _SPARE_MB + _STACK_MB * cores()
    return 2 * memory(tier, settings.n_ctx, repacked="all") + spare * _MIB


def apply(data_bytes: int) -> None:
    """Limits this process: data, open files, no core file of the model's size; and it is the first that the kernel
    ends when the machine has no memory left."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, MAX_FILES)
    _limit(resource.RLIMIT_DATA, data_bytes)
    with suppress(OSError):  # not on every system, and some containers forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit(kind: int, wanted: int) -> None:
    """Soft and hard; what the user allows less of stays less."""
    _, hard = resource.getrlimit(kind)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (allowed, allowed))


def resident() -> int:
    """Bytes of this process in memory, mapped weights included."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has ended for want of memory since it started, here or elsewhere; 0 where it tells not.

    A count that grew while a process was lost is a hint, for a message: it does not name the process.
    """
    try:
        lines = dict(line.split() for line in vmstat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("oom_kill", 0))


class Growth:
    """Whether a process should be replaced: it holds more than its limit, or than `factor` times what it held after its
    first answer, beyond `allowance` bytes that it may gather (kept prompt states)."""

    def __init__(self, limit: int, factor: float, allowance: int = 0) -> None:
        self.limit, self._factor, self._allowance = limit, factor, allowance
        self.resident = 0
        self._first = 0

    def note(self, resident_bytes: int, answered: bool = False) -> None:
        self.resident = resident_bytes
        if answered and not self._first:
            self._first = resident_bytes

    @property
    def worn(self) -> str:
        """Why it should be replaced; empty: it should not."""
        if self.resident > self.limit:
            return f"{self.resident // _MIB} MiB resident, over its limit of {self.limit // _MIB}"
        most = self._factor * self._first + self._allowance
        if self._first and self.resident > most:
            first, allowed = self._first // _MIB, int(most) // _MIB
            return f"grew from {first} to {self.resident // _MIB} MiB, over {allowed}"
        return ""
