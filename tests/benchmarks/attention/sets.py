"""Public sets as memories of arrays, linked by memory's own linking. Knows nothing of what is measured on them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.gather import Reach, gather
from ruvllm.attention.graph import Subgraph
from ruvllm.embedding import open_embedder
from ruvllm.memory import naming
from ruvllm.memory.linking import Linkable, linked
from ruvllm.memory.records import Vector
from ruvllm.settings import load_settings
from tests.benchmarks.memory.test_quality import TASKS, Task, embedded, load

MULTI_HOP = ("musique_small", "hotpotqa_small")
SETS: Mapping[str, Task] = {task.name: task for task in TASKS if task.name != "cranfield"}


@dataclass(frozen=True, eq=False)
class Setting:
    """A set, ready to be asked."""

    name: str
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    vectors: Vector  # (q, d) of the questions
    gold: tuple[tuple[int, ...], ...]
    source: ArraySource
    links: Mapping[str, int]
    link_seconds: float  # CPU

    @property
    def several(self) -> bool:
        return self.name in MULTI_HOP

    def graphs(self, how: Reach | None = None) -> list[Subgraph]:
        pairs = zip(self.questions, self.vectors, strict=True)
        return [gather(self.source, question, vector, how) for question, vector in pairs]


def opened(folder: Path, task: Task, asked: int, keep: Path) -> Setting:
    """`asked` bounds the questions of a set that needs one passage each; the same ones in every run."""
    loaded = load(folder, task if task.several else replace(task, asked=asked))
    embedder = open_embedder(load_settings())
    passages, questions = embedded(loaded.passages, embedder, keep), embedded(loaded.questions, embedder, keep)
    before = time.process_time()
    texts = [Linkable(i, text, naming.title_of(text)) for i, text in enumerate(loaded.passages)]
    made = linked(texts, passages)
    seconds = time.process_time() - before
    source = ArraySource(
        loaded.passages, passages, [link.edge for link in made.links], Path(tempfile.mkdtemp(prefix="ruvllm-words-"))
    )
    gold = tuple(tuple(sorted(each)) for each in loaded.gold)
    return Setting(
        task.name, loaded.passages, loaded.questions, np.asarray(questions), gold, source, made.counts, seconds
    )
