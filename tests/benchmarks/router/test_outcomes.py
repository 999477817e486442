"""Utility, APGR and CPT on every public outcome set beside what a router has to beat.

    python -m pytest -m benchmark tests/benchmarks/router --data FOLDER --keep FOLDER --rounds 5

`--rounds` is the number of seeds, `--contenders` names sets. Vectors and predictions are kept in the folder of --keep:
a run that was killed is begun again and goes on where it was. It says after each prediction what the set still takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.evaluation.calibration import calibrated_error, calibration_error
from ruvllm.evaluation.frontier import SHARES, cost_at, fixed_mixture, mixture_at, path
from ruvllm.evaluation.regret import make_bootstrap
from ruvllm.learning.outcomes.features import EmbeddingCache
from ruvllm.learning.outcomes.predictors import Learner
from ruvllm.learning.outcomes.records import NO_SPLIT, OutcomeSet
from ruvllm.learning.outcomes.splits import groups_of, splits_of
from tests.benchmarks.memory.report import Report, conditions
from tests.benchmarks.router.contest import (
    OURS,
    RESAMPLES,
    VIEWS,
    Arena,
    Array,
    Measured,
    Wide,
    contenders,
    measure,
    seeds_of,
)
from tests.benchmarks.router.kept import Kept, Pace
from tests.benchmarks.router.page import CURVES
from tests.benchmarks.router.sets import SETS, load

pytestmark = pytest.mark.benchmark

BUDGETS = ((2.3e-4, 0.885), (6.5e-4, 0.925))  # USD a query, reward to reach on paretobandit_k3
_COLUMNS = (
    "looks at", "contender", "seeds", "APGR over cost [95 %]", "sd over seeds", "gain over hull [95 %], mean of 9",
    "deciles above hull", "utility", "utility regret [95 %]", "quality regret of 4 [95 %]", "cost saved",
)  # fmt: skip


@pytest.mark.parametrize("name", list(SETS))
def test_set(
    name: str,
    data: Path,
    keep: Path,
    cache: EmbeddingCache,
    seeds: int,
    out: Path,
    command: str,
    request: pytest.FixtureRequest,
) -> None:
    chosen = request.config.getoption("--contenders")
    if chosen and name not in chosen.split(","):
        pytest.skip("not among --contenders")
    outcomes = load(data, name)
    embedding = cache.embed(outcomes.queries)
    report = Report(name, out)
    report.conditions = conditions(n=len(outcomes), seeds=seeds, command=command, notes="; ".join(outcomes.notes))
    _base_rates(report, outcomes)
    wanted = [(v, c.name) for v in ("none", *VIEWS) for c in contenders(v) for _ in seeds_of(outcomes, c, seeds)]
    pace = Pace(name, wanted, aloud(request.config))
    arena = Arena(outcomes, embedding, cache.adapter.id, Kept(keep / "predictions"), pace)
    found = [measure(arena, learner, view, seeds) for view in ("none", *VIEWS) for learner in contenders(view)]
    _contest(report, outcomes, found)
    if len(outcomes.tiers) == 2:
        _calls(report, found)
    if name == "paretobandit_k3":
        _budgets(report, arena)
    _calibration(report, arena, seeds)
    _targets(report, outcomes, found)
    assert (out / f"{name}.json").is_file()


def aloud(config: pytest.Config) -> Callable[[str], None]:
    """Prints a line at once, past pytest's capturing."""
    capture = config.pluginmanager.getplugin("capturemanager")

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():  # type: ignore[union-attr]  # it is a part of pytest
            print(line, flush=True)

    return tell


def unseen(outcomes: OutcomeSet) -> OutcomeSet:
    return outcomes.rows(np.sort(np.concatenate([split.test for split in splits_of(outcomes, 0)])))


def _base_rates(report: Report, outcomes: OutcomeSet) -> None:
    rows = unseen(outcomes)
    oracle = rows.score.max(axis=1).mean()
    lines = [(t, rows.score[:, j].mean(), rows.cost[:, j].mean()) for j, t in enumerate(rows.tiers)]
    best = np.bincount(rows.score.argmax(axis=1), minlength=len(rows.tiers)) / len(rows)
    report.table(
        "Base rates",
        ("tier", "mean score", f"mean cost, {outcomes.cost_unit}", "best (of equals the cheapest)"),
        [(*line, float(share)) for line, share in zip(lines, best, strict=True)],
        f"{len(rows)} queries tested of {len(outcomes)}; the best tier of every query would score {oracle:.4f}.",
    )


