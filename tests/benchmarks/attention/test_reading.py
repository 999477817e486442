"""What the context is worth to the models that read it: docs/attention.md's answers, spans, orders and hierarchies.

    python -m pytest -m benchmark tests/benchmarks/attention/test_reading.py --data FOLDER --keep FOLDER
    python -m tests.benchmarks.attention.page FOLDER/results docs/attention.md

Answers are kept in FOLDER/replies, rankings in FOLDER/rankings, so a killed run goes on where it was. `--queries`
bounds the questions of each test (200 for spans, 250 a set for contexts, 400 a set for training);
`--contenders last,ends` takes of the further contexts those whose names hold one of these words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ruvllm.attention.context import Assembly, Candidate, Context, assemble
from ruvllm.attention.shape import Shape
from ruvllm.evaluation.qa import exact_match, f1
from ruvllm.evaluation.retrieval import difference, interval, ndcg_at, recall_at
from ruvllm.inference.types import Sampling
from ruvllm.learning.attention import AttentionConfig
from tests.benchmarks.attention import contest
from tests.benchmarks.attention.asked import Answerable, corpus, newwiki
from tests.benchmarks.attention.contest import Rankings
from tests.benchmarks.attention.replies import Replies, Reply
from tests.benchmarks.attention.sets import Setting
from tests.benchmarks.memory.report import Report

pytestmark = pytest.mark.benchmark

SPANS, CONTEXTS, TRAINED_ON = 200, 250, 400  # questions: in all, of each set, of each set
BIN = 256
FREE = Sampling(max_tokens=48)
COPIED = replace(FREE, copying=True)
CANDIDATES = 32


@dataclass(frozen=True)
class Way:
    """A context: whose order, and how it is put together."""

    name: str
    attended: bool
    how: Assembly


TOP_K = Way("top-k of the hybrid search", False, Assembly(same=1.0))
ATTENDED = Way("attention, best first", True, Assembly())
LAST = "attention, best last"
WAYS = (
    TOP_K,
    ATTENDED,
    Way("top-k of the hybrid search, best last", False, Assembly(order="best-last", same=1.0)),
    Way(LAST, True, Assembly(order="best-last")),
    Way("attention, both ends", True, Assembly(order="both-ends")),
    Way(f"{LAST}, 2 sentences of each passage", True, Assembly(order="best-last", sentences=2)),
    Way(f"{LAST}, 4 sentences of each passage", True, Assembly(order="best-last", sentences=4)),
)


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest, keep: Path) -> list[Answerable]:
    torch.set_num_threads(1)
    data, most = request.config.getoption("--data"), request.config.getoption("--queries")
    if data is None:
        pytest.skip("give the folder of the public sets with --data")
    count = min(TRAINED_ON, most)
    return [newwiki(Path(data), count, keep), corpus(count, keep)]


@pytest.mark.parametrize("style", ["few-shot", "chat"])
def test_spans(style: str, request: pytest.FixtureRequest, keep: Path, report: Report) -> None:
    """Free answers and copied ones, the gold passage given."""
    data = request.config.getoption("--data")
    if data is None:
        pytest.skip("give the folder of the public sets with --data")
    each = newwiki(Path(data), min(SPANS, request.config.getoption("--queries")), keep)
    with Replies(style, keep) as model:
        made = {name: _spans(model, each, how) for name, how in (("free", FREE), ("copied", COPIED))}
        title = model.tier.title
    rows = [(name, len(got), *_quality(got, each.answers), *_cost(got)) for name, got in made.items()]
    columns = ("answers", "N", "EM [95 %]", "F1 [95 %]", "tokens an answer", "decode ms a token", "CPU s an answer")
    gain = difference(_f1s(made["copied"], each.answers), _f1s(made["free"], each.answers))
    report.table(
        f"{title}: free answers and copied ones", columns, rows,
        f"The gold passage of {each.name} given; one thread. Copied over free, F1: {gain}; decode time a token:"
        f" {_ratio(made)} times; whole answers are words of their passage by making.",
    )  # fmt: skip
    report.target(f"copied answers over free ones, F1, {title}", "over 0", str(gain), gain.low > 0)


def _spans(model: Replies, each: Answerable, how: Sampling) -> list[Reply]:
    pairs = zip(each.setting.questions, each.setting.gold, strict=True)
    return [model.ask(question, [each.setting.texts[place] for place in gold], how) for question, gold in pairs]


def _ratio(made: Mapping[str, Sequence[Reply]]) -> str:
    """Of medians, because other work may take the core at any time."""
    free, copied = (np.median([r.decode_s / r.tokens for r in made[name] if r.tokens]) for name in ("free", "copied"))
    return f"{copied / free:.2f}"


def _cost(replies: Sequence[Reply]) -> tuple[float, float, float]:
    tokens = np.mean([reply.tokens for reply in replies])
    a_token = np.median([reply.decode_s / reply.tokens * 1000 for reply in replies if reply.tokens])
    return float(tokens), float(a_token), float(np.median([reply.cpu_s for reply in replies]))


def _f1s(replies: Sequence[Reply], answers: Sequence[Sequence[str]]) -> list[float]:
    return [f1(reply.text, golds) for reply, golds in zip(replies, answers, strict=True)]


def _quality(replies: Sequence[Reply], answers: Sequence[Sequence[str]]) -> tuple[str, str]:
    exact = [exact_match(reply.text, golds) for reply, golds in zip(replies, answers, strict=True)]
    return str(interval(exact)), str(interval(_f1s(replies, answers)))


@pytest.fixture(scope="module")
def orders(asked: list[Answerable], config: AttentionConfig, keep: Path) -> dict[bool, Rankings]:
    """Hybrid's rankings (False) and attention's (True), of models that never saw the question."""
    settings = [each.setting for each in asked]
    plain = {each.name: contest.hybrid(each) for each in settings}
    name = f"contexts-{config.epochs}-{len(settings[0].questions)}-{len(settings[1].questions)}"
    return {False: plain, True: kept_rankings(keep, name, lambda: _attended(settings, config))}


def _attended(settings: Sequence[Setting], config: AttentionConfig) -> Rankings:
    graphs = {each.name: each.graphs() for each in settings}
    return contest.trained(settings, graphs, Shape(settings[0].vectors.shape[1]), config)[0]


def kept_rankings(keep: Path, name: str, make: Callable[[], Rankings]) -> Rankings:
    """From the folder, or made and put there; the name says of what they are."""
    path = keep / "rankings" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        made = {set_: [ranking[:CANDIDATES] for ranking in rankings] for set_, rankings in make().items()}
        partial.write_text(json.dumps(made), encoding="utf-8")
        partial.rename(path)
    kept: Rankings = json.loads(path.read_text(encoding="utf-8"))
    return kept


@pytest.fixture
def ways(request: pytest.FixtureRequest) -> tuple[Way, ...]:
    """The first two always; of the others those that --contenders names a part of, or all."""
    named = request.config.getoption("--contenders")
    parts = named.split(",") if named else [""]
    return (*WAYS[:2], *(way for way in WAYS[2:] if any(part in way.name for part in parts)))


@pytest.mark.parametrize("style", ["few-shot", "chat"])
def test_contexts(
    style: str, asked: list[Answerable], orders: dict[bool, Rankings], ways: tuple[Way, ...], keep: Path, report: Report
) -> None:
    """One model, one bin of tokens: F1 of its answers by how the context was built, question by question."""
    with Replies(style, keep) as model:
        found = {way.name: [_answered(model, each, orders[way.attended], way) for each in asked] for way in ways}
        title = model.tier.title
    base = [row.f1 for rows in found[TOP_K.name] for row in rows]
    table, ours = [], found[ATTENDED.name]
    for name, sets in found.items():
        every = [row for rows in sets for row in rows]
        over = "" if name == TOP_K.name else str(difference([row.f1 for row in every], base))
        table.append((name, "both", *_figures(every), over))
        table += [(name, each.name, *_figures(rows), "") for each, rows in zip(asked, sets, strict=True)]
    columns = ("context", "questions", "N", "EM [95 %]", "F1 [95 %]", "all gold shown", "tokens", "F1 over top-k")
    report.table(f"{title}, {BIN} tokens of context", columns, table)
    gain = difference([row.f1 for rows in ours for row in rows], base)
    report.target("F1 of attention-built over top-k context, both best first", "over 0", str(gain), gain.low > 0)
    if {LAST, f"{TOP_K.name}, best last"} <= set(found):
        same = [[r.f1 for rows in found[name] for r in rows] for name in (LAST, f"{TOP_K.name}, best last")]
        gain = difference(*same)
        report.target("F1 of attention-built over top-k context, both best last", "over 0", str(gain), gain.low > 0)
    for way in ways[2:]:
        than = LAST if way.how.sentences and LAST in found else ATTENDED.name
        more = difference(*([r.f1 for rows in found[name] for r in rows] for name in (way.name, than)))
        report.target(f"F1 of {way.name!r} over {than!r}", "over 0", str(more), more.low > 0)


@dataclass(frozen=True)
class Row:
    """Of one question."""

    exact: float
    f1: float
    whole: bool
    tokens: int


def _answered(model: Replies, each: Answerable, rankings: Rankings, way: Way) -> list[Row]:
    rows = []
    for i in _places(len(each.answers)):
        question = each.setting.questions[i]
        context = _context(model, each, rankings[each.name][i], question, way.how)
        text = model.ask(question, context.passages, FREE).text
        golds, whole = each.answers[i], set(each.setting.gold[i]) <= set(context.ids)
        rows.append(Row(exact_match(text, golds), f1(text, golds), whole, context.tokens))
    return rows


def _places(count: int) -> list[int]:
    """The same ones in every run, of all kinds."""
    return sorted(np.random.default_rng(1).permutation(count)[:CONTEXTS].tolist())


def _context(model: Replies, each: Answerable, ranking: Sequence[int], question: str, how: Assembly) -> Context:
    candidates = [Candidate(place, each.setting.texts[place]) for place in ranking[:CANDIDATES]]
    return assemble(candidates, question, model.count_tokens, BIN, how)


def _figures(rows: Sequence[Row]) -> tuple[int, str, str, float, float]:
    exact, f1s = interval([row.exact for row in rows]), interval([row.f1 for row in rows])
    shown, tokens = np.mean([row.whole for row in rows]), np.mean([row.tokens for row in rows])
    return len(rows), str(exact), str(f1s), float(shown), float(tokens)


def test_hierarchies(asked: list[Answerable], config: AttentionConfig, keep: Path, report: Report) -> None:
    """Hyperbolic scores beside Euclidean ones where concepts hold their passages by Contains edges."""
    settings, whole = [each.with_hierarchy() for each in asked], {}
    graphs = {each.name: each.graphs() for each in settings}
    for name, hyperbolic in (("Euclidean alone", False), ("with the ball", True)):
        shape = Shape(settings[0].vectors.shape[1], hyperbolic=hyperbolic)
        key = f"contains-{int(hyperbolic)}-{config.epochs}-{'-'.join(str(len(e.questions)) for e in settings)}"
        whole[name] = kept_rankings(keep, key, partial(_trained, settings, graphs, shape, config))
    rows = [
        (each.name, name, len(each.questions), *_found(rankings[each.name], each))
        for each in settings
        for name, rankings in whole.items()
    ]
    columns = ("memory", "scores", "N", "recall@5 [95 %]", "nDCG@10 [95 %]")
    report.table("Hierarchies: a concept of each article, country and module", columns, rows)
    gain = difference(*(_ndcgs(whole[name], settings) for name in ("with the ball", "Euclidean alone")))
    report.target("nDCG@10 with the ball over Euclidean scores alone", "over 0, else off", str(gain), gain.low > 0)


def _trained(
    settings: Sequence[Setting], graphs: dict[str, list], shape: Shape, config: AttentionConfig
) -> Rankings:  # fmt: skip
    return contest.trained(settings, graphs, shape, config)[0]


def _found(rankings: Sequence[Sequence[int]], each: Setting) -> tuple[str, str]:
    pairs = list(zip(rankings, each.gold, strict=True))
    return str(interval([recall_at(r, g, 5) for r, g in pairs])), str(interval([ndcg_at(r, g, 10) for r, g in pairs]))


def _ndcgs(rankings: Rankings, settings: Sequence[Setting]) -> list[float]:
    return [ndcg_at(r, g, 10) for each in settings for r, g in zip(rankings[each.name], each.gold, strict=True)]
