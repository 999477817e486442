"""What the router is asked and what it answers: frozen records, no network."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ruvllm.inference.types import BINS

N_TIERS = 4  # places of the model head, smallest tier first; a ladder with fewer tiers masks the rest
N_BINS = len(BINS)


@dataclass(frozen=True)
class Tradeoff:
    """The exchange rates of U = Q - lambda L - mu C, Q on 1 to 5."""

    latency_weight: float  # lambda, per second
    cost_weight: float  # mu, per normalised token cost


@dataclass(frozen=True)
class RouterOutputs:
    """Heads of specification 5.2 for one query; probabilities over allowed places only, masked ones are 0."""

    model_probs: NDArray[np.float32]  # (4,) of the head that decides
    context_probs: NDArray[np.float32]  # (5,)
    temperature: float  # [0, 2]
    top_p: float  # [0, 1]
    confidence: float  # calibrated, [0, 1]
    hidden: NDArray[np.float32]  # (H,) carried to the session's next turn
    quality: tuple[float, ...] = ()  # (4,) expected quality of each tier in [0, 1]
    utility: tuple[float, ...] = ()  # (4,) expected utility of each tier with the bin of the largest probability


@dataclass(frozen=True)
class Allowed:
    """Which places may be chosen for this request."""

    tiers: tuple[bool, ...]  # 4
    bins: tuple[bool, ...]  # 5
    too_slow: frozenset[tuple[int, int]] = frozenset()  # (tier, index of the bin) that would miss the deadline


@dataclass(frozen=True)
class Decision:
    """One routing decision, as it is stored."""

    tier: int  # index into the ladder
    context_bin: int  # tokens
    temperature: float
    top_p: float
    confidence: float | None  # None without a router
    propensity: float  # probability of (tier, bin) under the policy that drew it
    decided_by: str  # champion | cold-start | explore | fallback | forced
    router_version: str
    model_probs: tuple[float, ...]
    context_probs: tuple[float, ...]
    hidden: NDArray[np.float32] | None = field(default=None, compare=False)