def _contest(report: Report, outcomes: OutcomeSet, found: list[Measured]) -> None:
    rows = [
        (
            m.view if m.view != "none" else "-", m.learner, m.seeds, _interval(m.apgr), m.apgr_spread,
            _interval(_pooled(outcomes, m)), f"{sum(g.low > 0 for g in m.gains)} of {len(SHARES)}", m.utility,
            _interval(m.utility_regret), _interval(m.quality_regret), f"{m.saved:.0%}",
        )
        for m in found
    ]  # fmt: skip
    report.table(
        "Contenders",
        _COLUMNS,
        rows,
        "The hull of fixed mixtures is set on the tested rows themselves. Utility, regrets and cost saved are at the"
        " lambda at which the cost range is worth the gap of quality; regret of quality and cost saved are against the"
        " dearest tier. All contenders have the same predicted prices.",
    )
    _curves(report, outcomes, found)
    report.table(
        "Gain over the hull by cost decile",
        ("looks at", "contender", *(f"{share:.0%}" for share in SHARES)),
        [(m.view, m.learner, *(f"{g.mean:+.4f} [{g.low:+.4f}, {g.high:+.4f}]" for g in m.gains)) for m in found],
    )


def _curves(report: Report, outcomes: OutcomeSet, found: list[Measured]) -> None:
    """What the figure is drawn from: the first row says the costs, the second the hull."""
    rows = unseen(outcomes)
    costs = [cost_at(rows.cost, share) for share in np.linspace(0, 1, 11)]
    hull = [float(fixed_mixture(rows.score, rows.cost, cost).quality.mean()) for cost in costs]
    report.table(
        CURVES,
        ("looks at", "contender", *(f"{share:.0%}" for share in np.linspace(0, 1, 11))),
        [
            ("", f"cost, {outcomes.cost_unit}", *costs),
            ("", "hull of fixed mixtures", *hull),
            *((m.view, m.learner, *m.quality.tolist()) for m in found),
        ],
    )


def _pooled(outcomes: OutcomeSet, m: Measured):  # type: ignore[no-untyped-def]
    rows = unseen(outcomes)
    return make_bootstrap(groups_of(rows.queries).astype(str), RESAMPLES, 0).interval(m.gain_rows)


def _calls(report: Report, found: list[Measured]) -> None:
    rows = [
        (
            m.view, m.learner, m.seeds, float(np.mean([c.apgr for c in m.calls])),
            float(np.std([c.apgr for c in m.calls])),
            *(float(np.mean([c.cpt(share) for c in m.calls])) for share in (0.2, 0.5, 0.8)),
        )
        for m in found
    ]  # fmt: skip
    columns = ("looks at", "contender", "seeds", "APGR", "sd over seeds", "CPT(20)", "CPT(50)", "CPT(80)")
    report.table("By share of strong calls (RouteLLM's protocol)", columns, rows)


def _budgets(report: Report, arena: Arena) -> None:
    """Lambda is set so that the mean cost of the training rows is the budget; then the test rows are decided.

    The training rows are decided by what networks that did not see them say: of rows that it saw a network is too sure.
    """
    outcomes, (ground,) = arena.outcomes, arena.grounds(0)
    split, seen, price = ground.split, ground.views, ground.price
    rows, reached = [], {}
    for view in VIEWS:
        for learner in contenders(view):
            quality = learner.fit(seen[view][split.train], outcomes.score[split.train], 0).predict(seen[view])
            quality[split.train] = _unseen_quality(learner, seen[view][split.train], outcomes.rows(split.train))
            for budget, wanted in BUDGETS:
                got = _at_budget(outcomes, quality, price, split.train, split.test, budget)
                fixed = fixed_mixture(outcomes.score[split.test], outcomes.cost[split.test], got[1])
                rows.append((view, learner.name, budget, *got, float(fixed.quality.mean()), wanted))
                reached[view, learner.name, budget] = got
    columns = ("looks at", "contender", "budget USD", "reward", "cost USD", "hull at that cost", "wanted")
    report.table(
        "At the budgets of the paper",
        columns,
        rows,
        "Seed 0; lambda from the training rows only, by out-of-fold predictions.",
    )
    for view in VIEWS:
        for budget, wanted in BUDGETS:
            reward, cost = reached[view, OURS.name, budget]
            report.target(
                f"ours on {view}: reward at ${budget:g} a query", f">= {wanted}", f"{reward:.4f} at ${cost:.3g}",
                bool(reward >= wanted and cost <= budget * 1.02),
            )  # fmt: skip


