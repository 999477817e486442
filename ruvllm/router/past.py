"""What earlier questions brought on each tier -> the 16 places of historical accuracy. Knows nothing of databases.

Four groups: the nearest earlier questions, near-duplicates among them, the question's domain, and how much is known.
Serving looks into a table of the latest outcomes (`Past`). Training plays the stored questions as a stream
(`as_a_stream`): a row sees outcomes of rows before it, never its own or a later one, and no row that trains sees the
outcome of a held-out one; held-out rows see every earlier row, as a service would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.router.layout import DOMAINS, HISTORY, N_HISTORY_TIERS

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Ints = NDArray[np.int64]

LATEST = 2048  # earlier questions that are looked at: 3 MB of vectors, a tenth of a millisecond
NEAREST = 40
NEAR_DUPLICATE = 0.85  # cosine from which the outcome of another question speaks for this one
LEAST_OUTCOMES = 5  # of a tier, below which its mean says nothing yet
_PRIOR = 10.0  # questions' worth of a tier's mean, beside its nearest outcomes
_SLAB = 256  # rows compared at a time
_MANY = 4096.0
_T = N_HISTORY_TIERS


@dataclass(frozen=True, eq=False)
class Past:
    """Outcomes by the time of one reading: of single questions, and sums by domain, which may hold more answers."""

    embedding: Array  # (n, d) unit vectors, the latest ones
    quality: Wide  # (n, 4) in [0, 1], nan where a tier was not run
    domain_sum: Wide  # (16, 4) of quality
    domain_count: Wide  # (16, 4) answers

    @cached_property
    def _prior(self) -> tuple[Wide, Wide]:
        """Sum of quality and number of outcomes, (1, 4) each."""
        return np.nansum(self.quality, axis=0)[None], np.isfinite(self.quality).sum(axis=0, dtype=np.float64)[None]

    def places(self, embeddings: Wide, domains: Ints) -> Wide:
        """Unit vectors (m, d) and domains (m,), -1 where unknown -> (m, 16).

        Raises:
            InputError: the vectors are of another dimension.
        """
        if len(self.embedding) and embeddings.shape[1] != self.embedding.shape[1]:
            raise InputError(
                f"embedding: got {embeddings.shape[1]} values, earlier questions have {self.embedding.shape[1]}"
            )
        found = np.zeros((len(embeddings), len(HISTORY)))
        if len(self.embedding):
            _near(found, _similarities(embeddings.astype(np.float32), self.embedding), self.quality, *self._prior)
        known = domains >= 0
        _by_domain(found, self.domain_sum[domains] * known[:, None], self.domain_count[domains] * known[:, None])
        return found


def make_past(embedding: Array, quality: Wide, domains: Ints, extra: tuple[Wide, Wide] | None = None) -> Past:
    """Table of `embedding` (n, d), `quality` (n, 4) and `domains` (n,), oldest first: the latest 2,048 are kept.

    `extra` are sums and counts (16, 4) by domain of answers whose vectors are not known.
    """
    sums, counts = extra or (np.zeros((len(DOMAINS), _T)), np.zeros((len(DOMAINS), _T)))
    sums, counts = sums.copy(), counts.copy()
    known = domains >= 0
    np.add.at(sums, domains[known], np.nan_to_num(quality[known]))
    np.add.at(counts, domains[known], np.isfinite(quality[known]).astype(np.float64))
    return Past(_unit(embedding[-LATEST:]), quality[-LATEST:], sums, counts)


def as_a_stream(embedding: Array, quality: Wide, domains: Ints, held_out: NDArray[np.bool_]) -> Wide:
    """Rows in their order in time -> (n, 16), see the module's docstring. Linear in n.

    `embedding` (n, d), `quality` (n, 4) with nan, `domains` (n,) with -1 where unknown, `held_out` (n,).
    """
    units = _unit(embedding)
    found = np.zeros((len(units), len(HISTORY)))
    everyone = np.ones(len(units), dtype=bool)
    for rows, sources in ((~held_out, ~held_out), (held_out, everyone)):
        _stream(found, np.flatnonzero(rows), np.flatnonzero(sources), units, quality, domains)
    return found


def _stream(found: Wide, rows: Ints, sources: Ints, units: Array, quality: Wide, domains: Ints) -> None:
    """Fill `found` for `rows` from those of `sources` that come before each."""
    before = np.searchsorted(sources, rows)  # (r,) sources before each row
    known = np.isfinite(quality[sources])
    sums = _running(np.nan_to_num(quality[sources]))  # (s + 1, 4)
    counts = _running(known.astype(np.float64))
    for at in range(0, len(rows), _SLAB):
        slab, seen = rows[at : at + _SLAB], before[at : at + _SLAB]
        first, last = max(0, int(seen[0]) - LATEST), int(seen[-1])
        window = np.arange(first, last)
        similarity = units[slab] @ units[sources[window]].T  # (r, w)
        outside = (window[None, :] >= seen[:, None]) | (window[None, :] < seen[:, None] - LATEST)
        similarity[outside] = -np.inf
        oldest = np.maximum(0, seen - LATEST)
        part = np.zeros((len(slab), found.shape[1]))
        _near(part, similarity, quality[sources[window]], sums[seen] - sums[oldest], counts[seen] - counts[oldest])
        found[slab] = part
    for domain in range(len(DOMAINS)):
        _domain_stream(found, rows[domains[rows] == domain], sources[domains[sources] == domain], quality)


def _domain_stream(found: Wide, rows: Ints, sources: Ints, quality: Wide) -> None:
    before = np.searchsorted(sources, rows)
    sums = _running(np.nan_to_num(quality[sources]))
    counts = _running(np.isfinite(quality[sources]).astype(np.float64))
    part = found[rows]
    _by_domain(part, sums[before], counts[before])
    found[rows] = part


def _similarities(rows: Array, table: Array) -> Array:
    """(m, d), (n, d) -> (m, n). One row goes without BLAS: its threads spin for longer than the product takes."""
    if len(rows) == 1:
        single: Array = np.einsum("nd,d->n", table, rows[0])[None]
        return single
    product: Array = rows @ table.T
    return product


def _running(values: Wide) -> Wide:
    """(s, 4) -> (s + 1, 4): sums of the first 0, 1, ... rows."""
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])


def _near(found: Wide, similarity: Array, quality: Wide, sums: Wide, counts: Wide) -> None:
    """Fill the places of single questions: similarity (m, n), -inf where not to be seen; sums, counts (m or 1, 4)."""
    k = min(NEAREST, similarity.shape[1])
    if k == 0:
        return
    nearest = np.argpartition(similarity, -k, axis=1)[:, -k:] if k < similarity.shape[1] else _all(similarity)
    cosine = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)  # (m, k)
    near = np.where(np.isfinite(cosine)[:, :, None], quality[nearest], np.nan)  # (m, k, 4)
    present = np.isfinite(near)
    values = np.where(present, near, 0.0)
    mean = sums / np.maximum(counts, 1.0)
    shrunk = (values.sum(axis=1) + _PRIOR * mean) / (present.sum(axis=1) + _PRIOR)
    found[:, _AT["neighbours"]] = _scaled(shrunk, counts >= LEAST_OUTCOMES)
    weight = np.clip((cosine - NEAR_DUPLICATE) / (1 - NEAR_DUPLICATE), 0.0, 1.0)  # (m, k)
    of_tier = (weight[:, :, None] * present).sum(axis=1)  # (m, 4)
    duplicate = (weight[:, :, None] * values).sum(axis=1) / np.maximum(of_tier, 1e-12)
    found[:, _AT["duplicates"]] = _scaled(duplicate, of_tier > 0)
    total = weight.sum(axis=1)
    found[:, _AT["duplicate_weight"]] = (total / (1 + total))[:, None]
    seen: NDArray[np.bool_] = np.isfinite(cosine).max(axis=1)
    best = np.where(seen, cosine.max(axis=1, initial=-1.0), 0.0)
    found[:, _AT["seen"]] = _amount(counts)
    found[:, _AT["nearest"]] = _scaled(np.maximum(best, 0.0), seen)[:, None]


def _by_domain(found: Wide, sums: Wide, counts: Wide) -> None:
    """Fill the places of the question's domain: sums and counts (m, 4)."""
    found[:, _AT["domain"]] = _scaled(sums / np.maximum(counts, 1.0), counts >= LEAST_OUTCOMES)
    found[:, _AT["domain_count"]] = _amount(counts)


def _amount(counts: Wide) -> Wide:
    """(m or 1, 4) -> (m or 1, 1)."""
    amount: Wide = np.log1p(counts.max(axis=1, keepdims=True)) / np.log1p(_MANY)
    return amount


def _all(similarity: Array) -> Ints:
    return np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)


def _scaled(share: Wide, known: NDArray[np.bool_]) -> Wide:
    """In [0.1, 1]; 0 where it is unknown."""
    scaled: Wide = np.where(known, (1 + 9 * share) / 10, 0.0)
    return scaled


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    units: Array = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return units


def _places() -> dict[str, slice]:
    """Where each group of `HISTORY` lies, by the part of its labels before the dot."""
    heads = [label.split(".")[0] for label in HISTORY]
    return {head: slice(heads.index(head), heads.index(head) + heads.count(head)) for head in dict.fromkeys(heads)}


_AT = _places()
