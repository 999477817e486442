"""Questions with their accepted answers, over memories of arrays: what is read, not only what is found.

The packaged corpus's own questions and squadshifts_newwiki's. Either can be had with a hierarchy: a concept for each
country, module or article, with a Contains edge to each of its passages, as `ruvllm/memory/tidy/compaction.py` makes
them. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ruvllm.memory import naming
from ruvllm.memory.records import Edge
from tests.benchmarks.attention.sets import SETS, Setting, setting_of
from tests.benchmarks.memory.test_quality import _lines, load

NEWWIKI, CORPUS = "squadshifts_newwiki", "packaged corpus"


@dataclass(frozen=True, eq=False)
class Answerable:
    """`answers[i]` are accepted for question i; `groups[j]` is what passage j belongs to."""

    setting: Setting
    answers: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.setting.name

    def with_hierarchy(self) -> Setting:
        """The same memory and a concept of each group of several passages, at the mean of their vectors."""
        setting, texts = self.setting, list(self.setting.texts)
        vectors, edges = [setting.passages], list(setting.edges)
        for name in sorted({name for name in self.groups if self.groups.count(name) > 1}):
            members = [j for j, group in enumerate(self.groups) if group == name]
            edges += contains(len(texts), members)
            texts.append(name)
            mean = setting.passages[members].mean(axis=0, keepdims=True)
            vectors.append(mean / np.linalg.norm(mean))
        whole = setting.over(tuple(texts), np.concatenate(vectors).astype(np.float32), edges)
        return replace(whole, name=f"{setting.name}, with concepts")


def contains(concept: int, members: Sequence[int]) -> list[Edge]:
    return [(concept, member, "Contains", 1.0) for member in members]


def newwiki(folder: Path, asked: int, keep: Path) -> Answerable:
    """The same `asked` questions in every run."""
    task = replace(SETS[NEWWIKI], asked=asked)
    loaded = load(folder, task)
    rows = {str(row["question"]).strip(): row["answers"] for row in _lines(folder / NEWWIKI / "questions.jsonl.gz")}
    gold = [tuple(sorted(each)) for each in loaded.gold]
    return Answerable(
        setting_of(NEWWIKI, loaded.passages, loaded.questions, gold, keep),
        tuple(tuple(rows[question]) for question in loaded.questions),
        tuple(naming.title_of(text) for text in loaded.passages),
    )


def corpus(asked: int, keep: Path) -> Answerable:
    """Questions of the packaged corpus that stand alone, the same ones in every run."""
    from ruvllm.corpus import corpus_nodes
    from ruvllm.corpus.questions import questions

    nodes = corpus_nodes()
    number = {str(node.metadata["key"]): place for place, node in enumerate(nodes)}
    alone = [each for each in questions() if each.session_id is None and set(each.gold_passages) <= set(number)]
    places = sorted(np.random.default_rng(0).choice(len(alone), min(asked, len(alone)), replace=False))
    chosen = [alone[place] for place in places]
    gold = [tuple(sorted(number[key] for key in each.gold_passages)) for each in chosen]
    return Answerable(
        setting_of(CORPUS, tuple(node.text for node in nodes), tuple(each.text for each in chosen), gold, keep),
        tuple(each.gold for each in chosen),
        tuple("/".join(key.split("/")[:2]) for key in number),
    )
