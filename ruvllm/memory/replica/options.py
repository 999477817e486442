"""What can be chosen about a replica, and what was measured to choose for it; all of it data.

The figures in the tables below are costs on one core at 384 dimensions, used only as ratios of each other: which of
two ways to the same answer is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

from ruvllm.settings import Settings


@dataclass(frozen=True)
class ReplicaOptions:
    max_staleness_s: float = 5.0  # older than this, a search is refused, and Postgres is asked
    poll_s: float = (
        0.5  # how often the log is read when no notification wakes the follower; 0: nobody follows by itself
    )
    memory_budget: int = 0  # bytes of vectors, graph and arrays; 0: no bound
    wait: bool = True  # False: `open` comes back at once and a missing base is built in the background
    words: bool = True  # keep BM25 beside the vectors
    lock: bool = True  # keep the mapped graph in memory, as far as the system allows (pinned.py)
    build_threads: int = 1
    batch_threads: int = 1  # of search_batch
    rebuild_share: float = 0.05  # of the base: so much that came after it, and a new one is built in the background
    rebuild_least: int = 2_000
    rebuild_most: int = 20_000  # rows searched one by one: 1 ms
    seed: int = 1  # of faiss's level draw

    @classmethod
    def of(cls, settings: Settings) -> ReplicaOptions:
        return cls(
            max_staleness_s=settings.replica_staleness_s,
            poll_s=settings.replica_poll_s,
            memory_budget=settings.replica_memory_mb * 2**20,
            lock=settings.replica_lock,
        )

    def outgrown(self, base: int, after: int) -> bool:
        """Whether `after` rows that came later are too many for a base of `base`."""
        return after > min(max(self.rebuild_share * base, self.rebuild_least), self.rebuild_most)


@dataclass(frozen=True)
class ReplicaState:
    """For metrics and for the choice between replica and Postgres."""

    ready: bool
    reason: str  # why it is not ready, or what last went wrong; else empty
    nodes: int  # that a search can find
    delta: int  # rows that came after the base
    tombstones: int  # rows of the base that are archived, deleted or replaced
    staleness_s: float | None  # since the last time it was level with Postgres; None while there is no base
    bytes: int  # vectors, graph and arrays, mapped or not; texts stay on disk
    position: int  # xmin of what it has seen
    stamp: int = 0  # another one whenever what a search can see has changed


@dataclass(frozen=True)
class Storage:
    """How a graph of fewer than `below` nodes keeps its vectors."""

    below: float
    kind: str  # fp16 | 8bit


# Half precision is what Postgres holds, so nothing is lost, and beside float32 it is as fast at half the size. int8
# halves it again, for a little recall and a quarter more time (faiss-half and faiss-byte in tests/benchmarks/memory).
STORAGE = (Storage(5_000_000, "fp16"), Storage(float("inf"), "8bit"))


def storage(nodes: int) -> str:
    return next(row.kind for row in STORAGE if nodes < row.below)


# -- a search with a filter: inside the graph, or through the selected rows one by one

TEST_NS = 1.7  # to ask a row's bit
ROW_NS = 140.0  # to compare a selected row, without the graph
STEP_NS = 3_300.0  # one candidate of efSearch
WIDER = 0.3  # efSearch is widened to WIDER / (share of selected rows): recall@10 then stays within 0.01 of exact
MAX_EF = 1_000
ENOUGH = 2  # times efSearch: so many selected rows must be met on the way, or the filter shuns the query's surroundings


def widened(ef: int, share: float) -> int:
    """efSearch for a filter that `share` of the rows pass."""
    return min(max(ef, round(ef * WIDER / max(share, 1e-9))), MAX_EF)


def scan_is_cheaper(rows: int, selected: int, ef: int) -> bool:
    """Whether comparing the selected rows one by one costs less than the graph at `ef` widened for them."""
    wide = ef * WIDER * rows / max(selected, 1)
    return rows * TEST_NS + selected * ROW_NS <= max(ef, wide) * STEP_NS
