"""Measured cells, one JSON file each, so that a killed run goes on where it was. Knows nothing of how one is measured.

A cell is named by what it is of (`first lfm2-350m Q4_0 2 512 restored`); its file also says when, where and under which
load it was measured. `latency_page.py` makes the page from a folder of them; what has no file was not measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruvllm.inference.shapes import find_shape
from ruvllm.inference.sizing import QUANTISATIONS, weight_bytes
from tests.benchmarks.memory.report import conditions

SHAPES = ("350m", "700m", "1.2b", "2.6b")
EVERY_KIND = ("350m", "2.6b")  # shapes that are measured at every quantisation, at 512 tokens
PROMPTS = (64, 256, 512, 1024, 2048)
ONE_PROMPT = 512
Name = tuple[str | int, ...]

# Of one thread of a server's processor, only to say how long a run will take: operations a second of a prefill, and
# bytes a second of weights read for a token.
_OPERATIONS, _BYTES = 60e9, 5e9


def models(shapes: Iterable[str], kinds: Iterable[str]) -> list[tuple[str, str]]:
    """(shape, quantisation) pairs of the grid: every shape at Q4_0, two of them at the others."""
    wanted = list(kinds)
    return [(s, q) for s in shapes for q in wanted if q == "Q4_0" or s in EVERY_KIND]


def prompts(quantisation: str) -> Sequence[int]:
    return PROMPTS if quantisation == "Q4_0" else (ONE_PROMPT,)


def whole_grid() -> list[tuple[str, str]]:
    return models(SHAPES, QUANTISATIONS)


@dataclass
class Cells:
    """In `folder`; `n` is how often each thing is measured."""

    folder: Path
    n: int = 0
    skipped: int = field(default=0, init=False)

    def of(self, name: Name, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell, measured now unless it is there with at least `n` repeats."""
        known = self.known(name)
        if known is not None and known["n"] >= self.n:
            self.skipped += 1
            return known
        load, began = os.getloadavg()[0], time.perf_counter()
        values = measure()
        return self._put(name, {**values, "n": self.n, "load": round(load, 1), "took_s": time.perf_counter() - began})

    def known(self, name: Name) -> dict[str, Any] | None:
        path = self._path(name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def missing(self, name: Name) -> bool:
        known = self.known(name)
        return known is None or known["n"] < self.n

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]

    def _put(self, name: Name, values: dict[str, Any]) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        cell = {"name": list(name), **values, "conditions": conditions()}
        path = self._path(name)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(cell, indent=1), encoding="utf-8")
        partial.replace(path)
        return cell

    def _path(self, name: Name) -> Path:
        return self.folder / ("_".join(str(part) for part in name) + ".json")


def estimate_s(shape: str, quantisation: str, prefill: int, decode: int, threads: int) -> float:
    """Seconds of one request, roughly: two operations a weight and prompt token, all weights read for an answer's."""
    named = find_shape(shape)
    each = 2 * named.parameters / (_OPERATIONS * threads)
    return prefill * each + decode * weight_bytes(named, quantisation) / (_BYTES * threads)


def told(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {seconds:.0f} s"
