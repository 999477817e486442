"""How well memory finds what answers a question: by words, by meaning, by both. Writes docs/retrieval.md.

    python -m pytest tests/benchmarks/memory/test_quality.py -m benchmark --data FOLDER

FOLDER holds public sets as `<set>/passages.jsonl.gz` {id, title, text} and `<set>/<questions>.jsonl.gz` {id, question,
gold}. Every figure is of a real Memory over a real Postgres with the default encoder. Embedding is slow (some 40 ms a
passage), so vectors are kept under the cache directory and used again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.embedding import EmbeddingAdapter, open_embedder
from ruvllm.memory.records import Found, Hit, NewNode, Node, Vector
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.retrieval import hybrid, words
from ruvllm.memory.retrieval.words import WordIndex
from ruvllm.memory.store import Memory
from ruvllm.settings import PROJECT_ROOT, load_settings

pytestmark = pytest.mark.benchmark
TABLE = PROJECT_ROOT / "docs" / "retrieval.md"
COMMAND = "python -m pytest tests/benchmarks/memory/test_quality.py -m benchmark --data FOLDER"
PACKAGED_ASKED = 600
_NO_VECTOR = np.empty(0, dtype=np.float32)
_MARK = "<!-- measured: what follows is written by the command below -->"


@dataclass(frozen=True)
class Task:
    """One public set: where its questions are and how many of them are asked (0: all)."""

    name: str
    questions: str
    asked: int = 0
    several: bool = False  # every gold passage is needed


TASKS = (
    Task("squadshifts_newwiki", "questions", 1500),
    Task("beir_scifact", "queries_train"),
    Task("cranfield", "queries"),
    Task("hotpotqa_small", "questions_train100", several=True),
    Task("musique_small", "questions_train100", several=True),
)


@dataclass(frozen=True)
class Loaded:
    """`gold[i]` holds the grade by the number of a passage, of question i; `k` is where rankings are cut."""

    name: str
    passages: tuple[str, ...]
    questions: tuple[str, ...]
    gold: tuple[Mapping[int, float], ...]
    k: int = 10


def load(folder: Path, task: Task) -> Loaded:
    passages = list(_lines(folder / task.name / "passages.jsonl.gz"))
    number = {str(row["id"]): i for i, row in enumerate(passages)}
    questions = [row for row in _lines(folder / task.name / f"{task.questions}.jsonl.gz") if row["gold"]]
    if task.asked:  # the same ones in every run
        chosen = np.random.default_rng(0).choice(len(questions), task.asked, replace=False)
        questions = [questions[i] for i in sorted(chosen)]
    return Loaded(
        task.name,
        tuple(_text(row) for row in passages),
        tuple(str(row["question"]).strip() for row in questions),
        tuple(_grades(row["gold"], number) for row in questions),
    )


def packaged() -> Loaded:
    """The demonstration's own passages and questions that stand alone; R@5 is what its answers are made from."""
    from ruvllm.corpus import corpus_nodes
    from ruvllm.corpus.questions import questions

    nodes = corpus_nodes()
    number = {str(node.metadata["key"]): i for i, node in enumerate(nodes)}
    alone = [each for each in questions() if each.session_id is None and set(each.gold_passages) <= set(number)]
    chosen = sorted(np.random.default_rng(0).choice(len(alone), min(PACKAGED_ASKED, len(alone)), replace=False))
    asked = [alone[i] for i in chosen]
    gold = tuple({number[key]: 1.0 for key in each.gold_passages} for each in asked)
    return Loaded("packaged corpus", tuple(n.text for n in nodes), tuple(q.text for q in asked), gold, k=5)


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _text(row: Mapping[str, str]) -> str:
    title, text = row["title"].strip(), row["text"].strip()
    return (text if not title or text.startswith(title) else f"{title}\n{text}") or "-"


def _grades(gold: object, number: Mapping[str, int]) -> dict[int, float]:
    grades = gold if isinstance(gold, dict) else dict.fromkeys(gold, 1.0)  # type: ignore[call-overload]
    return {number[id]: float(grade) for id, grade in grades.items() if id in number and float(grade) > 0}


