"""Engines that count what they evaluate, and questions with passages to ask them. Knows nothing of what is measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ruvllm.attention.context import Candidate, assemble
from ruvllm.corpus import factbook
from ruvllm.corpus.questions import questions
from ruvllm.inference.blank import write_gguf
from ruvllm.inference.engine import Engine
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.files import ensure
from ruvllm.inference.halt import Halt
from ruvllm.inference.prompt import build, sizes
from ruvllm.inference.shapes import TINY, find_shape
from ruvllm.inference.tiers import Tier, load_catalogue
from ruvllm.inference.types import Prompt
from ruvllm.settings import Settings
from tests.benchmarks.memory.report import Report, conditions

STYLES = ("chat", "few-shot")  # of the packaged tiers


class Counting(Engine):
    """Counts tokens evaluated."""

    evaluated = 0

    def evaluate(self, tokens: Sequence[int], halt: Halt | None = None) -> None:
        super().evaluate(tokens, halt)
        self.evaluated += len(tokens)


class Counter(FakeModel):
    """The part of a `Model` that chooses passages."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(self._engine.tokenise(text, special=False)) for text in texts]


def model_file(name: str, settings: Settings, folder: Path) -> tuple[Tier, Path]:
    """A packaged tier by its style, or a blank LFM2 by its shape, `tiny` or as in `ruvllm models`, at Q4_0."""
    tiers = {tier.style: tier for tier in load_catalogue()["packaged"]}
    if name in tiers:
        return tiers[name], ensure(tiers[name], settings)
    shape, kind = (TINY, "F16") if name == "tiny" else (find_shape(name), "Q4_0")
    path = folder / f"blank-{shape.name}-{kind}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_gguf(path, shape, quantisation=kind)
    return tiers["chat"], path


def asked(tier: Tier, engine: Engine, bins: Sequence[int], count: int) -> list[dict[int, Prompt]]:
    """Questions of the Factbook, their passage first and then others of the same country and its neighbours in name."""
    texts = {passage.key: passage.text for passage in factbook.passages()}
    keys, counter = list(texts), Counter(engine)
    made = []
    for question in [q for q in questions() if q.gold_passage in texts and not q.also_needs][:: 37 + 1][:count]:
        place = keys.index(question.gold_passage)
        passages = [texts[key] for key in (*keys[place:], *keys[:place])][:80]
        candidates = [Candidate(i, text) for i, text in enumerate(passages)]
        chosen = {b: assemble(candidates, question.text, partial(sizes, tier, counter), b).passages for b in bins}
        made.append({b: build(tier, question.text, chosen[b], ()) for b in bins})
    return made


def opened(path: Path, n_ctx: int) -> Counting:
    """On one thread: this process does not wait passively, and ratios need no second."""
    engine = Counting(path, n_ctx)
    engine.set_threads(1, 1)
    return engine


def report(name: str, config: pytest.Config, folder: Path) -> Report:
    """Results as <out>/<name>.json and .md; the command as a user would type it, without this machine's folders."""
    option = config.getoption
    made = Report(f"{name}-{option('--shapes')}".replace(",", "+"), Path(option("--out") or folder / "results"))
    words = (w if "/" not in w or w.startswith("tests/") else "FOLDER" for w in sys.argv[1:])
    made.conditions = conditions(rounds=option("--rounds"), command=f"python -m pytest {' '.join(words)}")
    return made


def quartiles(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"