def _unseen_quality(learner: Learner, x: Array, rows: OutcomeSet) -> Wide:
    """(n, m): each row as a fit on the other folds sees it."""
    quality = np.zeros(rows.score.shape)
    unsplit = replace(rows, split=np.full(len(rows), NO_SPLIT))
    for fold in splits_of(unsplit, 0):
        quality[fold.test] = learner.fit(x[fold.train], rows.score[fold.train], 0).predict(x[fold.test])
    return quality


def _at_budget(outcomes: OutcomeSet, quality, price, train, test, budget: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Reward and cost where the training rows' mean cost, two standard errors added, is the budget.

    The mean alone would break it on every second set of queries: a few answers cost a hundred times the median.
    """
    learnt = path(quality[train], price[train], outcomes.score[train], outcomes.cost[train])
    spent = outcomes.cost[train][np.arange(len(train)), learnt.decisions]  # (lambdas, n)
    safe = np.maximum.accumulate(spent.mean(axis=1) + 2 * spent.std(axis=1) / np.sqrt(len(train)))
    place = int(np.flatnonzero(safe <= budget)[-1])
    applied = path(
        quality[test], price[test], outcomes.score[test], outcomes.cost[test], learnt.weights[place : place + 2]
    )
    low, high = safe[place], safe[min(place + 1, len(safe) - 1)]
    share = (budget - low) / (high - low) if high > low else 0.0
    at = (1 - share) * applied.cost[0] + share * applied.cost[-1]
    mixed = mixture_at(applied, outcomes.score[test], outcomes.cost[test], float(at))
    return float(mixed.quality.mean()), float(mixed.cost.mean())


def _calibration(report: Report, arena: Arena, seeds: int) -> None:
    """ECE of ours' expected qualities on the tested rows, as they come, beside what so few rows show by chance."""
    rows = []
    for view in VIEWS:
        for tier, name in enumerate(arena.outcomes.tiers):
            made = [arena.predict(OURS, view, seed) for seed in range(min(seeds, 2))]
            errors = [calibration_error(m.quality[:, tier], arena.outcomes.score[m.rows, tier]) for m in made]
            chance = [calibrated_error(m.quality[:, tier]) for m in made]
            rows.append((view, name, float(np.mean(errors)), float(np.mean(chance)), len(made[0].rows)))
    report.table(
        "Calibration of ours: expected quality against the score",
        ("looks at", "tier", "ECE, 10 bins", "were it exactly right, below (95 %)", "N"), rows,
        "Of tested rows. A logistic regression is calibrated by its loss; nothing was scaled afterwards. So few rows "
        "show an error where there is none: the last column but one is the 95th percentile of it.",
    )  # fmt: skip
    for view in VIEWS:
        _, name, worst, chance, n = max((row for row in rows if row[0] == view), key=lambda row: row[2])
        said = f"{worst:.4f} at worst ({name}, N = {n}; one that is exactly right: below {chance:.4f})"
        report.target(f"ours on {view}: ECE of every tier's quality", "<= 0.03", said, worst <= 0.03)


def _targets(report: Report, outcomes: OutcomeSet, found: list[Measured]) -> None:
    """For each view of ours: choosing the better one here would be choosing on tested rows."""
    rivals = [m for m in found if m.learner != OURS.name]
    rival = max(rivals, key=lambda m: float(m.gain_rows.mean()))
    rows = unseen(outcomes)
    bootstrap = make_bootstrap(groups_of(rows.queries).astype(str), RESAMPLES, 0)
    for mine in (m for m in found if m.learner == OURS.name):
        on = f"ours on {mine.view}: "
        least, above = min(g.low for g in mine.gains), sum(g.low > 0 for g in mine.gains)
        report.target(
            on + "above the hull with its interval at nine deciles", "9 of 9",
            f"{above} of 9, least lower bound {least:+.4f}", least > 0,
        )  # fmt: skip
        ahead = bootstrap.interval(mine.gain_rows - rival.gain_rows)
        report.target(
            on + "at least as good as the best baseline, within the interval", "upper bound >= 0",
            f"{_interval(ahead)} against {rival.learner} on {rival.view}", ahead.high >= 0,
        )  # fmt: skip
        if report.name == "routellm_gsm8k":
            apgr = float(np.mean([c.apgr for c in mine.calls]))
            report.target(on + "APGR by 5-fold", ">= 0.63", f"{apgr:.4f}", apgr >= 0.63)
        if report.name == "paretobandit_k4":
            report.target(
                on + "quality regret of 4 and cost saved", "< 0.1 and > 50 %",
                f"{mine.quality_regret.mean:.4f} and {mine.saved:.0%}",
                mine.quality_regret.mean < 0.1 and mine.saved > 0.5,
            )  # fmt: skip


def _interval(value) -> str:  # type: ignore[no-untyped-def]
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"
