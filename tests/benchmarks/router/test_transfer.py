"""Weak or strong on GSM8K without any GSM8K label: what transfers from the outcomes of other models on other questions.

    python -m pytest -m benchmark tests/benchmarks/router/test_transfer.py --data FOLDER --keep FOLDER --rounds 5

The other sets become pairs: their cheapest tier and their best. `other questions` leaves out every row whose domain is
grade-school arithmetic; `other models` keeps those, of other models, and leaves out only the tested questions
themselves. The contenders then decide between RouteLLM's Mixtral and GPT-4, of which they have seen no answer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.evaluation.routing import CallCurve, call_curve
from ruvllm.learning.outcomes.baselines import Means
from ruvllm.learning.outcomes.features import EmbeddingCache, features_of
from ruvllm.learning.outcomes.neighbours import neighbour_scores, with_neighbours
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import groups_of, without_queries_of
from ruvllm.router.transforms import fit_transforms
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import OURS, VIEWS, Array, Wide, contenders
from tests.benchmarks.router.sets import load

pytestmark = pytest.mark.benchmark

TARGET = "routellm_gsm8k"
SOURCES = ("paretobandit_k4", "llmrouter_mix")  # k3 has the questions and two of the tiers of k4
ARITHMETIC = ("gsm8k", "agentverse-mgsm")  # domains of the target's kind
RESAMPLES = 1000
PUBLISHED = 0.622  # RouteLLM's best, with data that was augmented by a judge


def test_transfer(data: Path, cache: EmbeddingCache, out: Path, command: str, seeds: int) -> None:
    target = load(data, TARGET)
    sources = [_pairs(load(data, name), target) for name in SOURCES]
    report = Report("transfer", out)
    report.conditions = conditions(n=len(target), seeds=seeds, command=command)
    rows = []
    for label, ignored in (("other questions", ARITHMETIC), ("other models", ())):
        taken = [source.rows(np.flatnonzero(~np.isin(source.domain, ignored))) for source in sources]
        rows += [(label, *row) for row in _contest(taken, target, cache, seeds)]
    report.table(
        "GSM8K without its labels",
        (
            "trained on",
            "rows",
            "looks at",
            "contender",
            "APGR [95 %]",
            "sd over seeds",
            "CPT(20)",
            "CPT(50)",
            "CPT(80)",
        ),
        rows,
        f"Between {' and '.join(target.tiers)}, by share of strong calls. Trained on the cheapest and the best tier of "
        f"{' and '.join(SOURCES)}, queries that say what a tested one says left out; `other questions`: without the "
        f"domains {' and '.join(ARITHMETIC)} too. The interval is of a bootstrap over the tested questions, of the "
        f"first seed. RouteLLM's best published with GSM8K unseen: {PUBLISHED}.",
    )
    best = max((row for row in rows if row[3] == OURS.name), key=lambda row: float(str(row[4]).split()[0]))
    report.target(
        "ours, transferred to GSM8K (the better of its views and trainings)",
        f">= {PUBLISHED}, the best published",
        f"{best[4]} on {best[2]}, trained on {best[0]}",
        float(str(best[4]).split()[0]) >= PUBLISHED,
    )
    assert (out / "transfer.json").is_file()


def _pairs(source: OutcomeSet, target: OutcomeSet) -> OutcomeSet:
    """Its cheapest tier and its best as a weak and a strong one."""
    kept = without_queries_of(source, target.queries)
    best = int(kept.score.mean(axis=0).argmax())
    return replace(kept, tiers=("weak", "strong"), score=kept.score[:, [0, best]], cost=kept.cost[:, [0, best]])


def _contest(
    sources: list[OutcomeSet], target: OutcomeSet, cache: EmbeddingCache, seeds: int
) -> list[tuple[object, ...]]:
    score = np.concatenate([source.score for source in sources])
    views = _views([query for source in sources for query in source.queries], score, target, cache)
    rows: list[tuple[object, ...]] = []
    for view in ("none", *VIEWS):
        seen, unseen = views[view]
        for learner in contenders(view):
            if learner.name != Means.name:  # it says the same of every question
                made = [learner.fit(seen, score, seed).predict(unseen) for seed in range(seeds)]
                rows.append((len(score), view, learner.name, *_said(made, target)))
    return rows


def _called(quality: Wide, target: OutcomeSet, rows: NDArray[np.int64] | slice = slice(None)) -> CallCurve:
    return call_curve((quality[:, 1] - quality[:, 0])[rows], target.score[rows, 1], target.score[rows, 0])


def _said(made: list[Wide], target: OutcomeSet) -> tuple[object, ...]:
    curves, rng = [_called(quality, target) for quality in made], np.random.default_rng(0)
    drawn = [_called(made[0], target, rng.integers(len(target), size=len(target))).apgr for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    apgrs = [curve.apgr for curve in curves]
    shares = (float(np.mean([curve.cpt(share) for curve in curves])) for share in (0.2, 0.5, 0.8))
    return (f"{np.mean(apgrs):.4f} [{low:.4f}, {high:.4f}]", float(np.std(apgrs)), *shares)


def _views(
    queries: list[str], score: Wide, target: OutcomeSet, cache: EmbeddingCache
) -> dict[str, tuple[Array, Array]]:
    """By name, of the rows trained on and of the tested ones; whatever is fitted is fitted on the former."""
    everything = [*queries, *target.queries]
    embedding, train = cache.embed(everything), np.arange(len(queries))
    known = np.concatenate([score, np.full((len(target), 2), np.nan)])
    near = neighbour_scores(embedding, known, groups_of(everything), train)
    transforms = fit_transforms(embedding[train], 0)
    length = np.log1p([[len(query) / 4] for query in everything]).astype(np.float32)
    views = {
        "none": length,
        "features": with_neighbours(features_of(everything, embedding, transforms, cache.adapter.id), near),
        "embedding": embedding,
    }
    return {name: (x[: len(queries)], x[len(queries) :]) for name, x in views.items()}
