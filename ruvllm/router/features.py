"""Questions and what memory found -> the layout's 128 features, for one or many. Knows nothing of models or databases.

The same code serves training and serving, one question and many; what is unknown has the value that the layout
declares for it. Only the detector of languages reads question after question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ruvllm.errors import InputError
from ruvllm.router import statistics
from ruvllm.router.classifiers import Classifiers, classifiers_for
from ruvllm.router.language import language
from ruvllm.router.layout import (
    DEVICE_CLASSES,
    LAYOUT,
    N_COHERENCE,
    N_FEATURES,
    N_SHELLS,
    PRIVACY_LEVELS,
)
from ruvllm.router.past import Past
from ruvllm.router.transforms import Transforms, apply_transforms, fit_transforms

__all__ = ["FeatureInput", "Transforms", "apply_transforms", "domains_of", "extract", "extract_many", "fit_transforms"]

Array = NDArray[np.float32]
Wide = NDArray[np.float64]  # sums of squares of any finite float32 stay finite in it
Ints = NDArray[np.int64]

_COHERENT_HITS = 8
_COVERING_HITS = 5
_SOFTMAX_TEMPERATURE = 0.05
_HNSW_FANOUT = 16  # M of the smallest band, see the design's table
_MAX_GRAPH_DEPTH = 8
_MAX_HITS = 64


@dataclass(frozen=True, eq=False)
class FeatureInput:
    """What is known when a question is routed. Hits are best first; k = 0 is an empty memory or one that is down."""

    question: str
    token_count: int
    embedding: Array  # (d,)
    similarities: Array = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # (k,)
    hit_embeddings: Array = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))  # (k, d)
    encoder_id: str = ""  # whose vector it is; without classifiers for it domain and query type are unknown
    past: Past | None = None  # None: unknown
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


def extract(given: FeatureInput, transforms: Transforms | None = None) -> Array:
    """(128,) float32 within the layout's ranges.

    Raises:
        InputError: a value is not finite, negative where that means nothing, or of the wrong shape; it is named.
        ArtifactError: the encoder's classifiers are damaged.
    """
    row: Array = extract_many((given,), transforms)[0]
    return row


def extract_many(given: Sequence[FeatureInput], transforms: Transforms | None = None) -> Array:
    """(n, 128): row i is `extract(given[i], transforms)`. The vectors are of one dimension.

    Raises:
        InputError, ArtifactError: see `extract`.
    """
    if not given:
        return np.zeros((0, N_FEATURES), dtype=np.float32)
    for one in given:
        _check(one, transforms)
    features = np.zeros((len(given), N_FEATURES))
    embeddings = _stacked(given)
    for name, values in _places_of_questions(given).items():
        features[:, _AT[name]] = values
    for name, wide in _embedding_stats(embeddings, transforms).items():
        features[:, _AT[name]] = wide
    _fill_classes(features, given, embeddings)
    _fill_search_stats(features, given)
    _fill_past(features, given, embeddings)
    return np.clip(features, LAYOUT.low, LAYOUT.high).astype(np.float32)


def domains_of(features: Array) -> Ints:
    """(n, 128) -> (n,): the most likely domain of each question, -1 where it is unknown."""
    shares = features[:, _AT["domain_encoding"]]
    found: Ints = np.where(shares.any(axis=1), shares.argmax(axis=1), -1)
    return found


def _places_of_questions(given: Sequence[FeatureInput]) -> dict[str, Wide]:
    """Places that are read question by question, each (n, size)."""
    rows = [_by_itself(one) for one in given]
    return {name: np.array([row[name] for row in rows], dtype=np.float64).reshape(len(rows), -1) for name in rows[0]}


def _by_itself(given: FeatureInput) -> dict[str, ArrayLike]:
    sine, cosine = _clock_hand(given.now)
    return {
        "token_count": _log_share(given.token_count, 4096),
        "language_id": language(given.question),
        "user_frequency": _known(_log_share(1 + given.user_frequency, 1001)),
        "graph_depth": _graph_depth(given.corpus_size),
        "latency_budget": _log_share(given.latency_budget_s, 120),
        "device_class": _one_hot("device_class", given.device_class, DEVICE_CLASSES),
        "privacy_level": _one_hot("privacy_level", given.privacy_level, PRIVACY_LEVELS),
        "memory_available": _known(_log_share(0.01 + given.memory_available_gb, 1024.01)),
        "battery_level": _known((1 + 9 * given.battery) / 10),
        "concurrent_requests": _known(_log_share(given.concurrent, 64)),
        "session_turn": math.log(given.turn) / math.log(64),
        "queue_depth": _log_share(given.queue_depth, 64),
        "hour_sine": sine,
        "hour_cosine": cosine,
    }


def _embedding_stats(embeddings: Wide, transforms: Transforms | None) -> dict[str, Wide]:
    norms = np.sqrt((embeddings * embeddings).sum(axis=1))
    stats = {
        "l2_norm": norms[:, None],
        "entropy": statistics.energy_entropy(embeddings)[:, None],
        "sparsity": statistics.hoyer(embeddings, norms)[:, None],
    }
    if transforms is not None:
        stats["principal_components"] = transforms.project(embeddings)
        stats["cluster_assignment"] = transforms.assign(embeddings)
    return stats


def _fill_classes(features: Wide, given: Sequence[FeatureInput], embeddings: Wide) -> None:
    """Domain and query type, by the classifiers of each question's encoder."""
    for encoder_id in dict.fromkeys(one.encoder_id for one in given):
        classifiers = classifiers_for(encoder_id)
        if classifiers is None:
            continue
        rows = np.array([at for at, one in enumerate(given) if one.encoder_id == encoder_id])
        _require_dimension(encoder_id, classifiers, embeddings)
        features[rows, _AT["domain_encoding"]] = classifiers.domain.shares(embeddings[rows])
        features[rows, _AT["query_type"]] = classifiers.query_type.shares(embeddings[rows])


