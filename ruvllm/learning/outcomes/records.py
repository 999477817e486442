"""The outcomes of 2 to 4 tiers on the same queries, as arrays. Knows nothing of files, features or models.

What other code trains on and measures with: quality and cost of every tier, NaN where a tier was not run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError

Wide = NDArray[np.float64]
Names = NDArray[np.str_]
Rows = NDArray[np.int64]

MIN_TIERS, MAX_TIERS = 2, 4
TRAIN, TEST, NO_SPLIT = "train", "test", ""


@dataclass(frozen=True, eq=False)
class OutcomeSet:
    """One row a query, one column a tier, the cheapest tier first. A missing score has a missing cost and back."""

    name: str
    tiers: tuple[str, ...]  # m names
    ids: tuple[str, ...]  # n
    queries: tuple[str, ...]  # n
    domain: Names  # (n,)
    score: Wide  # (n, m) in [0, 1], NaN: not run
    cost: Wide  # (n, m), NaN: not run
    split: Names  # (n,) "train", "test" or ""
    cost_unit: str = "USD"
    notes: tuple[str, ...] = ()  # what was left out while reading, and how many

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_values()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def complete(self) -> Rows:
        """Rows with an outcome of every tier: what policies can be compared on."""
        return np.flatnonzero(np.isfinite(self.score).all(axis=1))

    @property
    def has_split(self) -> bool:
        return bool(len(self)) and bool((self.split != NO_SPLIT).all())

    def rows(self, rows: Rows) -> OutcomeSet:
        """The same set with these rows only, in this order."""
        picked = rows.tolist()
        return OutcomeSet(
            self.name, self.tiers, tuple(self.ids[i] for i in picked), tuple(self.queries[i] for i in picked),
            self.domain[rows], self.score[rows], self.cost[rows], self.split[rows], self.cost_unit, self.notes,
        )  # fmt: skip

    def _check_shapes(self) -> None:
        n, m = len(self.ids), len(self.tiers)
        if not MIN_TIERS <= m <= MAX_TIERS or len(set(self.tiers)) != m:
            raise LearningError(f"{self.name}: tiers {self.tiers}, want {MIN_TIERS} to {MAX_TIERS} different names")
        shapes = {"domain": (n,), "score": (n, m), "cost": (n, m), "split": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise LearningError(f"{self.name}: {name} has shape {getattr(self, name).shape}, want {shape}")
        if len(self.queries) != n:
            raise LearningError(f"{self.name}: {len(self.queries)} queries for {n} ids, want one each")

    def _check_values(self) -> None:
        known = np.isfinite(self.score)
        if (known != np.isfinite(self.cost)).any() or np.isinf(self.score).any() or np.isinf(self.cost).any():
            raise LearningError(f"{self.name}: scores and costs must be known together, NaN where a tier was not run")
        if known.any() and (self.score[known].min() < 0 or self.score[known].max() > 1 or self.cost[known].min() < 0):
            raise LearningError(f"{self.name}: scores must be 0 to 1 and costs not below 0")
        if not np.isin(self.split, (TRAIN, TEST, NO_SPLIT)).all():
            raise LearningError(f"{self.name}: split must be {TRAIN!r}, {TEST!r} or {NO_SPLIT!r} (none)")
