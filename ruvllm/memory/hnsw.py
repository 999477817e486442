"""HNSW parameters by corpus size, as data; knows nothing of the database."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EF_SEARCH = 1000  # pgvector's own limit


@dataclass(frozen=True)
class Band:
    """Parameters for a corpus of fewer than `below` nodes."""

    below: float
    m: int
    ef_construction: int
    ef_search: int


# The last row stands in for partitions with binary quantisation, which later work brings.
BANDS = (
    Band(100_000, 16, 100, 32),
    Band(1_000_000, 32, 200, 64),
    Band(10_000_000, 48, 300, 128),
    Band(float("inf"), 64, 400, 256),
)


def band(nodes: int) -> Band:
    return next(b for b in BANDS if nodes < b.below)


def ef_search(k: int, nodes: int) -> int:
    """How many candidates a search of `k` keeps: at least k, or the scan hands out fewer."""
    return min(max(k, band(nodes).ef_search), MAX_EF_SEARCH)
