"""How useful each retrieved node proved, from whatever is known of an answer. Knows nothing of networks or databases.

In falling order of what they are worth: gold passages; what leaving a node out of the context cost (quality with it
minus quality without); what the answer cites; the share of the answer's words that a node holds. The last two count
only as far as the answer was good, and feedback outranks the judge. Nothing known is no lesson, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ruvllm.errors import LearningError
from ruvllm.memory.retrieval.words import tokens

GOOD = 0.75  # quality in [0, 1] from which on an answer says what was useful
_OVERLAP = 0.5  # share of the answer's words that a node must hold to have been its origin
_COST = 0.05  # of quality, below which leaving a node out cost nothing that is not noise


@dataclass(frozen=True)
class Evidence:
    """One answered question. Qualities in [0, 1]; `shown` are the nodes in its context with their texts."""

    answer: str
    shown: Mapping[int, str]
    quality: float | None = None  # the judge's
    feedback: float | None = None  # the user's
    gold: Sequence[int] = ()
    cited: Sequence[int] = ()
    without: Mapping[int, float] = field(default_factory=dict)  # quality with this node left out


def usefulness(evidence: Evidence) -> dict[int, float]:
    """Usefulness in (0, 1] by node; empty where nothing is to be learnt.

    Raises:
        LearningError: a quality is out of range.
    """
    _check(evidence)
    if evidence.gold:
        return dict.fromkeys(evidence.gold, 1.0)
    quality = evidence.quality if evidence.feedback is None else evidence.feedback
    if quality is None or quality < GOOD:
        return {}
    if needed := _by_leaving_out(quality, evidence.without):
        return needed
    shown = {id: text for id, text in evidence.shown.items() if id not in evidence.without}  # the others: not needed
    cited = [id for id in evidence.cited if id in shown]
    return dict.fromkeys(cited, quality) if cited else _by_overlap(evidence.answer, shown, quality)


def _by_leaving_out(quality: float, without: Mapping[int, float]) -> dict[int, float]:
    costs = {id: quality - other for id, other in without.items()}
    return {id: min(1.0, cost) for id, cost in costs.items() if cost > _COST}


def _by_overlap(answer: str, shown: Mapping[int, str], quality: float) -> dict[int, float]:
    words = set(tokens(answer))
    if not words:
        return {}
    shares = {id: len(words & set(tokens(text))) / len(words) for id, text in shown.items()}
    return {id: quality * share for id, share in shares.items() if share >= _OVERLAP}


def _check(evidence: Evidence) -> None:
    qualities = [evidence.quality, evidence.feedback, *evidence.without.values()]
    for quality in qualities:
        if quality is not None and not 0.0 <= quality <= 1.0:  # NaN is out too
            raise LearningError(f"evidence: quality is {quality}, want a number from 0 to 1")
