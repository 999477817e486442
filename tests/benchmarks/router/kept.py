"""Predictions that a killed run of the contest leaves for the next one, and how long the rest will take.

A prediction is found again only for the same rows, contender, settings, view and seed, and while the code that makes it
reads the same. Knows nothing of what is measured on it.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ruvllm.settings import PROJECT_ROOT

Arrays = dict[str, NDArray[np.generic]]
_MAKERS = (
    "ruvllm/learning/outcomes",
    "ruvllm/router",
    "ruvllm/learning/compress.py",
    "tests/benchmarks/router/contest.py",
)


@lru_cache(maxsize=1)
def code() -> str:
    """sha256 over the sources that make predictions."""
    digest = hashlib.sha256()
    for name in _MAKERS:
        place = PROJECT_ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Kept:
    """A folder of predictions; with None nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def once(self, key: Sequence[object], make: Callable[[], Arrays]) -> tuple[Arrays, bool]:
        """What is there, or what `make` gives, kept; and whether it was there."""
        if self.folder is None:
            return make(), False
        name = hashlib.sha256(repr([code(), *key]).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.npz"
        if (found := _read(path)) is not None:
            return found, True
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
        partial.replace(path)
        return made, False


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # half of one: made again
        return None


class Pace:
    """Says after each prediction what it took and what the set still takes; `tell` prints a line."""

    def __init__(self, name: str, wanted: Sequence[tuple[str, str]], tell: Callable[[str], None]) -> None:
        self.name, self._left, self._tell, self._total = name, list(wanted), tell, len(wanted)
        self._spent: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._started = 0.0

    def begin(self) -> None:
        self._started = time.monotonic()

    def done(self, view: str, learner: str, kept: bool) -> None:
        """One prediction more; one that was kept says nothing of how long others take."""
        spent = time.monotonic() - self._started
        if not kept:
            self._spent[view, learner].append(spent)
        if (view, learner) in self._left:
            self._left.remove((view, learner))
        took = "kept" if kept else f"{spent:.1f} s"
        number = self._total - len(self._left)
        self._tell(f"{self.name} {number}/{self._total}: {learner} on {view}: {took}; {self._rest()}")

    def _rest(self) -> str:
        """The same contender's mean time where it is known, else the mean of all."""
        means = {what: float(np.mean(times)) for what, times in self._spent.items()}
        if not means:
            return "time left unknown"
        usual = float(np.mean(list(means.values())))
        return f"about {sum(means.get(what, usual) for what in self._left) / 60:.1f} min left for this set"
