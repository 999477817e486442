"""The router's FastGRNN cell with a quality head a tier, behind the same door as the baselines.

Knows nothing of sessions (every query is a first turn, h = 0), of bundles and of costs. More inputs than the cell's
128 are reduced to their principal components, fitted on the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ruvllm.learning.outcomes.networks import Training, fit_network
from ruvllm.learning.outcomes.predictors import Array, QualityPredictor, Wide
from ruvllm.router.fastgrnn import Cell, RouterNetwork
from ruvllm.router.layout import N_FEATURES


class _QualityHead(nn.Module):
    """(n, 128) -> (n, m) logits of the tiers' qualities."""

    def __init__(self, cell: Cell, tiers: int) -> None:
        super().__init__()
        router = RouterNetwork(cell, int(torch.randint(2**31, ())))  # drawn from the seed that is set outside
        self.hidden = cell.hidden
        self.cell = router.cell
        self.head = nn.Linear(cell.hidden, tiers)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.zeros(len(x), self.hidden, dtype=x.dtype)
        logits: Tensor = self.head(self.cell(x, first))
        return logits


@dataclass(frozen=True)
class FastGrnnQuality:
    """Our router on outcomes: the cell of specification 5.1 and one quality a tier."""

    name: str = "FastGRNN (ours)"
    cell: Cell = field(default_factory=Cell)
    training: Training = field(default_factory=Training)

    def fit(self, x: Array, score: Wide, seed: int) -> QualityPredictor:
        return fit_network(lambda: _QualityHead(self.cell, score.shape[1]), N_FEATURES, x, score, seed, self.training)
