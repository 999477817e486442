"""Vectors to measure with: clustered, seeded, unit, with exact neighbours; cached as .npy. Knows nothing of indexes.

    python -m tests.benchmarks.memory.vectors --n 100000 --dim 384 --cache FOLDER

A vector is a topic's centre plus noise that is strong along few directions and weak along the rest, as embeddings of
text are: `spectrum` and `SPREAD` were chosen, before any index was measured, so that spectrum and local intrinsic
dimension come near those of real ones (MiniLM-L6, 1,500 SQuAD passages: 10.7, questions: 9.0; 1,500 made vectors:
13.4, so a little harder to search). Every vector is rounded to half precision, so that an index over halves and one
over floats hold the same vectors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
TRUTH_K = 64
_CHUNK = 50_000
SEED = 20_261
SPREAD = 1.0  # length of the noise beside a centre of length 1
PERTURBED = 0.35  # length of what sets a query apart from the vector that it was made from


@dataclass(frozen=True)
class Corpus:
    """Unit vectors, queries made from them, and each query's exact neighbours."""

    name: str
    vectors: Halves  # (n, d), mapped from disk
    queries: Floats  # (q, d)
    truth: NDArray[np.int64]  # (q, TRUTH_K) rows of `vectors`, nearest first
    similarities: Floats  # (q, TRUTH_K)

    @property
    def n(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def recall(self, found: NDArray[np.int64], k: int) -> float:
        """Mean over queries of how many of the k nearest are in found[:, :k]; ties with the k-th count as it does."""
        hits = [len(np.intersect1d(row[:k], near[:k])) for row, near in zip(found, self.truth, strict=False)]
        return float(np.mean(hits)) / k

    def floats(self) -> Floats:
        """(n, d) in memory."""
        return np.asarray(self.vectors, dtype=np.float32)


def made(n: int, dim: int, queries: int, cache: Path) -> Corpus:
    """The corpus of these sizes: from the cache, else made and kept there."""
    name = f"made-{n}x{dim}-seed{SEED}"
    path = cache / f"{name}.npy"
    if not path.exists():
        _write(path, _chunks(n, dim), (n, dim))
    vectors = np.load(path, mmap_mode="r")
    return _with_truth(name, vectors, _queries(vectors, queries), cache)


def given(data: Path, queries: int, cache: Path, n: int | None = None) -> Corpus:
    """Vectors of a user's own .npy, (m, d); the last `queries` rows are the queries and not in the index."""
    whole = np.load(data, mmap_mode="r")
    rows = np.asarray(whole[: n + queries] if n else whole, dtype=np.float32)
    units = _unit_halves(rows)
    name = f"{data.stem}-{len(units) - queries}x{units.shape[1]}"
    return _with_truth(name, units[:-queries], units[-queries:].astype(np.float32), cache)


def intrinsic_dimension(vectors: Floats, k: int = 20) -> float:
    """Mean local intrinsic dimension by maximum likelihood over k neighbours (Levina and Bickel 2004, equation 8)."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.sort(np.partition(similarity, -k, axis=1)[:, -k:], axis=1)[:, ::-1]  # (n, k)
    distances = np.sqrt(np.maximum(2 - 2 * nearest, 1e-12))
    inverse = np.log(distances[:, -1:] / distances[:, :-1]).sum(axis=1) / (k - 2)
    return float(1 / np.mean(inverse))


def exact(vectors: Halves, queries: Floats, k: int = TRUTH_K) -> tuple[NDArray[np.int64], Floats]:
    """Rows of the k nearest and their inner products, (q, k) each, by blocked matrix products."""
    best = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), _CHUNK):
        scores = queries @ np.asarray(vectors[start : start + _CHUNK], dtype=np.float32).T  # (q, chunk)
        best, rows = _merged(best, rows, scores, start, k)
    return rows, best


def _merged(
    best: Floats, rows: NDArray[np.int64], scores: Floats, start: int, k: int
) -> tuple[Floats, NDArray[np.int64]]:
    places = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    both = np.concatenate([best, np.take_along_axis(scores, places, axis=1)], axis=1)
    names = np.concatenate([rows, places + start], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(both, order, axis=1), np.take_along_axis(names, order, axis=1)


# -- making


def clusters(n: int) -> int:
    return max(16, round(n**0.5))


def cluster_of(n: int) -> NDArray[np.int64]:
    """(n,) whose topic each vector is; topics are of unequal size, as topics are."""
    weights = np.random.default_rng(SEED).gamma(1.0, size=clusters(n)) + 0.05
    return np.random.default_rng(SEED + 1).choice(clusters(n), size=n, p=weights / weights.sum())


def spectrum(dim: int) -> Floats:
    """(d,) scale of the noise along each direction, of length 1: a power law, as covariances of embeddings are."""
    scale = np.arange(1, dim + 1) ** -0.5
    return (scale / np.linalg.norm(scale)).astype(np.float32)


def _basis(dim: int) -> Floats:
    """(d, d) orthonormal directions of the noise, scaled by the spectrum."""
    directions = np.linalg.qr(np.random.default_rng(SEED + 2).standard_normal((dim, dim)))[0]
    return (spectrum(dim)[:, None] * directions.T).astype(np.float32)


def _noise(random: np.random.Generator, rows: int, basis: Floats) -> Floats:
    return random.standard_normal((rows, len(basis)), dtype=np.float32) @ basis


def _chunks(n: int, dim: int) -> Iterator[Halves]:
    basis, topics = _basis(dim), cluster_of(n)
    centres = _noise(np.random.default_rng(SEED + 3), clusters(n), basis)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for start in range(0, n, _CHUNK):
        mine = topics[start : start + _CHUNK]
        noise = _noise(np.random.default_rng((SEED, 4, start)), len(mine), basis)
        yield _unit_halves(centres[mine] + SPREAD * noise)


def _queries(vectors: Halves, queries: int) -> Floats:
    """(q, d) vectors of the corpus, each moved by noise of the same kind: near its topic, equal to no row."""
    random = np.random.default_rng(SEED + 5)
    rows = np.sort(random.choice(len(vectors), size=queries, replace=queries > len(vectors)))
    bases = np.asarray(vectors[rows], dtype=np.float32)
    moved = bases + PERTURBED * _noise(random, queries, _basis(vectors.shape[1]))
    return _unit_halves(moved[random.permutation(queries)]).astype(np.float32)


def _unit_halves(rows: Floats) -> Halves:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _write(path: Path, chunks: Iterator[Halves], shape: tuple[int, int]) -> None:
    """Whole or not at all: a killed run leaves no half file under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    written = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    start = 0
    for chunk in chunks:
        written[start : start + len(chunk)] = chunk
        start += len(chunk)
    written.flush()
    partial.replace(path)


def _with_truth(name: str, vectors: Halves, queries: Floats, cache: Path) -> Corpus:
    path = cache / f"{name}-truth-{len(queries)}x{TRUTH_K}.npz"
    if not path.exists():
        rows, similarities = exact(vectors, queries)
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, rows=rows, similarities=similarities)
        partial.replace(path)
    with np.load(path) as kept:
        return Corpus(name, vectors, queries, kept["rows"], kept["similarities"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--cache", type=Path, required=True)
    chosen = parser.parse_args()
    corpus = made(chosen.n, chosen.dim, chosen.queries, chosen.cache)
    sample = np.asarray(corpus.vectors[:: max(1, corpus.n // 4000)], dtype=np.float32)
    print(f"{corpus.name}: {corpus.n:,} vectors in {clusters(corpus.n):,} topics, {len(corpus.queries):,} queries; "
          f"mean similarity of the 10th neighbour {corpus.similarities[:, 9].mean():.3f}; local intrinsic dimension "
          f"of a sample of {len(sample):,}: {intrinsic_dimension(sample):.1f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