def _fill_search_stats(features: Wide, given: Sequence[FeatureInput]) -> None:
    counts = np.array([len(one.similarities) for one in given], dtype=np.int64)
    found = np.flatnonzero(counts)
    if not len(found):
        return
    rows = [given[at] for at in found.tolist()]
    asked = np.array([row.k_asked for row in rows])
    for name, values in _search_stats(rows, counts[found], asked).items():
        features[found, _AT[name]] = values


def _search_stats(given: Sequence[FeatureInput], counts: Ints, asked: Ints) -> dict[str, Wide]:
    similarities = np.zeros((len(given), int(counts.max())))  # padded
    for row, one in enumerate(given):
        similarities[row, : counts[row]] = one.similarities
    distances = np.clip(1.0 - similarities, 0.0, 2.0)
    return {
        "memory_coverage": statistics.mean_of_first(similarities, counts, _COVERING_HITS)[:, None],
        "k_retrieved": (counts / _MAX_HITS)[:, None],
        "distances": statistics.moments(distances, counts),
        "search_entropy": statistics.softmax_entropy(similarities, counts, _SOFTMAX_TEMPERATURE)[:, None],
        "recall_estimate": (counts / asked)[:, None],
        "neighborhood_density": statistics.density(distances, counts, N_SHELLS),
        "semantic_coherence": _coherence(given, np.minimum(counts, _COHERENT_HITS)),
    }


def _coherence(given: Sequence[FeatureInput], counts: Ints) -> Wide:
    """(n, 24) over the first 8 hits, all questions with as many at once."""
    found = np.zeros((len(given), N_COHERENCE))
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        hits = np.array([given[row].hit_embeddings[:count] for row in rows.tolist()], dtype=np.float64)
        found[rows] = statistics.coherence(hits, N_COHERENCE)
    return found


def _fill_past(features: Wide, given: Sequence[FeatureInput], embeddings: Wide) -> None:
    """What earlier questions brought; questions that share a table are looked up at once."""
    tables = {id(one.past): one.past for one in given if one.past is not None}
    for key, past in tables.items():
        rows = np.array([at for at, one in enumerate(given) if id(one.past) == key])
        vectors = embeddings[rows]
        norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        features[rows, _AT["historical_accuracy"]] = past.places(units, domains_of(features[rows]))


def _log_share(value: float, full: float) -> float:
    return math.log1p(value) / math.log1p(full)


def _graph_depth(corpus_size: float) -> float:
    if math.isnan(corpus_size):
        return 0.0
    return (1 + math.log1p(corpus_size) / math.log(_HNSW_FANOUT)) / (_MAX_GRAPH_DEPTH + 1)


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _clock_hand(now: datetime | None) -> tuple[float, float]:
    if now is None:
        return 0.0, 0.0
    angle = 2 * math.pi * (now.hour + now.minute / 60) / 24
    return math.sin(angle), math.cos(angle)


def _one_hot(name: str, value: str, places: Sequence[str]) -> list[float]:
    if value not in places:
        raise InputError(f"{name}: got {value!r}, want one of {', '.join(places)}")
    return [float(place == value) for place in places]


def _stacked(given: Sequence[FeatureInput]) -> Wide:
    """(n, d)."""
    sizes = {one.embedding.size for one in given}
    if len(sizes) > 1:
        raise InputError(f"embedding: vectors of {', '.join(map(str, sorted(sizes)))} values, want one dimension")
    return np.array([one.embedding for one in given], dtype=np.float64)


def _require_dimension(encoder_id: str, classifiers: Classifiers, embeddings: Wide) -> None:
    if classifiers.dimension != embeddings.shape[1]:
        raise InputError(
            f"embedding: got {embeddings.shape[1]} values, encoder {encoder_id} gives {classifiers.dimension}"
        )


def _check(given: FeatureInput, transforms: Transforms | None) -> None:
    """Embedding (d,), similarities (k,), hit embeddings (k, d), numbers from their least value."""
    for name, least in _LEAST.items():
        value = getattr(given, name)
        if (math.isnan(value) and name not in _MAY_BE_UNKNOWN) or math.isinf(value) or value < least:
            raise InputError(f"{name}: got {value}, want a number from {least}")
    for name in ("embedding", "similarities", "hit_embeddings"):
        if not np.isfinite(getattr(given, name)).all():
            raise InputError(f"{name}: a value is not finite, want numbers")
    embedding, similarities, hits = given.embedding, given.similarities, given.hit_embeddings
    k, d = similarities.size, embedding.size
    _want_shape("embedding", embedding, embedding.ndim == 1 and d > 0, "(d,)")
    _want_shape("similarities", similarities, similarities.ndim == 1, "(k,)")
    _want_shape("hit_embeddings", hits, hits.size == k == 0 or hits.shape == (k, d), f"({k}, {d})")
    if transforms is not None and transforms.dimension != d:
        raise InputError(f"embedding: got {d} values, the router's transforms are for {transforms.dimension}")


def _want_shape(name: str, values: Array, ok: bool, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name}: shape {values.shape}, want {wanted}")


_LEAST = {
    "token_count": 0, "k_asked": 1, "corpus_size": 0, "turn": 1, "latency_budget_s": 0, "memory_available_gb": 0,
    "battery": 0, "concurrent": 1, "queue_depth": 0, "user_frequency": 0,
}  # fmt: skip
_MAY_BE_UNKNOWN = {"corpus_size", "memory_available_gb", "battery", "concurrent", "user_frequency"}
_AT: Mapping[str, slice] = {place.name: place.slice for place in LAYOUT.places}
