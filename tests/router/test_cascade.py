"""The cascade goes one tier up where the answer's words were unsure, and nowhere else."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import InputError, LearningError
from ruvllm.evaluation.cascade import cascade_points
from ruvllm.inference.sampling import certainty
from ruvllm.router.cascade import Cascade, escalation
from ruvllm.router.decision import Allowed, Decision

ALL = Allowed((True,) * 4, (True,) * 5)


def decision(tier: int = 0, decided_by: str = "champion") -> Decision:
    return Decision(tier, 512, 0.0, 1.0, 0.8, 0.9, decided_by, "v1", (0.7, 0.2, 0.1, 0.0), (0.2,) * 5)


def test_an_unsure_answer_is_asked_of_the_next_tier() -> None:
    again = escalation(decision(), 0.4, ALL, Cascade(0.6))
    assert again is not None
    assert (again.tier, again.decided_by, again.context_bin, again.propensity) == (1, "cascade", 512, 0.9)
    assert escalation(decision(), 0.6, ALL, Cascade(0.6)) is None  # sure enough
    assert escalation(decision(), 0.0, ALL, Cascade(0.0)) is None  # switched off


def test_only_where_a_tier_above_may_be_asked_in_time() -> None:
    always = Cascade(1.0)
    gap = Allowed((True, False, True, True), (True,) * 5)
    assert escalation(decision(), 0.1, gap, always).tier == 2  # type: ignore[union-attr]
    slow = Allowed(ALL.tiers, ALL.bins, frozenset({(1, 1), (2, 1)}))  # place 1 is the bin of 512 tokens
    assert escalation(decision(), 0.1, slow, always).tier == 3  # type: ignore[union-attr]
    assert escalation(decision(3), 0.1, ALL, always) is None
    assert escalation(decision(decided_by="forced"), 0.1, ALL, always) is None
    assert escalation(decision(), 0.1, ALL, always, answers=2) is None
    assert escalation(decision(1), 0.1, ALL, Cascade(1.0, longest=3), answers=2) is not None


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30))
def test_certainty_is_the_geometric_mean(probabilities: list[float]) -> None:
    found = certainty([math.log(p) for p in probabilities])
    assert found == pytest.approx(float(np.prod(np.array(probabilities) ** (1 / len(probabilities)))), rel=1e-6)
    assert 0 <= found <= 1


@pytest.mark.parametrize("logs", [[], [0.5], [-0.1, math.nan]])
def test_what_is_no_certainty_is_refused(logs: list[float]) -> None:
    with pytest.raises(InputError, match="certainty"):
        certainty(logs)


@pytest.mark.parametrize("given", [{"floor": 1.5}, {"floor": -0.1}, {"floor": 0.5, "longest": 0}])
def test_settings_out_of_range_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InputError, match="cascade"):
        Cascade(**given)  # type: ignore[arg-type]


def test_what_a_cascade_brings_by_hand() -> None:
    small, big = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 1.0])
    cost, sure = np.tile([1.0, 10.0], (4, 1)), np.array([0.9, 0.2, 0.8, 0.5])
    never, half, always = cascade_points(small, big, cost, sure, np.array([0.0, 0.6, 1.0]))
    assert (never.escalated, never.quality, never.cost) == (0.0, 0.5, 1.0)
    assert (half.escalated, half.quality, half.cost) == (0.5, 1.0, 6.0)  # both answers are paid for
    assert (always.escalated, always.quality, always.cost) == (1.0, 0.75, 11.0)
    with pytest.raises(LearningError, match="shapes"):
        cascade_points(small[:3], big, cost, sure, np.array([0.5]))
    with pytest.raises(LearningError, match="not finite"):
        cascade_points(small, big, cost, np.array([0.1, np.nan, 0.2, 0.3]), np.array([0.5]))
