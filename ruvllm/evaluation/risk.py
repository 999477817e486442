"""Risk against coverage of a decision that may abstain (El-Yaniv and Wiener 2010). Knows nothing of what is decided.

Answered are the rows of the highest confidence; risk is their mean loss. Rows of equal confidence come in random order
and the expectation over it is taken, so that a constant confidence has the same risk everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """Both (n,): risk[k] is the mean loss of the k + 1 surest rows, coverage[k] their share."""

    coverage: Values
    risk: Values

    @property
    def area(self) -> float:
        """AURC: the mean risk over all coverages (Geifman et al. 2019); less is better."""
        return float(self.risk.mean())

    def coverage_at(self, risk: float) -> float:
        """The largest share of rows that can be answered with a mean loss of `risk` at most; 0: none."""
        within = np.flatnonzero(self.risk <= risk + 1e-12)
        return float(self.coverage[within[-1]]) if len(within) else 0.0


def risk_curve(confidence: Values, loss: Values) -> RiskCurve:
    """The curve of `loss` (n,), any numbers, answered from the highest `confidence` (n,) down.

    Raises:
        LearningError: no row, shapes differ, or a value is not finite.
    """
    if confidence.shape != loss.shape or confidence.ndim != 1 or not loss.size:
        raise LearningError(f"risk: shapes {confidence.shape} and {loss.shape}, want (n,) twice and not empty")
    if not (np.isfinite(confidence).all() and np.isfinite(loss).all()):
        raise LearningError("risk: a confidence or a loss is not finite, want numbers")
    _, block = np.unique(-confidence, return_inverse=True)
    sizes = np.bincount(block)
    expected = np.repeat(np.bincount(block, weights=loss) / sizes, sizes)
    counts = np.arange(1, len(loss) + 1)
    return RiskCurve(counts / len(loss), np.cumsum(expected) / counts)
