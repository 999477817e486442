"""Public sets as memories of arrays, linked by memory's own linking. Knows nothing of what is measured on them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.gather import Reach, gather
from ruvllm.attention.graph import Subgraph
from ruvllm.embedding import open_embedder
from ruvllm.memory import naming
from ruvllm.memory.linking import Linkable, linked
from ruvllm.memory.records import Edge, Vector
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
    passages: Vector  # (n, d) of the texts
    edges: tuple[Edge, ...]

    @property
    def several(self) -> bool:
        return self.name in MULTI_HOP

    def graphs(self, how: Reach | None = None) -> list[Subgraph]:
        pairs = zip(self.questions, self.vectors, strict=True)
        return [gather(self.source, question, vector, how) for question, vector in pairs]

    def over(self, texts: tuple[str, ...], passages: Vector, edges: Sequence[Edge]) -> Setting:
        """The same questions over another memory, in which the same places hold the gold."""
        source = _source(texts, passages, edges)
        return replace(self, texts=texts, passages=passages, edges=tuple(edges), source=source)


def opened(folder: Path, task: Task, asked: int, keep: Path) -> Setting:
    """`asked` bounds the questions of a set that needs one passage each; the same ones in every run."""
    loaded = load(folder, task if task.several else replace(task, asked=asked))
    gold = [tuple(sorted(each)) for each in loaded.gold]
    return setting_of(task.name, loaded.passages, loaded.questions, gold, keep)


def setting_of(
    name: str, texts: tuple[str, ...], questions: tuple[str, ...], gold: Sequence[tuple[int, ...]], keep: Path
) -> Setting:
    """Embedded and linked; `gold` holds places in `texts`."""
    embedder = open_embedder(load_settings())
    passages, asked = embedded(texts, embedder, keep), embedded(questions, embedder, keep)
    before = time.process_time()
    made = linked([Linkable(i, text, naming.title_of(text)) for i, text in enumerate(texts)], passages)
    seconds = time.process_time() - before
    edges = tuple(link.edge for link in made.links)
    return Setting(
        name, texts, questions, np.asarray(asked), tuple(gold), _source(texts, passages, edges), made.counts, seconds,
        np.asarray(passages), edges,
    )  # fmt: skip


def _source(texts: Sequence[str], passages: Vector, edges: Sequence[Edge]) -> ArraySource:
    return ArraySource(texts, passages, edges, Path(tempfile.mkdtemp(prefix="ruvllm-words-")))
