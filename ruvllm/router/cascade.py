"""Cascade: the tier chosen answers, and the next one answers too where the first was not sure of its words.

Pure: knows nothing of models, text or time. Sure is the geometric mean of the answer's token probabilities (Jitkrittum
et al. 2024 call it Chow-average); whoever generated the answer has them. Both answers are paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ruvllm.errors import InputError
from ruvllm.inference.types import BINS
from ruvllm.router.decision import Allowed, Decision

CASCADE = "cascade"  # decided_by of the second decision


@dataclass(frozen=True)
class Cascade:
    """`floor` 0: never; 1: always. `longest`: how many tiers may answer one question."""

    floor: float
    longest: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise InputError(f"cascade floor: got {self.floor}, want 0 to 1")
        if self.longest < 1:
            raise InputError(f"cascade: at most {self.longest} tiers, want 1 or more")


def escalation(
    decision: Decision, sure: float, allowed: Allowed, cascade: Cascade, answers: int = 1
) -> Decision | None:
    """The decision to answer again with, or None: the answer was sure enough, or no tier above may be asked.

    `answers` is how many tiers have answered. A forced tier is never left. The propensity stays that of the first draw:
    given the answer, going on is certain.
    """
    if sure >= cascade.floor or answers >= cascade.longest or decision.decided_by == "forced":
        return None
    place = BINS.index(decision.context_bin)
    higher = [
        t for t, ok in enumerate(allowed.tiers) if ok and t > decision.tier and (t, place) not in allowed.too_slow
    ]
    return replace(decision, tier=higher[0], decided_by=CASCADE) if higher else None
