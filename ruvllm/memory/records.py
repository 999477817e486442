"""What memory hands out and takes in: frozen records, no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError

Vector = NDArray[np.float32]

KINDS = ("Query", "Document", "AgentStep", "Fact", "Concept")
TRUSTS = ("system", "corroborated", "untrusted")
RELATIONS = ("Cites", "Follows", "SameTopic", "AgentStep", "Derived", "Contains")  # place + 1 is memory.relation_code
Edge = tuple[int, int, str, float]  # src, dst, relation, weight
MAX_HOPS = 6  # of a walk: seven denormal weights multiplied are no longer a number
MAX_NODES = 100_000  # of a walk, in its fan, its frontier and what it hands back


@dataclass(frozen=True)
class NewNode:
    """A node to write. `embedding` is a unit vector of shape (d,), or None: then memory embeds `text`."""

    text: str
    kind: str = "Document"  # Query | Document | AgentStep | Fact | Concept
    source: str = ""
    domain: str = ""
    trust: str = "system"  # system | corroborated | untrusted
    writer: str = ""
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    confidence: float = 1.0
    embedding: Vector | None = None


@dataclass(frozen=True)
class Node:
    """A stored node, without its vector."""

    id: int
    uuid: str
    kind: str
    domain: str
    trust: str
    text: str
    source: str
    writer: str
    tags: tuple[str, ...]
    metadata: Mapping[str, object]
    confidence: float
    version: int


@dataclass(frozen=True)
class Hit:
    """A search result; `similarity` is the inner product of unit vectors, in [-1, 1]."""

    node: Node
    similarity: float
    embedding: Vector  # (d,)


@dataclass(frozen=True)
class Walk:
    """How a neighbourhood is walked; both faces of memory, SQL and replica, walk it alike.

    Hop by hop from the seeds through live nodes that `reader` may see: of each node the `fan` heaviest edges of its
    packed row that have a wanted relation, either direction; a node's score is the best product of weights on a way to
    it (a seed's is 1); the `frontier` best nodes of a hop (of equals the lower id) are gone out from in the next.

    So that two walks agree to the row: a seed that is archived, unknown or hidden from `reader` is left out; edges are
    cut to `fan` before the far ends are looked at; a node belongs to the first hop that reaches it, and its score is
    the best among the ways of that hop; the product is taken in double precision, in the order of the way; of edges of
    one weight the packed row's order decides (the lower id of the edge); hop 0 is cut to `frontier` like any other.
    """

    hops: int = 2
    fan: int = 32
    frontier: int = 64
    limit: int = 256  # nodes handed back, seeds among them: nearer hops first, then score, then id
    relations: tuple[str, ...] = ()  # empty: every relation
    reader: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.relations) - set(RELATIONS)):
            raise InputError(f"walk relations: got {unknown[0]!r}, want any of {', '.join(RELATIONS)}")
        if not 0 <= self.hops <= MAX_HOPS:
            raise InputError(f"walk hops: got {self.hops}, want 0 to {MAX_HOPS}")
        for name, got in (("fan", self.fan), ("frontier", self.frontier), ("limit", self.limit)):
            if not 1 <= got <= MAX_NODES:
                raise InputError(f"walk {name}: got {got}, want 1 to {MAX_NODES}")


@dataclass(frozen=True)
class EdgeArrays:
    """Edges as arrays (e,), for whoever computes over them."""

    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    relation: NDArray[np.int8]  # place in RELATIONS + 1
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, edges: Sequence[Edge]) -> EdgeArrays:
        src, dst, relation, weight = zip(*edges, strict=True) if edges else ((), (), (), ())
        codes = [RELATIONS.index(name) + 1 for name in relation]
        return cls(
            np.array(src, np.int64), np.array(dst, np.int64), np.array(codes, np.int8), np.array(weight, np.float32)
        )

    def tuples(self) -> tuple[Edge, ...]:
        names = [RELATIONS[code - 1] for code in self.relation.tolist()]
        return tuple(zip(self.src.tolist(), self.dst.tolist(), names, self.weight.tolist(), strict=True))


@dataclass(frozen=True)
class Neighbourhood:
    """What a walk reached. Arrays over nodes in the order of Walk.limit; edges among them, each once.

    `edges` are (src, dst, relation, weight) with both ends among `ids`, as the walk met them (that is, among the `fan`
    of a node that was gone out from), the heaviest first, then by src, dst and relation code. They are given in either
    form; the other one is made when it is asked for.
    """

    ids: NDArray[np.int64]  # (n,)
    hops: NDArray[np.int8]  # (n,) 0 for a seed
    scores: NDArray[np.float32]  # (n,)
    met: tuple[Edge, ...] | EdgeArrays

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        return self.met.tuples() if isinstance(self.met, EdgeArrays) else self.met

    @cached_property
    def edge_arrays(self) -> EdgeArrays:
        return self.met if isinstance(self.met, EdgeArrays) else EdgeArrays.of(self.met)


@dataclass(frozen=True)
class NodeColumns:
    """What is to be known of nodes without their texts, as arrays (n,) in the order of `ids`."""

    ids: NDArray[np.int64]
    kind: NDArray[np.uint8]  # place in KINDS
    trust: NDArray[np.uint8]  # place in TRUSTS
    domain: NDArray[np.int32]  # place in `domains`
    confidence: NDArray[np.float32]
    created: NDArray[np.int64]  # microseconds since 1970
    domains: tuple[str, ...]  # every domain that was heard of


@dataclass(frozen=True)
class Found:
    """A search result without texts: ids and similarities, nearest first."""

    ids: NDArray[np.int64]  # (k,)
    similarities: NDArray[np.float32]  # (k,)


@dataclass(frozen=True)
class AddReport:
    """`ids` in the order of the input; a skipped node's id is that of the live row with the same content."""

    ids: tuple[int, ...]
    written: int
    skipped: int
    token: int = 0  # a search that is given it has seen this write, whoever asks


@dataclass(frozen=True)
class WriteBack:
    """What became of an answer: outcome is written | merged | skipped | unscored."""

    outcome: str
    node: int | None
    reason: str = ""
