"""From outcomes to what the router is to learn: utilities, labels, weights. Knows nothing of torch or of a database.

Specification 5.3: U = Q - lambda L - mu C with Q on 1 to 5, y_model = argmax U, y_ctx = min viable context. Two bins
follow: `context` is the label, the smallest bin of the label's tier whose quality is within 0.1 of that tier's best;
`best_context` is the bin of the largest utility. They differ where a smaller bin is as good but was measured slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.inference.types import BINS
from ruvllm.learning.data import Snapshot

Wide = NDArray[np.float64]
Ints = NDArray[np.int64]
Pairs = NDArray[np.int64]  # (n, 2): tier, bin

VIABLE = 0.1  # on 1 to 5
_ROUNDING = 1e-6  # outcomes are float32
TEMPERATURE, TOP_P = 0.0, 1.0  # labels of every question: no sampling grid was run, the task type's default stands


@dataclass(frozen=True, eq=False)
class Targets:
    """One entry a question. Margins are the utility at stake: 0 where every choice is as good."""

    utility: Wide  # (n, 4, 5), -inf where not run
    quality: Wide  # (n, 4, 5) in [0, 1], NaN where not run
    tier: Ints  # (n,) label
    context: Ints  # (n,) label: min viable context of the label's tier
    best_context: Ints  # (n,) bin of the largest utility of the label's tier
    tier_margin: Wide  # (n,) best tier against the second best, each at its best bin
    context_margin: Wide  # (n,) best against worst bin of the label's tier

    @property
    def oracle(self) -> Pairs:
        """(n, 2): the pair of the largest utility."""
        return np.stack([self.tier, self.best_context], axis=1)

    @property
    def labels(self) -> Pairs:
        return np.stack([self.tier, self.context], axis=1)


def quality5(snapshot: Snapshot) -> Wide:
    """(n, 4, 5) on 1 to 5."""
    scaled: Wide = 1.0 + 4.0 * snapshot.quality.astype(np.float64)
    return scaled


def make_targets(snapshot: Snapshot) -> Targets:
    """Labels of every question, ties to the smaller tier and bin."""
    quality = quality5(snapshot)
    utility = quality - snapshot.latency_weight * snapshot.latency_s - snapshot.cost_weight * snapshot.cost
    utility = np.where(np.isfinite(utility), utility, -np.inf)
    rows = np.arange(len(utility))
    by_tier = utility.max(axis=2)  # (n, 4)
    tier = by_tier.argmax(axis=1)
    own = utility[rows, tier]  # (n, 5)
    own_quality = np.where(np.isfinite(quality[rows, tier]), quality[rows, tier], -np.inf)
    viable = own_quality >= own_quality.max(axis=1, keepdims=True) - VIABLE - _ROUNDING
    return Targets(
        utility=utility,
        quality=snapshot.quality.astype(np.float64),
        tier=tier,
        context=viable.argmax(axis=1),
        best_context=own.argmax(axis=1),
        tier_margin=_margin(by_tier),
        context_margin=own.max(axis=1) - np.where(np.isfinite(own), own, np.inf).min(axis=1),
    )


def weights(margin: Wide, floor: float) -> Wide:
    """Weights of mean 1, in proportion to the utility at stake: a cross-entropy so weighted counts regret."""
    raised = margin + floor
    scaled: Wide = raised / raised.mean()
    return scaled


def best_fixed(utility: Wide) -> tuple[int, int]:
    """The (tier, bin) of the largest mean utility over the rows of (n, 4, 5).

    Raises:
        LearningError: there is no row.
    """
    if not len(utility):
        raise LearningError("best fixed choice: no training question, want at least one")
    tier, context = np.unravel_index(int(utility.mean(axis=0).argmax()), utility.shape[1:])
    return int(tier), int(context)


def take(values: Wide, pairs: Pairs) -> Wide:
    """(n, 4, 5), (n, 2) -> (n,): the outcome of each decision."""
    taken: Wide = values[np.arange(len(values)), pairs[:, 0], pairs[:, 1]]
    return taken


def degenerate(snapshot: Snapshot, targets: Targets) -> list[str]:
    """A warning for each head whose training labels are all the same."""
    warnings = []
    for head, labels, names in (("tier", targets.tier, snapshot.tiers), ("context", targets.context, BINS)):
        found = np.unique(labels[snapshot.train])
        if len(found) == 1:
            warnings.append(f"degenerate labels: {head} is always {names[int(found[0])]}")
    return warnings


def _margin(by_tier: Wide) -> Wide:
    """(n, 4) -> (n,): best minus second best; 0 where there is one tier."""
    ordered = np.sort(by_tier, axis=1)
    second = ordered[:, -2]
    margin: Wide = np.where(np.isfinite(second), ordered[:, -1] - np.where(np.isfinite(second), second, 0.0), 0.0)
    return margin
