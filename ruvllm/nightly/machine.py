"""What the machine did during a step: samples of processor, memory and disk, kept as a file. Knows nothing of MLflow.

The names are those under which MLflow's page of a run draws system metrics.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ruvllm.errors import LearningError
from ruvllm.router.durable import replace_file

FILE = "system.json"
EVERY_S = 5.0


@dataclass(frozen=True)
class Sample:
    """The whole machine at `timestamp_ms` since 1970; figures by their name in MLflow."""

    timestamp_ms: int
    figures: dict[str, float]


@contextmanager
def sampled(path: Path, every_s: float = EVERY_S) -> Iterator[None]:
    """Samples during the block, one at its end at least; written to `path` where the block ends well.

    Raises:
        LearningError: the file cannot be written.
    """
    ended, samples = threading.Event(), list[Sample]()
    psutil.cpu_percent()  # the next call's figure is since this one

    def watch() -> None:
        while not ended.wait(every_s):
            samples.append(sample())

    thread = threading.Thread(target=watch, name="machine", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    samples.append(sample())
    try:
        replace_file(path, json.dumps([asdict(each) for each in samples]).encode())
    except OSError as error:
        raise LearningError(f"{path}: not written ({error.strerror or error}); free some space") from error


def sample() -> Sample:
    """The machine now; the processor's share is since the last sample."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return Sample(
        int(time.time() * 1000),
        {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/disk_usage_percentage": disk.percent,
        },
    )


def read_samples(path: Path) -> list[Sample]:
    """What `sampled` wrote; none where no step was watched.

    Raises:
        LearningError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return [Sample(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise LearningError(f"{path}: damaged ({error}); delete it and run the night again") from error
