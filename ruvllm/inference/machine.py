"""What this machine offers a model: free memory, cores, graphics cards. Knows nothing of models."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")
AMX_MARK = b"ruvllm: whole AMX tile configuration"  # put into the library by infra/llama/ruvllm_amx.h
_NVIDIA = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
_PATIENCE_S = 10.0


# Weights of which llama.cpp keeps a rearranged copy.
Repacked = Literal["none", "4-bit", "all"]


@dataclass(frozen=True)
class Gpu:
    name: str
    free: int  # bytes


@dataclass(frozen=True)
class Machine:
    """Memory in bytes. `repacks`: of which weights llama.cpp keeps a rearranged copy for this processor."""

    cores: int
    free: int
    gpus: tuple[Gpu, ...] = ()
    repacks: Repacked = "none"

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


def repacks(cpuinfo: Path = CPUINFO, library: Path | None = None) -> Repacked:
    """AVX2 rearranges 4-bit matrices, AMX all of them. Where the library's AMX cannot be trusted the engine
    turns all rearranging off (see engine.py). `library` is the folder of the package llama_cpp."""
    try:
        flags = set(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return "none"
    if "amx_int8" in flags:
        return "all" if amx_is_whole(library) else "none"
    return "4-bit" if "avx2" in flags else "none"


def amx_is_whole(library: Path | None = None) -> bool:
    """Whether llama.cpp was built with our header (infra/llama/ruvllm_amx.h), without which GCC 12 breaks its AMX code.

    Looks for the mark in the library's bytes and loads nothing.
    """
    if library is None:
        spec = find_spec("llama_cpp")
        library = Path(spec.origin).parent if spec and spec.origin else Path()
    cpu = next(library.glob("lib/libggml-cpu.*"), None)
    return cpu is not None and AMX_MARK in cpu.read_bytes()
