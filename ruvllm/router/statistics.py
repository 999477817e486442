"""Statistics of vectors and of what a search found, for n questions at once. Knows nothing of places or of questions.

Questions may have found different numbers of hits: the rows of `similarities` are padded behind the first k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]
Ints = NDArray[np.int64]


def entropy(shares: Wide, counts: Ints) -> Wide:
    """(n, k), rows sum to 1 -> (n,) in [0, 1]: 1 where the `counts` (n,) shares are equal, 0 for a single one."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    surprise: Wide = -(shares * logs).sum(axis=1)
    return np.where(counts > 1, surprise / np.log(np.maximum(counts, 2)), 0.0)


def energy_entropy(embeddings: Wide) -> Wide:
    """(n, d) -> (n,): entropy of the squared components; 0 for a vector of zeros."""
    squares = embeddings * embeddings
    totals = squares.sum(axis=1, keepdims=True)
    shares = np.divide(squares, totals, out=np.zeros_like(squares), where=totals > 0)
    return entropy(shares, np.full(len(embeddings), embeddings.shape[1], dtype=np.int64))


def hoyer(embeddings: Wide, norms: Wide) -> Wide:
    """(n, d), (n,) -> (n,). Hoyer 2004: 0 where all components have one size, 1 where a single one is not 0."""
    root = np.sqrt(embeddings.shape[1])
    if root == 1:
        return np.zeros(len(embeddings))
    ratio = np.divide(np.abs(embeddings).sum(axis=1), norms, out=np.full(len(norms), root), where=norms > 0)
    sparsity: Wide = (root - ratio) / (root - 1)
    return sparsity


def softmax_entropy(similarities: Wide, counts: Ints, temperature: float) -> Wide:
    """(n, k) -> (n,): entropy of softmax(similarity / temperature) over the first `counts` of each row, all over 0."""
    logits = np.where(_present(similarities, counts), similarities, -np.inf)
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return entropy(weights / weights.sum(axis=1, keepdims=True), counts)


def moments(values: Wide, counts: Ints) -> Wide:
    """(n, k) -> (n, 4): mean, standard deviation, least and greatest of the first `counts` of each row, all over 0."""
    present = _present(values, counts)
    mean = np.where(present, values, 0.0).sum(axis=1) / counts
    squares = np.where(present, values - mean[:, None], 0.0) ** 2
    return np.stack(
        [
            mean,
            np.sqrt(squares.sum(axis=1) / counts),
            np.where(present, values, np.inf).min(axis=1),
            np.where(present, values, -np.inf).max(axis=1),
        ],
        axis=1,
    )


def density(distances: Wide, counts: Ints, shells: int) -> Wide:
    """(n, k) -> (n, shells): share of each row's first `counts` in shells of distance 0 to 1, the last one open."""
    n = len(distances)
    shell = np.minimum((distances * shells).astype(np.int64), shells - 1)  # (n, k)
    places = (np.arange(n)[:, None] * shells + shell)[_present(distances, counts)]
    found: Wide = np.bincount(places, minlength=n * shells).reshape(n, shells) / counts[:, None]
    return found


def coherence(hits: Wide, places: int) -> Wide:
    """(n, m, d) -> (n, places): rising quantiles of the m (m - 1) / 2 pairwise similarities; zeros for a single hit."""
    n, m, _ = hits.shape
    if m < 2:
        return np.zeros((n, places))
    first, second = np.triu_indices(m, k=1)
    ordered = np.sort((hits @ hits.transpose(0, 2, 1))[:, first, second], axis=1)  # (n, pairs)
    at = np.linspace(0, ordered.shape[1] - 1, places)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, ordered.shape[1] - 1)
    quantiles: Wide = ordered[:, low] + (at - low) * (ordered[:, high] - ordered[:, low])
    return quantiles


def mean_of_first(values: Wide, counts: Ints, most: int) -> Wide:
    """(n, k) -> (n,): mean of at most `most` first ones of each row's `counts`, all over 0."""
    taken = np.minimum(counts, most)
    kept: Wide = np.where(_present(values, taken), values, 0.0).sum(axis=1) / taken
    return kept


def _present(values: Wide, counts: Ints) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = np.arange(values.shape[1]) < counts[:, None]
    return present
