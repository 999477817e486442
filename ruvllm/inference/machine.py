"""What this machine offers a model: free memory, cores, graphics cards. Knows nothing of models."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Gpu:
    name: str
    free: int  # bytes


@dataclass(frozen=True)
class Machine:
    """Memory in bytes. `repacks`: llama.cpp keeps a rearranged copy of 4-bit weights for this processor."""

    cores: int
    free: int
    gpus: tuple[Gpu, ...] = ()
    repacks: bool = False

    @property
    def device(self) -> str:
        """Its class, in words."""
        if self.gpus:
            return f"{len(self.gpus)} × {self.gpus[0].name}"
        return f"{self.cores} CPU {'core' if self.cores == 1 else 'cores'}"


def this_machine(with_gpus: bool = False) -> Machine:
    """`with_gpus` asks the driver, which takes a second where there is one."""
    return Machine(len(os.sched_getaffinity(0)), free_memory(), gpus() if with_gpus else (), repacks())


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process can still take: the machine's, or its container's if that is less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_free(cgroup)])


def _container_free(cgroup: Path) -> list[int]:
    """cgroup v2; file pages that it counts can be given back. Nothing where there is no limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used + int(stat.get("inactive_file", 0)))]


def gpus() -> tuple[Gpu, ...]:
    """What nvidia-smi lists; none where it is missing or fails."""
    if not shutil.which(_NVIDIA[0]):
        return ()
    try:
        done = subprocess.run(_NVIDIA, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Lines of `name, MiB`; a card that tells no number is left out."""
    rows = [line.rpartition(",") for line in text.splitlines()]
    return tuple(Gpu(name.strip(), int(free) * 2**20) for name, _, free in rows if free.strip().isdigit())


def repacks(cpuinfo: Path = CPUINFO) -> bool:
    """AVX2 without AMX: with AMX the engine turns llama.cpp's rearranging off (see engine.py)."""
    try:
        flags = set(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return False
    return "avx2" in flags and "amx_int8" not in flags