def embedded(texts: Sequence[str], embedder: EmbeddingAdapter, cache: Path) -> Vector:
    """(n, d) vectors, from the cache where the same encoder embedded the same texts before."""
    digest = hashlib.sha256("\x00".join((embedder.id, *texts)).encode()).hexdigest()[:16]
    path = cache / "benchmarks" / f"{digest}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, embedder.embed(list(texts)))
        partial.rename(path)
    vectors: Vector = np.load(path)
    return vectors


@dataclass(frozen=True)
class Quality:
    """Means over questions: share of the gold found, nDCG with the gold's grades, share with all gold found."""

    recall: float
    ndcg: float
    whole: float
    ms: float  # median of a search with its texts; a ratio to the others, not a promise


def measured(search: Callable[[int], list[Hit]], loaded: Loaded, numbers: Mapping[int, list[int]]) -> Quality:
    """`numbers`: passages by node id (one node holds passages of one text)."""
    recalls, ndcgs, wholes, times = [], [], [], []
    for i, gold in enumerate(loaded.gold):
        started = time.perf_counter()
        hits = search(i)[: loaded.k]
        times.append(time.perf_counter() - started)
        found = [max((gold.get(number, 0.0) for number in numbers[hit.node.id]), default=0.0) for hit in hits]
        wanted = {id for id, passages in numbers.items() if set(passages) & set(gold)}
        recalls.append(sum(grade > 0 for grade in found) / len(wanted))
        ndcgs.append(_gain(found) / _gain(sorted(gold.values(), reverse=True)[: min(loaded.k, len(wanted))]))
        wholes.append(wanted <= {hit.node.id for hit in hits})
    return Quality(*(float(np.mean(each)) for each in (recalls, ndcgs, wholes)), float(np.median(times)) * 1e3)


def _gain(grades: Sequence[float]) -> float:
    return float(sum(grade / np.log2(place + 2) for place, grade in enumerate(grades)))


# -- the measurement


@pytest.fixture(scope="module")
def embedder() -> EmbeddingAdapter:
    return open_embedder(load_settings())


@pytest.fixture(params=[*TASKS, "packaged corpus"], ids=lambda task: getattr(task, "name", task))
def loaded(request: pytest.FixtureRequest) -> Loaded:
    if isinstance(request.param, str):
        return packaged()
    folder = request.config.getoption("--data")
    if not folder or not (Path(folder) / request.param.name).is_dir():
        pytest.skip(f"--data FOLDER with {request.param.name} is not given")
    return load(Path(folder), request.param)


def test_quality(loaded: Loaded, embedder: EmbeddingAdapter, empty_database_url: str, tmp_path: Path) -> None:
    cache = load_settings().cache_dir
    passages = embedded(loaded.passages, embedder, cache)
    asked = embedded(loaded.questions, embedder, cache)
    upgrade(empty_database_url, embedder.id, embedder.dimension)
    database = Database(empty_database_url)
    memory = Memory(database, embedder, load_settings({}, state_dir=tmp_path))
    ids = memory.add([NewNode(t, embedding=v) for t, v in zip(loaded.passages, passages, strict=True)]).ids
    numbers: dict[int, list[int]] = {}
    for number, id in enumerate(ids):
        numbers.setdefault(id, []).append(number)

    rows = {name: measured(search, loaded, numbers) for name, search in _by_postgres(memory, loaded, asked).items()}
    replica = Replica.open(memory.database, tmp_path / "replica", ReplicaOptions(poll_s=0, max_staleness_s=3600))
    memory.use_replica(replica)
    rows |= {name: measured(search, loaded, numbers) for name, search in _by_replica(memory, loaded, asked).items()}
    assert memory.reading.fallbacks == {}
    replica.close()
    database.close()
    keep(cache / "benchmarks" / "retrieval.json", loaded, rows)


# What words.py leaves out of a text, taken away one by one: BM25 alone, no database.
VARIANTS = {
    "as it is": {},
    "every word counts": {"STOP_WORDS": frozenset()},
    "plurals stay": {"_singular": lambda word: word},
    "neither": {"STOP_WORDS": frozenset(), "_singular": lambda word: word},
}


