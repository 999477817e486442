"""Why a router decided as it did: what each named place of the features did to one decision. Knows nothing of training.

A place is set to its neutral value, the mean of the training questions, and the router decides again; by how much the
log-odds of the chosen tier against its best rival fall is what the place said for it. A place's features move together.
The parts need not add up to the whole: where places say the same, each seems to matter less (see Molnar 2022, 8.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.inference.types import BINS
from ruvllm.router.bundle import Bundle
from ruvllm.router.decision import N_BINS, N_TIERS, Allowed, RouterOutputs
from ruvllm.router.layout import LAYOUT, Place
from ruvllm.router.runtime import RouterRuntime

Array = NDArray[np.float32]

GROUPS = {0: "query", 32: "embedding", 48: "search", 96: "system"}
_ALL = Allowed((True,) * N_TIERS, (True,) * N_BINS)
_LEAST = 1e-12  # of a probability: that of a single tier's rival is 0


@dataclass(frozen=True)
class Part:
    """What one place said. Positive: for the tier that was chosen, in log-odds and in expected utility."""

    place: str
    group: str
    value: str
    log_odds: float
    utility: float
    confidence: float  # by how much the confidence rose
    turns: bool  # without it another tier or bin would have been chosen


@dataclass(frozen=True)
class Explanation:
    """The router's greedy choice; `parts` with the largest change first. The name of an absent tier is empty."""

    tier: str
    rival: str
    context_bin: int
    log_odds: float
    confidence: float
    probabilities: tuple[float, ...]  # (4,)
    utility: tuple[float, ...]  # (4,) expected
    parts: tuple[Part, ...]

    @property
    def groups(self) -> dict[str, float]:
        """Group of places -> sum of their log-odds."""
        return {
            group: math.fsum(part.log_odds for part in self.parts if part.group == group) for group in GROUPS.values()
        }


def explain(
    bundle: Bundle, features: Array, hidden: Array | None = None, allowed: Allowed | None = None
) -> Explanation:
    """Explain what the bundle decides on features (128,) with the session's hidden state (H,).

    Raises:
        InputError: a shape is wrong, a value is not finite, or nothing is allowed.
        BundleError: the bundle's golden vectors do not come out.
    """
    runtime, allowed = RouterRuntime(bundle), allowed or _ALL
    base = runtime.decide(features, hidden, allowed)
    chosen, rival = np.argsort(-base.model_probs, kind="stable")[:2].tolist()
    neutral = bundle.arrays["feature_mean"]
    parts = [
        _part(place, features, base, runtime.decide(_without(features, place, neutral), hidden, allowed), chosen, rival)
        for place in LAYOUT.places
    ]
    return Explanation(
        tier=runtime.tiers[chosen],
        rival=runtime.tiers[rival],
        context_bin=BINS[int(base.context_probs.argmax())],
        log_odds=_log_odds(base, chosen, rival),
        confidence=base.confidence,
        probabilities=tuple(base.model_probs.tolist()),
        utility=base.utility,
        parts=tuple(sorted(parts, key=lambda part: (-abs(part.log_odds), -abs(part.confidence)))),
    )


def _without(features: Array, place: Place, neutral: Array) -> Array:
    changed = np.array(features, dtype=np.float32)
    changed[place.slice] = neutral[place.slice]
    return changed


def _part(place: Place, features: Array, base: RouterOutputs, other: RouterOutputs, chosen: int, rival: int) -> Part:
    lead, led = (got.utility[chosen] - got.utility[rival] for got in (base, other))
    return Part(
        place=place.name,
        group=GROUPS[max(start for start in GROUPS if start <= place.start)],
        value=_shown(place, features[place.slice]),
        log_odds=_log_odds(base, chosen, rival) - _log_odds(other, chosen, rival),
        utility=lead - led,
        confidence=base.confidence - other.confidence,
        turns=_pair(base) != _pair(other),
    )


def _log_odds(outputs: RouterOutputs, chosen: int, rival: int) -> float:
    first, second = (max(float(outputs.model_probs[tier]), _LEAST) for tier in (chosen, rival))
    return math.log(first) - math.log(second)


def _pair(outputs: RouterOutputs) -> tuple[int, int]:
    return int(outputs.model_probs.argmax()), int(outputs.context_probs.argmax())


def _shown(place: Place, values: Array) -> str:
    """The value of a single feature, or the label that stands out, or the range."""
    if place.size == 1:
        return f"{float(values[0]):.3g}"
    if place.labels:
        at = int(values.argmax())
        return f"{place.labels[at]} {float(values[at]):.2f}" if values.any() else "unknown"
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


def explanation_table(explanation: Explanation, most: int = 12) -> list[str]:
    """Lines of a Markdown table: the places that moved the decision most, then the sums by group."""
    rows = explanation.parts[:most]
    return [
        f"{explanation.tier} with {explanation.context_bin} tokens, confidence {explanation.confidence:.2f};"
        f" log-odds against {explanation.rival or 'no other tier'} {explanation.log_odds:+.2f}",
        "",
        "| place | value | log-odds | utility | confidence | turns the decision |",
        "|---|---|---|---|---|---|",
        *[_row(part) for part in rows],
        *[f"| all of {group} | | {total:+.3f} | | | |" for group, total in explanation.groups.items()],
    ]


def _row(part: Part) -> str:
    cells: Sequence[str] = (
        part.place,
        part.value,
        f"{part.log_odds:+.3f}",
        f"{part.utility:+.3f}",
        f"{part.confidence:+.3f}",
        "yes" if part.turns else "",
    )
    return f"| {' | '.join(cells)} |"
