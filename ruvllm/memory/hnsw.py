"""HNSW parameters by corpus size and by latency budget, as data; knows nothing of the database."""

from __future__ import annotations

from dataclasses import dataclass

MAX_EF_SEARCH = 1000  # pgvector's own limit; an iterative scan finds more than that, in rounds of so many


@dataclass(frozen=True)
class Band:
    """Parameters for a corpus of fewer than `below` nodes."""

    below: float
    m: int
    ef_construction: int
    ef_search: int


@dataclass(frozen=True)
class Budget:
    """What efSearch a search of less than `below_ms` milliseconds can afford."""

    below_ms: float
    ef_search: int


# The last row stands in for partitions with binary quantisation (docs of the shards). The specification's first row has
# efSearch 32. Measured so, of 50,000 stored vectors a share of .996 found themselves, and recall on MuSiQue was .593
# beside .636 of an exact search; it costs some 0.1 ms. A latency budget of under 4 ms still asks for 32 (BUDGETS).
BANDS = (
    Band(100_000, 16, 100, 64),
    Band(1_000_000, 32, 200, 64),
    Band(10_000_000, 48, 300, 128),
    Band(float("inf"), 64, 400, 256),
)

# From 1.9 ms at efSearch 64 on 100,000 × 384 halfvec with M 32: a query costs in proportion to efSearch, and its tail
# on a busy machine twice its median.
BUDGETS = (
    Budget(4.0, 32),
    Budget(8.0, 64),
    Budget(16.0, 128),
    Budget(float("inf"), 256),
)


def band(nodes: int) -> Band:
    return next(b for b in BANDS if nodes < b.below)


def ef_search(k: int, nodes: int, budget_ms: float | None = None) -> int:
    """How many candidates a search of `k` keeps: at least k, or one round of the scan hands out fewer.

    Beyond that the latency budget's value where there is one, else the corpus's band's; never over 1,000, so that a
    larger k takes several rounds (hnsw.iterative_scan, which every connection of ours has on).
    """
    wanted = band(nodes).ef_search if budget_ms is None else affordable(budget_ms)
    return min(max(k, wanted), MAX_EF_SEARCH)


def affordable(budget_ms: float) -> int:
    return next(b.ef_search for b in BUDGETS if budget_ms < b.below_ms)