def test_tokens(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {i: [i] for i in range(len(loaded.passages))}
    rows = {}
    for place, (name, changed) in enumerate(VARIANTS.items()):
        with monkeypatch.context() as patch:
            for attribute, value in changed.items():
                patch.setattr(words, attribute, value)
            WordIndex.build(loaded.passages, tmp_path / str(place))
            index = WordIndex.open(tmp_path / str(place))
            rows[f"BM25, {name}"] = measured(_ranking(index, loaded), loaded, numbers)
    keep(
        load_settings().cache_dir / "benchmarks" / "retrieval.json", replace(loaded, name=f"words: {loaded.name}"), rows
    )


def _ranking(index: WordIndex, loaded: Loaded) -> Callable[[int], list[Hit]]:
    def search(i: int) -> list[Hit]:
        scores = index.scores(loaded.questions[i])
        best = [int(number) for number in np.argsort(-scores, kind="stable")[: loaded.k] if scores[number] > 0]
        return [Hit(_node(number), float(scores[number]), _NO_VECTOR) for number in best]

    return search


def _node(id: int) -> Node:
    return Node(id, "", "Document", "", "system", "", "", "", (), {}, 1.0, 1)


def _by_postgres(memory: Memory, loaded: Loaded, asked: Vector) -> dict[str, Callable[[int], list[Hit]]]:
    texts, k = loaded.questions, loaded.k
    return {
        "meaning (pgvector)": lambda i: memory.search(asked[i], k),
        "meaning, exact": lambda i: memory.search(asked[i], k, exact=True),
        "words: Postgres full text": lambda i: memory.search_words(texts[i], k),
        "both, with Postgres full text": lambda i: memory.hybrid(texts[i], k, vector=asked[i]),
    }


def _by_replica(memory: Memory, loaded: Loaded, asked: Vector) -> dict[str, Callable[[int], list[Hit]]]:
    texts, k = loaded.questions, loaded.k
    return {
        "meaning (replica)": lambda i: memory.search(asked[i], k),
        "words: BM25 of the replica": lambda i: memory.search_words(texts[i], k),
        "both, with BM25": lambda i: memory.hybrid(texts[i], k, vector=asked[i]),
        "both, with BM25, the paper's constant": lambda i: _fused_as_in_the_paper(memory, texts[i], asked[i], k),
    }


def _fused_as_in_the_paper(memory: Memory, text: str, vector: Vector, k: int) -> list[Hit]:
    near, common = memory.search(vector, hybrid.DEPTH), memory.search_words(text, hybrid.DEPTH)
    ranked = [Found(np.array([h.node.id for h in hits]), np.ones(len(hits), np.float32)) for hits in (near, common)]
    by_id = {hit.node.id: hit for hit in (*near, *common)}
    return [by_id[id] for id in hybrid.fused(ranked, k, constant=60).ids.tolist()]


def keep(path: Path, loaded: Loaded, rows: Mapping[str, Quality]) -> None:
    """Put the figures of one set beside those of the others, and write the page anew; a set may be run alone."""
    known = json.loads(path.read_text()) if path.exists() else {}
    about = f"{len(loaded.passages):,} passages, {len(loaded.questions):,} questions, cut at {loaded.k}"
    when = f"{about}; {date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    known[loaded.name] = {"about": when, "rows": {name: asdict(quality) for name, quality in rows.items()}}
    path.write_text(json.dumps(known))
    text = TABLE.read_text() if TABLE.exists() else f"# Retrieval\n\n{_MARK}\n"
    TABLE.write_text(text[: text.index(_MARK)] + "\n".join([_MARK, "", f"    {COMMAND}", "", *_tables(known)]))


def _tables(known: Mapping[str, Any]) -> Iterator[str]:
    for name, each in known.items():
        yield f"## {name}\n\n{each['about']}\n\n| search | recall | nDCG | all gold found | ms |\n|---|---|---|---|---|"
        for search, q in each["rows"].items():
            yield f"| {search} | {q['recall']:.3f} | {q['ndcg']:.3f} | {q['whole']:.3f} | {q['ms']:.1f} |"
        yield ""
