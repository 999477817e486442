"""What a night knows of which nodes were useful, as lessons for attention. Trains nothing.

The oracle's questions with their gold passages: those of its training split teach, those held out judge. Where no gold
passage is known, the oracle's runs teach: a wider context that was right where a narrower one was not shows what was
needed. Stored answers teach too: by gold where their question has it, by what they cite or share with good answers else
(`attention_labels`). What an answer itself became in memory is taken out of its own neighbourhood: it was not there
when the question was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from ruvllm.attention.citations import cited
from ruvllm.attention.context import Context, Shown
from ruvllm.attention.gather import Reach, gather
from ruvllm.attention.graph import Subgraph
from ruvllm.attention.source import MemorySource, TermCache
from ruvllm.learning.attention import Lesson
from ruvllm.learning.attention_labels import Evidence, usefulness
from ruvllm.memory.records import Vector
from ruvllm.memory.retrieval.words import tokens
from ruvllm.memory.store import Memory
from ruvllm.progress import Progress, silent
from ruvllm.text import whole_question

MOST = 5000  # of the oracle's questions, and of stored answers as many; the latest
JUDGES = "left out, they judge"  # asked by somebody, and held out: of no use to learn from
PLAIN = 32  # places of the plain search that a ranking is compared with

_ORACLE = """
    SELECT key, question, history, split FROM learning.oracle_queries ORDER BY created_at DESC, key LIMIT %(most)s
"""
# The bins of a tier extend one another: a narrower run is the wider one with nodes left out.
_RUNS = """
    SELECT query, tier, model_sha256, prompt_version, answer, quality, used FROM learning.oracle_runs
    WHERE query = ANY(%(keys)s) AND cardinality(used) > 0
    ORDER BY query, tier, model_sha256, prompt_version, context_bin
"""
_ANSWERS = """
    SELECT request_id, question, history, answer, used, quality, ARRAY(
        SELECT o.node FROM serving.outbox o WHERE o.interaction = i.id AND o.node IS NOT NULL)
    FROM serving.interactions i
    WHERE quality IS NOT NULL AND decided_by <> 'cache' AND cardinality(used) > 0
    ORDER BY id DESC LIMIT %(most)s
"""
# A passage that was merged away lives on in the node that took it in.
_PASSAGES = """
    SELECT t.metadata->>'key', live.id FROM memory.node_texts t
    JOIN memory.nodes n ON n.id = t.node
    JOIN memory.nodes live ON live.id = coalesce(n.superseded_by, n.id)
    WHERE t.metadata->>'key' = ANY(%(keys)s) AND live.archived_at IS NULL
