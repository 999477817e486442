"""Whether a judge may label, and what it labels with. Knows nothing of models' prompts or of who asks.

    gold there             quality is gold's, whatever any judge says
    no gold, accepted      quality is the judge's score through its newest calibration's curve
    no gold, else          no label; the reason says why, and is counted

Accepted is a judge version (model file and prompt) whose newest calibration in this tenant left chance out on every
data set it was made from. Another file, another prompt: another version, and nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ruvllm.database.pool import Database
from ruvllm.errors import LearningError
from ruvllm.evaluation.agreement import RESAMPLES
from ruvllm.inference.judge.assessment import Agreement, agreement, columns_of
from ruvllm.inference.judge.calibration import data_digest, fit
from ruvllm.inference.judge.judge import Judge
from ruvllm.inference.judge.records import Item, Judged, Verdict
from ruvllm.inference.judge.store import Calibration, JudgeStore, Named

GOLD_ONLY = "labels come from gold answers only"


@dataclass(frozen=True)
class LabelSource:
    """The decision for one judge; `reason` is a sentence for reports."""

    judge: str  # its version
    reason: str
    calibration: Calibration | None  # None: refused

    @property
    def accepted(self) -> bool:
        return self.calibration is not None

    def quality(self, verdict: Verdict) -> float | None:
        """In [0, 1]; None where the judge is refused or gave no score."""
        if self.calibration is None or verdict.score is None:
            return None
        return self.calibration.curve.quality(verdict.score)


def label_source(database: Database, judge: str) -> LabelSource:
    """Whether the judge of version `judge` may label for the database's tenant."""
    known = JudgeStore(database).newest(judge)
    if known is None:
        return LabelSource(judge, f'{GOLD_ONLY}: judge {judge} has no calibration; run "ruvllm judge calibrate"', None)
    named = f"judge {known.judge.tier} ({judge}), calibration {known.id}"
    if known.refusals:
        return LabelSource(judge, f"{GOLD_ONLY}: {named} is refused: {'; '.join(known.refusals)}", None)
    return LabelSource(judge, f"without gold, {named} labels", known)


def calibrate(named: Named, sets: Mapping[str, Sequence[Judged]], resamples: int = RESAMPLES) -> Calibration:
    """Hold a judge against gold on every data set, and fit one curve to all of them. Nothing is stored.

    Raises:
        LearningError: no data set, or one with too few items that have gold and a score.
    """
    if not sets:
        raise LearningError("judge calibration: got no data set, want at least one with gold")
    found = [agreement(name, judged, resamples) for name, judged in sets.items()]
    every = [each for judged in sets.values() for each in judged if each.item.gold is not None]
    columns = columns_of([each for each in every if each.verdict.score is not None])
    return Calibration(
        judge=named,
        data_digest=data_digest(every),
        n=len(columns.score),
        curve=fit(columns.score, columns.gold),
        agreement=tuple(each.as_dict() for each in found),
        refusals=tuple(_refusals(found)),
    )


def _refusals(found: Sequence[Agreement]) -> list[str]:
    return [why for each in found for why in each.refusals]


@dataclass(frozen=True)
class Label:
    """How right an answer is, in [0, 1]; `calibration` is the judge's whose word it is, None: gold's."""

    quality: float
    calibration: int | None


def label_answers(
    source: LabelSource, judge: Judge, question: str, answers: Sequence[str], passages: Sequence[str]
) -> list[Label] | None:
    """A label per answer to a question without gold; None where the judge is refused or cannot score one of them.

    The judge sees the same passages beside every answer, so that their scores compare. Nothing said is worth nothing.
    """
    if source.calibration is None:
        return None
    said = list(dict.fromkeys(answer for answer in answers if answer.strip()))
    verdicts = judge.score([Item(question, answer, tuple(passages)) for answer in said])
    worth = {"": 0.0} | {a: source.quality(v) for a, v in zip(said, verdicts, strict=True)}
    qualities = [worth[answer if answer.strip() else ""] for answer in answers]
    return [Label(q, source.calibration.id) for q in qualities if q is not None] if None not in qualities else None


def labels_said(source: LabelSource, judged: Sequence[Judged]) -> str:
    """A sentence for the report of a labelling: how many got a label from whom, and how many none."""
    gold = sum(each.item.gold is not None for each in judged)
    rest = [each for each in judged if each.item.gold is None]
    by_judge = sum(source.quality(each.verdict) is not None for each in rest)
    return f"{gold} labels from gold, {by_judge} from a judge, {len(rest) - by_judge} skipped; {source.reason}"
