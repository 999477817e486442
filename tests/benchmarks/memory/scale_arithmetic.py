"""What 10 million to a billion nodes need, computed from what was measured on fewer. Knows nothing of how to measure.

Every assumption that is not a measurement is a constant or a row of a table here, and is printed beside the results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ruvllm.memory import hnsw
from tests.benchmarks.memory.billion import Figures, Search

GIB = 2**30
SIZES = (10_000_000, 100_000_000, 1_000_000_000)
DIMENSIONS = (128, 384)  # 384 is the default encoder's
PARTITION = 1_250_000  # rows of a partition
WANTED_RECALL = 0.95
ROW_BYTES = 1_200  # assumed: text, metadata, keys and packed edges of a node, beside its vector
RESIDENT = 0.75  # share of a machine's memory that indexes may fill
FREE = 0.7  # share of a disk that may be full
NEIGHBOUR_BYTES = 12  # of an index, for each of M: 2 M tuple identifiers of 6 bytes on the lowest layer
READS_S = 300_000  # assumed: random 8 KiB reads a second of a machine's NVMe disks
COPIES = 2  # of every byte: the primary's and its synchronous standby's


@dataclass(frozen=True)
class Machine:
    """An assumed price of a rented dedicated server, in euros a month without VAT: put your own in."""

    name: str
    cores: int
    memory_gib: int
    disk_gib: int
    euros: int


PRICES_OF = "November 2026, assumed and not a quotation"
MACHINES = (
    Machine("8 cores, 64 GiB, 1.9 TB", 8, 64, 1_900, 75),
    Machine("16 cores, 128 GiB, 3.8 TB", 16, 128, 3_800, 140),
    Machine("32 cores, 256 GiB, 7.6 TB", 32, 256, 7_600, 270),
    Machine("48 cores, 512 GiB, 15 TB", 48, 512, 15_000, 520),
)


@dataclass(frozen=True)
class Mix:
    """Shares of the nodes in each tier."""

    name: str
    hot: float
    warm: float
    cold: float


MIXES = (
    Mix("all hot", 1, 0, 0),
    Mix("all warm", 0, 1, 0),
    Mix("5 % hot, 45 % warm, 50 % cold", 0.05, 0.45, 0.5),
)


@dataclass(frozen=True)
class Rates:
    """Of one node: bytes and CPU seconds; of one query: CPU milliseconds of one partition."""

    heap_bytes: float
    hot_bytes: float
    warm_bytes: float
    hot_build_s: float
    warm_build_s: float
    hot_query_ms: float
    warm_query_ms: float
    candidates: int
    recall: float


@dataclass(frozen=True)
class Need:
    """Of one size, dimension and mix; memory and disk of all copies together."""

    nodes: int
    dimension: int
    mix: str
    memory_gib: float
    disk_gib: float
    build_core_hours: float  # of one copy: the standby replays it
    query_cpu_ms: float  # over all hot and warm partitions, without parallel work
    query_reads: float  # of rows to be ranked again, each somewhere else on disk: what is cached is not counted off
    machine: str
    machines: int
    build_hours: float  # wall-clock, all cores of the primaries building
    queries_s: float  # that the primaries can answer: two in three of their cores, or their disks, whichever ends first
    euros: int


def rates(measured: Figures, dimension: int) -> Rates:
    """Of a node of `dimension`: the vector's share of each figure grows with it, the rest stays as measured."""
    growth = dimension / measured.dim
    halves, bits = 2.0 * (dimension - measured.dim), (dimension - measured.dim) / 8
    chosen = choose(measured.searches)
    hot_rows = max(measured.hot_rows, 2)
    deeper, hot_deeper = _deeper(measured.n / measured.partitions), _deeper(hot_rows)
    was, will = hnsw.band(hot_rows), hnsw.band(PARTITION)
    return Rates(
        heap_bytes=measured.heap_bytes / measured.n + halves,
        hot_bytes=measured.hot_bytes / hot_rows + halves + NEIGHBOUR_BYTES * (will.m - was.m),
        warm_bytes=measured.warm_bytes / measured.n + bits,
        hot_build_s=measured.hot_build_cpu_s
        / hot_rows
        * hot_deeper
        * growth
        * will.ef_construction
        / was.ef_construction,
        warm_build_s=measured.build_cpu_s / measured.n * deeper * growth,
        hot_query_ms=measured.hot_cpu_ms * hot_deeper * growth * will.ef_search / was.ef_search,
        warm_query_ms=chosen.cpu_ms / measured.partitions * deeper * growth,
        candidates=chosen.candidates,
        recall=chosen.recall,
    )


def _deeper(rows: float) -> float:
    """An insertion and a search go down log n."""
    return math.log(PARTITION) / math.log(rows)


def choose(searches: tuple[Search, ...]) -> Search:
    """The cheapest that reaches the wanted recall, else the one that comes nearest."""
    enough = [each for each in searches if each.recall >= WANTED_RECALL]
    return min(enough, key=lambda each: each.cpu_ms) if enough else max(searches, key=lambda each: each.recall)


def needs(measured: Figures) -> list[Need]:
    return [
        need(rates(measured, dimension), nodes, dimension, mix)
        for dimension in DIMENSIONS
        for nodes in SIZES
        for mix in MIXES
    ]


def need(each: Rates, nodes: int, dimension: int, mix: Mix) -> Need:
    memory = COPIES * nodes * (mix.hot * each.hot_bytes + mix.warm * each.warm_bytes) / GIB
    index = mix.hot * each.hot_bytes + mix.warm * each.warm_bytes
    disk = COPIES * nodes * (ROW_BYTES + each.heap_bytes + index) / GIB
    build_hours = nodes * (mix.hot * each.hot_build_s + mix.warm * each.warm_build_s) / 3600
    partitions = nodes / PARTITION
    query_ms = partitions * (mix.hot * each.hot_query_ms + mix.warm * each.warm_query_ms)
    reads = partitions * mix.warm * each.candidates
    machine, count = cheapest(memory, disk)
    primaries = count / COPIES
    by_disk = READS_S * primaries / reads if reads else math.inf
    by_cpu = 1000 * machine.cores * primaries * 2 / 3 / query_ms
    return Need(nodes, dimension, mix.name, memory, disk, build_hours, query_ms, reads, machine.name, count,
                build_hours / (machine.cores * primaries), min(by_cpu, by_disk), machine.euros * count)  # fmt: skip


def cheapest(memory_gib: float, disk_gib: float) -> tuple[Machine, int]:
    """Machines of one kind that hold it all, a whole number of them for each copy."""

    def count(machine: Machine) -> int:
        each = max(memory_gib / (RESIDENT * machine.memory_gib), disk_gib / (FREE * machine.disk_gib)) / COPIES
        return COPIES * math.ceil(each)

    best = min(MACHINES, key=lambda machine: (count(machine) * machine.euros, count(machine)))
    return best, count(best)