"""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A question that nothing is learnt from: its neighbourhood, its gold, and what a plain search finds, in order."""

    graph: Subgraph
    gold: tuple[int, ...]
    plain: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Lessons:
    """`counts` by where a lesson comes from; `unknown` are questions of which nothing is known."""

    train: tuple[Lesson, ...] = ()
    held: tuple[HeldOut, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A question of the past. `held`: it judges; `own`: nodes that came of it."""

    text: str
    origin: str
    useful: Mapping[int, float]
    held: bool = False
    own: tuple[int, ...] = ()


def read_lessons(
    memory: Memory,
    gold: Mapping[str, Sequence[str]],
    most: int = MOST,
    reach: Reach | None = None,
    progress: Progress = silent,
) -> Lessons:
    """Lessons of the latest questions; `gold` holds the keys of the passages that answer a question, by its key.

    Raises:
        DatabaseError: Postgres is out of reach.
    """
    asked = _apart([*_of_the_oracle(memory, gold, most), *_of_answers(memory, gold, most)])
    known = [each for each in asked if each.useful]
    vectors = memory.embedder.embed([each.text for each in known], "query")
    source, train, held = MemorySource(memory, terms=TermCache()), list[Lesson](), list[HeldOut]()
    for done, (each, vector) in enumerate(zip(known, vectors, strict=True), start=1):
        graph = gather(source, each.text, vector, reach).without(each.own)
        if each.held:
            held.append(HeldOut(graph, tuple(sorted(each.useful)), _plain(source, vector)))
        else:
            train.append(Lesson.of(graph, each.useful))
        progress(done, len(known), each.text)
    counts = Counter(each.origin if each.useful or each.origin == JUDGES else "unknown" for each in asked)
    return Lessons(tuple(train), tuple(held), dict(sorted(counts.items())))


def corpus_gold() -> dict[str, tuple[str, ...]]:
    """Of every question of the demonstration corpus.

    Raises:
        SettingsError: the Factbook's package is not installed.
    """
    from ruvllm.corpus.questions import questions

    return {question.key: question.gold_passages for question in questions()}


def _apart(asked: Sequence[_Asked]) -> list[_Asked]:
    """Nobody's question teaches what it judges: a user may ask one that is held out, in the same words."""
    judging = {_words(each) for each in asked if each.held and each.useful}
    return [
        replace(each, origin=JUDGES, useful={}) if _words(each) in judging and not each.held and each.useful else each
        for each in asked
    ]


def _words(asked: _Asked) -> tuple[str, ...]:
    return tuple(tokens(asked.text))


def _plain(source: MemorySource, vector: Vector) -> tuple[int, ...]:
    return tuple(source.nearest(vector, PLAIN).ids.tolist())


def _of_the_oracle(memory: Memory, gold: Mapping[str, Sequence[str]], most: int) -> Iterator[_Asked]:
    """Without a gold passage a question never judges: a held-out one has to say what is right by itself."""
    with memory.database.transaction() as connection:
        rows = connection.execute(_ORACLE, {"most": most}).fetchall()
    nodes = _nodes_of(memory, [passage for key, *_ in rows for passage in gold.get(key, ())])
    by_runs = _by_runs(memory, [key for key, *_, split in rows if split == "train" and not gold.get(key)])
    for key, question, history, split in rows:
        if key in by_runs:
            yield _Asked(whole_question(question, history), "oracle runs", by_runs[key])
            continue
        wanted = [nodes.get(passage) for passage in gold.get(key, ())]
        useful = dict.fromkeys([id for id in wanted if id is not None], 1.0) if None not in wanted else {}
        yield _Asked(whole_question(question, history), f"oracle {split}", useful, held=split == "test")


def _by_runs(memory: Memory, keys: Sequence[str]) -> dict[str, dict[int, float]]:
    """Usefulness by node, the largest over tiers, of the questions whose runs tell any."""
    with memory.database.transaction() as connection:
        rows = connection.execute(_RUNS, {"keys": list(keys)}).fetchall()
    texts = {node.id: node.text for node in memory.get(sorted({id for row in rows for id in row[6]}))}
    found: dict[str, dict[int, float]] = {}
    for (key, *_), runs in groupby(rows, key=lambda row: row[:4]):
        nested = [(str(answer), float(quality), tuple(used)) for *_, answer, quality, used in runs]
        for id, useful in usefulness(_evidence(nested, texts)).items():
            of = found.setdefault(str(key), {})
            of[id] = max(useful, of.get(id, 0.0))
    return found


def _evidence(nested: Sequence[tuple[str, float, tuple[int, ...]]], texts: Mapping[int, str]) -> Evidence:
    """Of one tier's runs (answer, quality, nodes), the narrowest context first: the best, and what it was without."""
    answer, quality, used = max(nested, key=lambda run: run[1])  # of equals the narrowest
    without: dict[int, float] = {}
    for _, other, fewer in nested:
        for id in set(used) - set(fewer):
            without[id] = max(other, without.get(id, 0.0))
    shown = {id: texts[id] for id in used if id in texts}
    return Evidence(answer, shown, quality, cited=cited(answer, _context(used, shown)).ids, without=without)


def _of_answers(memory: Memory, gold: Mapping[str, Sequence[str]], most: int) -> Iterator[_Asked]:
    with memory.database.transaction() as connection:
        rows = connection.execute(_ANSWERS, {"most": most}).fetchall()
    keys = {row[0]: gold.get(str(row[0]).partition(":")[2], ()) for row in rows}  # a night asks as "cycle:key"
    nodes = _nodes_of(memory, [passage for passages in keys.values() for passage in passages])
    texts = {node.id: node.text for node in memory.get(sorted({id for row in rows for id in row[4]}))}
    for request_id, question, history, answer, used, quality, own in rows:
        known = [nodes[passage] for passage in keys[request_id] if passage in nodes]
        shown = {id: texts[id] for id in used if id in texts}
        evidence = Evidence(answer, shown, float(quality), gold=known, cited=cited(answer, _context(used, shown)).ids)
        yield _Asked(whole_question(question, history), "answers", usefulness(evidence), own=tuple(own))


def _context(used: Sequence[int], shown: Mapping[int, str]) -> Context:
    """Sources are numbered from 1 in the order in which they were shown."""
    return Context(tuple(Shown(n, id, shown.get(id, ""), "", "system") for n, id in enumerate(used, start=1)))


def _nodes_of(memory: Memory, keys: Sequence[str]) -> dict[str, int]:
    """Live nodes by their passage's key."""
    with memory.database.transaction() as connection:
        rows = connection.execute(_PASSAGES, {"keys": sorted(set(keys))}).fetchall()
    return {str(key): int(id) for key, id in rows}
