"""The 128 features as data: name, place, range, meaning (specification FR-003: 32 + 16 + 48 + 32).

Missing values: 0 says that a value is unknown wherever the meaning says "0: unknown", and no known value of such a
place comes out as 0. Among the others 0 is a value: nothing was found, no rule fired.

Knows nothing of how a feature is computed. A router carries the hash of its layout and refuses another: whoever changes
what a place means changes its `meaning` here, and with it the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ruvllm.router.shipped import fingerprint

LANGUAGES = ("english", "spanish", "french", "german", "italian", "portuguese", "russian", "chinese")
QUERY_TYPES = ("factual", "reasoning", "creative", "procedural", "comparison", "conversational")
DOMAINS = (
    "geography", "people", "environment", "government", "economy", "energy", "communications", "transport",
    "military", "history", "science", "mathematics", "health", "programming", "arts", "other",
)  # fmt: skip
DEVICE_CLASSES = ("edge", "mobile", "server", "cluster")
PRIVACY_LEVELS = ("public", "internal", "confidential", "restricted")

N_COMPONENTS = 8
N_CLUSTERS = 4
N_SHELLS = 16
N_COHERENCE = 24
N_HISTORY_TIERS = 4

# The 16 places of historical accuracy: by tier, smallest first, and four that say how much stands behind them.
HISTORY = (
    *(f"{what}.tier{tier + 1}" for what in ("neighbours", "duplicates", "domain") for tier in range(N_HISTORY_TIERS)),
    "nearest", "duplicate_weight", "domain_count", "seen",
)  # fmt: skip
_HISTORY = (
    "by tier (1 + 9 mean quality) / 10 of: the 40 nearest of the latest 2048 earlier questions, shrunk by 10 towards"
    " the tier's mean; those of cosine over 0.85, weighted by what lies over it; the latest answers of its domain."
    " nearest: (1 + 9 cosine) / 10; duplicate_weight: w / (1 + w); domain_count, seen: log1p(n) / log1p(4096)."
    " Means of fewer than 5 outcomes, and all without a record: 0, unknown"
)
_CLASSIFIED = f"shares by the classifiers of the embedding's encoder ({fingerprint()}); all 0: it has none"


@dataclass(frozen=True)
class Place:
    """`size` neighbouring features in [low, high]; `labels` name them where each has a meaning of its own."""

    name: str
    start: int
    size: int
    low: float
    high: float
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class _Spec:
    """A place before its start is known."""

    name: str
    size: int
    low: float
    high: float
    meaning: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    places: tuple[Place, ...]

    def __getitem__(self, name: str) -> slice:
        return self.by_name[name].slice

    @property
    def size(self) -> int:
        return sum(place.size for place in self.places)

    @cached_property
    def by_name(self) -> Mapping[str, Place]:
        return {place.name: place for place in self.places}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """128 names, one a feature: `l2_norm`, `language_id.english`, `neighborhood_density.3`."""
        return tuple(name for place in self.places for name in _names(place))

    @cached_property
    def low(self) -> NDArray[np.float32]:  # (128,)
        return np.array([place.low for place in self.places for _ in range(place.size)], dtype=np.float32)

    @cached_property
    def high(self) -> NDArray[np.float32]:  # (128,)
        return np.array([place.high for place in self.places for _ in range(place.size)], dtype=np.float32)

    @cached_property
    def hash(self) -> str:
        """sha256 over names, places, ranges, meanings and labels."""
        canonical = json.dumps([asdict(place) for place in self.places], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _names(place: Place) -> tuple[str, ...]:
    if place.size == 1:
        return (place.name,)
    return tuple(f"{place.name}.{label}" for label in place.labels or range(place.size))


_GROUPS: Mapping[int, tuple[_Spec, ...]] = {
    # first place of the group -> its places; the starts 0, 32, 48 and 96 are the specification's 32 + 16 + 48 + 32
    0: (
        _Spec("token_count", 1, 0, 1, "log1p(words and marks of the question) / log1p(4096)"),
        _Spec(
            "language_id", 8, 0, 1, "one-hot by py3langid, eight and nine others; all 0: none of the eight", LANGUAGES
        ),
        _Spec("domain_encoding", 16, 0, 1, _CLASSIFIED, DOMAINS),
        _Spec("user_frequency", 1, 0, 1, "log1p(1 + the user's requests of the last day) / log1p(1001); 0: unknown"),
        _Spec("query_type", 6, 0, 1, _CLASSIFIED, QUERY_TYPES),
    ),
    32: (
        _Spec("l2_norm", 1, 0, 2, "norm of the vector as given; 1 from an adapter that normalises"),
        _Spec("principal_components", 8, -1, 1, "projections on the bundle's components; 0 without transforms"),
        _Spec("entropy", 1, 0, 1, "entropy of the squared components / log d"),
        _Spec("sparsity", 1, 0, 1, "Hoyer: (sqrt d - l1 / l2) / (sqrt d - 1)"),
        _Spec("cluster_assignment", 4, 0, 1, "soft assignment to the bundle's centroids; 0 without transforms"),
        _Spec("memory_coverage", 1, 0, 1, "spare: mean similarity of the first 5 hits"),
    ),
    48: (
        _Spec("k_retrieved", 1, 0, 1, "hits / 64"),
        _Spec("distances", 4, 0, 2, "of 1 - similarity over the hits", ("mean", "std", "min", "max")),
        _Spec("search_entropy", 1, 0, 1, "entropy of softmax(similarity / 0.05) / log k"),
        _Spec(
            "graph_depth",
            1,
            0,
            1,
            "(1 + log1p(corpus size) / log 16) / 9: expected layers of the HNSW graph; 0: unknown",
        ),
        _Spec("recall_estimate", 1, 0, 1, "hits / hits asked for"),
        _Spec("neighborhood_density", 16, 0, 1, "share of the hits in 16 shells of distance 0 to 1, last open"),
        _Spec("semantic_coherence", 24, -1, 1, "24 rising quantiles of pairwise similarity, first 8 hits"),
    ),
    96: (
        _Spec("latency_budget", 1, 0, 1, "log1p(seconds) / log1p(120)"),
        _Spec("device_class", 4, 0, 1, "one-hot", DEVICE_CLASSES),
        _Spec("privacy_level", 4, 0, 1, "one-hot", PRIVACY_LEVELS),
        _Spec("memory_available", 1, 0, 1, "log1p(0.01 + GB) / log1p(1024.01); 0: unknown"),
        _Spec("battery_level", 1, 0, 1, "(1 + 9 charge) / 10; 1 on mains; 0: unknown"),
        _Spec("concurrent_requests", 1, 0, 1, "log1p(requests in flight, this one too) / log1p(64); 0: unknown"),
        _Spec("historical_accuracy", 16, 0, 1, _HISTORY, HISTORY),
        _Spec("session_turn", 1, 0, 1, "spare: log of the turn, 1 -> 0 and 64 -> 1"),
        _Spec("queue_depth", 1, 0, 1, "spare: log1p(waiting requests) / log1p(64)"),
        _Spec("hour_sine", 1, -1, 1, "spare: of the local hour; both 0: unknown"),
        _Spec("hour_cosine", 1, -1, 1, "spare: of the local hour; both 0: unknown"),
    ),
}
N_FEATURES = 128


def _lay_out(groups: Mapping[int, tuple[_Spec, ...]], size: int) -> Layout:
    """Places in order; a group that does not start where it says is a mistake of whoever edited the table."""
    places: list[Place] = []
    cursor = 0
    for start, specs in groups.items():
        if start != cursor:
            raise ValueError(f"feature layout: the group of {specs[0].name} starts at {cursor}, want {start}")
        for spec in specs:
            if spec.labels and len(spec.labels) != spec.size:
                raise ValueError(f"feature layout: {spec.name} has {len(spec.labels)} labels, want {spec.size}")
            places.append(Place(spec.name, cursor, spec.size, spec.low, spec.high, spec.meaning, spec.labels))
            cursor += spec.size
    if cursor != size:
        raise ValueError(f"feature layout: {cursor} places, want {size}")
    return Layout(tuple(places))


LAYOUT = _lay_out(_GROUPS, N_FEATURES)
