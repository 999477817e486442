"""The risk-coverage curve by hand and at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from ruvllm.errors import LearningError
from ruvllm.evaluation.risk import risk_curve


def test_four_rows_by_hand() -> None:
    curve = risk_curve(np.array([0.1, 0.9, 0.5, 0.7]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0.0, 0.0, 1 / 3, 0.5])
    assert curve.area == pytest.approx((1 / 3 + 0.5) / 4)
    assert curve.coverage_at(0.4) == 0.75
    assert curve.coverage_at(0.0) == 0.5


def test_equal_confidence_has_equal_risk_everywhere() -> None:
    curve = risk_curve(np.ones(4), np.array([1.0, 0.0, 0.0, 1.0]))
    assert curve.risk == pytest.approx([0.5] * 4)
    assert curve.coverage_at(0.49) == 0.0


def test_unusable_rows_are_refused() -> None:
    for confidence, loss in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0)), (np.array([np.nan]), np.ones(1))):
        with pytest.raises(LearningError, match="risk"):
            risk_curve(confidence, loss)
