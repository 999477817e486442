"""Whether a trained attention model may be used: only where it beats the order it starts from. Knows nothing of MLflow.

Judged on held-out questions, question by question. Where attention is meant to help, the whole 95 % interval of the
difference to the best baseline must lie over `least_gain`; elsewhere it must not lose more than `most_loss` at its
lower end. Too few questions is inconclusive, and inconclusive refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ruvllm.errors import GateError
from ruvllm.evaluation.retrieval import Interval, difference, interval


@dataclass(frozen=True)
class AttentionPolicy:
    """Thresholds of the gate, as data."""

    least_questions: int = 50
    least_gain: float = 0.0  # lower end of the difference where help is expected
    most_loss: float = 0.02  # of the mean, and at twice that of the lower end, where none is


@dataclass(frozen=True)
class Held:
    """One set of held-out questions: a figure of each, by attention and by each baseline. Larger is better."""

    name: str
    attention: Sequence[float]
    baselines: Mapping[str, Sequence[float]]
    gain_expected: bool = True


@dataclass(frozen=True)
class Judged:
    """One row of the gate's table."""

    name: str
    attention: Interval
    baseline: str  # the best one
    gain: Interval  # attention minus it
    passed: bool
    reason: str  # empty where it passed


@dataclass(frozen=True)
class Verdict:
    rows: tuple[Judged, ...]

    @property
    def passed(self) -> bool:
        """All rows passed, and help was shown somewhere."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def table(self) -> str:
        """Markdown."""
        lines = ["| questions | N | attention | best baseline | gain [95 %] | verdict |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.gain.n} | {row.attention} | {row.baseline} | {row.gain} | {row.reason or 'passed'} |"
            for row in self.rows
        ]
        return "\n".join(lines) + "\n"


def judge(sets: Sequence[Held], policy: AttentionPolicy | None = None) -> Verdict:
    """The verdict on held-out figures.

    Raises:
        GateError: no set where a gain is expected, or one without a baseline: nothing could be shown.
    """
    policy = policy or AttentionPolicy()
    if not any(each.gain_expected for each in sets) or not all(each.baselines for each in sets):
        raise GateError("attention gate: want a set where a gain is expected, and a baseline for every set")
    return Verdict(tuple(_judged(each, policy) for each in sets))


def require(verdict: Verdict) -> None:
    """
    Raises:
        GateError: the verdict is not a pass; the message names the first row that failed.
    """
    for row in verdict.rows:
        if not row.passed:
            raise GateError(f"attention: refused on {row.name}: {row.reason}; the order before attention stays in use")


def _judged(held: Held, policy: AttentionPolicy) -> Judged:
    best = max(sorted(held.baselines), key=lambda name: sum(held.baselines[name]))
    gain = difference(held.attention, held.baselines[best])
    reason = _reason(held, gain, best, policy)
    return Judged(held.name, interval(held.attention), best, gain, not reason, reason)


def _reason(held: Held, gain: Interval, best: str, policy: AttentionPolicy) -> str:
    if gain.n < policy.least_questions:
        return f"inconclusive, {gain.n} questions, want {policy.least_questions}"
    if held.gain_expected and not gain.low > policy.least_gain:
        return f"does not beat {best}: gain {gain}, want the whole interval over {policy.least_gain:g}"
    if not held.gain_expected and (gain.mean < -policy.most_loss or gain.low < -2 * policy.most_loss):
        return f"loses to {best}: {gain}, want at most {policy.most_loss:g} less"
    return ""
