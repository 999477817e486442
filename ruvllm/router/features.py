"""One question and what memory found -> the layout's 128 features. Knows nothing of models, databases or the router.

The same function serves training and serving; what is unknown has the value that the layout declares for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ruvllm.errors import InputError
from ruvllm.router.language import language
from ruvllm.router.layout import DEVICE_CLASSES, DOMAINS, LAYOUT, N_COHERENCE, N_FEATURES, N_SHELLS, PRIVACY_LEVELS
from ruvllm.router.transforms import Transforms, apply_transforms, fit_transforms
from ruvllm.router.wording import domain, query_type, words_of

__all__ = ["FeatureInput", "Transforms", "apply_transforms", "extract", "fit_transforms"]

Array = NDArray[np.float32]
Wide = NDArray[np.float64]  # sums of squares of any finite float32 stay finite in it

_COHERENT_HITS = 8
_COVERING_HITS = 5
_SOFTMAX_TEMPERATURE = 0.05
_HNSW_FANOUT = 16  # M of the smallest band, see the design's table
_MAX_GRAPH_DEPTH = 8
_MAX_HITS = 64
_UPPER = np.triu_indices(_COHERENT_HITS, k=1)


@dataclass(frozen=True, eq=False)
class FeatureInput:
    """What is known when a question is routed. Hits are best first; k = 0 is an empty memory or one that is down."""

    question: str
    token_count: int
    embedding: Array  # (d,)
    similarities: Array = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # (k,)
    hit_embeddings: Array = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))  # (k, d)
    hit_domains: tuple[str, ...] = ()  # k names, or none
    k_asked: int = 32
    corpus_size: float = math.nan  # of this and the next ones nan is unknown
    turn: int = 1
    latency_budget_s: float = 60.0
    device_class: str = "server"
    privacy_level: str = "internal"
    memory_available_gb: float = math.nan
    battery: float = math.nan  # 1: on mains
    concurrent: float = math.nan  # requests in flight, this one too
    queue_depth: int = 0
    now: datetime | None = None
    user_frequency: float = math.nan  # requests of the last day
    historical_accuracy: Sequence[float] = ()  # 16, by domain, nan where unknown, or none


def extract(given: FeatureInput, transforms: Transforms | None = None) -> Array:
    """(128,) float32 within the layout's ranges.

    Raises:
        InputError: a value is not finite, negative where that means nothing, or of the wrong shape; it is named.
    """
    embedding, similarities, hits = _checked(given, transforms)
    places = {
        **_query_stats(given, similarities),
        **_embedding_stats(embedding, similarities, transforms),
        **_search_stats(given, similarities, hits),
        **_system_stats(given),
    }
    features = np.zeros(N_FEATURES)
    for name, values in places.items():
        features[_AT[name]] = values
    return np.clip(features, LAYOUT.low, LAYOUT.high).astype(np.float32)


def _query_stats(given: FeatureInput, similarities: Wide) -> dict[str, ArrayLike]:
    words = words_of(given.question)
    domains = given.hit_domains
    return {
        "token_count": _log_share(given.token_count, 4096),
        "language_id": language(given.question),
        "domain_encoding": domain(words, domains, similarities[: len(domains)]),
        "user_frequency": _known(_log_share(1 + given.user_frequency, 1001)),
        "query_type": query_type(words),
    }


def _embedding_stats(embedding: Wide, similarities: Wide, transforms: Transforms | None) -> dict[str, ArrayLike]:
    squares = embedding * embedding
    energy = float(squares.sum())
    stats: dict[str, ArrayLike] = {
        "l2_norm": math.sqrt(energy),
        "entropy": _entropy(squares / energy) if energy else 0.0,
        "sparsity": _hoyer(embedding, math.sqrt(energy)),
        "memory_coverage": float(similarities[:_COVERING_HITS].mean()) if len(similarities) else 0.0,
    }
    if transforms is not None:
        row = embedding[None, :]
        stats["principal_components"] = transforms.project(row)[0]
        stats["cluster_assignment"] = transforms.assign(row)[0]
    return stats


def _search_stats(given: FeatureInput, similarities: Wide, hits: Wide) -> dict[str, ArrayLike]:
    k = len(similarities)
    if k == 0:
        return {"graph_depth": _graph_depth(given.corpus_size)}
    distances = np.clip(1.0 - similarities, 0.0, 2.0)
    weights = np.exp((similarities - similarities.max()) / _SOFTMAX_TEMPERATURE)
    return {
        "k_retrieved": k / _MAX_HITS,
        "distances": (distances.mean(), distances.std(), distances.min(), distances.max()),
        "search_entropy": _entropy(weights / weights.sum()),
        "graph_depth": _graph_depth(given.corpus_size),
        "recall_estimate": k / given.k_asked,
        "neighborhood_density": _density(distances),
        "semantic_coherence": _coherence(hits[:_COHERENT_HITS]),
    }


def _system_stats(given: FeatureInput) -> dict[str, ArrayLike]:
    sine, cosine = _clock_hand(given.now)
    return {
        "latency_budget": _log_share(given.latency_budget_s, 120),
        "device_class": _one_hot("device_class", given.device_class, DEVICE_CLASSES),
        "privacy_level": _one_hot("privacy_level", given.privacy_level, PRIVACY_LEVELS),
        "memory_available": _known(_log_share(0.01 + given.memory_available_gb, 1024.01)),
        "battery_level": _known((1 + 9 * given.battery) / 10),
        "concurrent_requests": _known(_log_share(given.concurrent, 64)),
        "historical_accuracy": _accuracy(given.historical_accuracy),
        "session_turn": math.log(given.turn) / math.log(64),
        "queue_depth": _log_share(given.queue_depth, 64),
        "hour_sine": sine,
        "hour_cosine": cosine,
    }


def _log_share(value: float, full: float) -> float:
    return math.log1p(value) / math.log1p(full)


def _entropy(shares: Wide) -> float:
    """In [0, 1]: 1 where all n shares are equal; 0 for a single one."""
    if len(shares) < 2:
        return 0.0
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum() / math.log(len(shares)))


def _hoyer(embedding: Wide, norm: float) -> float:
    """Hoyer 2004: 0 where all components have one size, 1 where a single one is not 0."""
    root = math.sqrt(len(embedding))
    if norm == 0 or root == 1:
        return 0.0
    return (root - float(np.abs(embedding).sum()) / norm) / (root - 1)


def _graph_depth(corpus_size: float) -> float:
    if math.isnan(corpus_size):
        return 0.0
    return (1 + math.log1p(corpus_size) / math.log(_HNSW_FANOUT)) / (_MAX_GRAPH_DEPTH + 1)


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _accuracy(quality: Sequence[float]) -> Wide:
    """(16,) in [0.1, 1]; 0 where it is unknown."""
    known: Wide = np.nan_to_num((1 + 9 * np.clip(quality, 0, 1)) / 10) if len(quality) else np.zeros(len(DOMAINS))
    return known


def _density(distances: Wide) -> Wide:
    """(k,) -> (16,) shares."""
    shells = np.minimum((distances * N_SHELLS).astype(np.int64), N_SHELLS - 1)
    density: Wide = np.bincount(shells, minlength=N_SHELLS) / len(distances)
    return density


def _coherence(hits: Wide) -> Wide:
    """(m, d) -> (24,): quantiles of the m (m - 1) / 2 pairwise similarities; zeros for a single hit."""
    if len(hits) < 2:
        return np.zeros(N_COHERENCE)
    pairs = _UPPER if len(hits) == _COHERENT_HITS else np.triu_indices(len(hits), k=1)
    ordered = np.sort((hits @ hits.T)[pairs])
    return np.interp(np.linspace(0, len(ordered) - 1, N_COHERENCE), np.arange(len(ordered)), ordered)


def _clock_hand(now: datetime | None) -> tuple[float, float]:
    if now is None:
        return 0.0, 0.0
    angle = 2 * math.pi * (now.hour + now.minute / 60) / 24
    return math.sin(angle), math.cos(angle)


def _one_hot(name: str, value: str, places: Sequence[str]) -> list[float]:
    if value not in places:
        raise InputError(f"{name}: got {value!r}, want one of {', '.join(places)}")
    return [float(place == value) for place in places]


def _checked(given: FeatureInput, transforms: Transforms | None) -> tuple[Wide, Wide, Wide]:
    """Embedding (d,), similarities (k,), hit embeddings (k, d)."""
    for name, least in _LEAST.items():
        value = getattr(given, name)
        if (math.isnan(value) and name not in _MAY_BE_UNKNOWN) or math.isinf(value) or value < least:
            raise InputError(f"{name}: got {value}, want a number from {least}")
    if np.isinf(given.historical_accuracy).any():
        raise InputError("historical_accuracy: a value is infinite, want shares, or nan where unknown")
    embedding = _finite("embedding", given.embedding)
    similarities = _finite("similarities", given.similarities)
    hits = _finite("hit_embeddings", given.hit_embeddings)
    k, d = similarities.size, embedding.size
    _want_shape("embedding", embedding, embedding.ndim == 1 and d > 0, "(d,)")
    _want_shape("similarities", similarities, similarities.ndim == 1, "(k,)")
    _want_shape("hit_embeddings", hits, hits.size == k == 0 or hits.shape == (k, d), f"({k}, {d})")
    _want_count("hit_domains", given.hit_domains, k)
    _want_count("historical_accuracy", given.historical_accuracy, len(DOMAINS))
    if transforms is not None and transforms.dimension != d:
        raise InputError(f"embedding: got {d} values, the router's transforms are for {transforms.dimension}")
    return embedding, similarities, hits


def _finite(name: str, values: ArrayLike) -> Wide:
    wide = np.asarray(values, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise InputError(f"{name}: a value is not finite, want numbers")
    return wide


def _want_shape(name: str, values: Wide, ok: bool, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name}: shape {values.shape}, want {wanted}")


def _want_count(name: str, values: Sequence[object], count: int) -> None:
    if len(values) not in (0, count):
        raise InputError(f"{name}: got {len(values)} values, want {count} or none")


_LEAST = {
    "token_count": 0, "k_asked": 1, "corpus_size": 0, "turn": 1, "latency_budget_s": 0, "memory_available_gb": 0,
    "battery": 0, "concurrent": 1, "queue_depth": 0, "user_frequency": 0,
}  # fmt: skip
_MAY_BE_UNKNOWN = {"corpus_size", "memory_available_gb", "battery", "concurrent", "user_frequency"}
_AT = {place.name: place.slice for place in LAYOUT.places}
