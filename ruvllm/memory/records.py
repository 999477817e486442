"""What memory hands out and takes in: frozen records, no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

KINDS = ("Query", "Document", "AgentStep", "Fact", "Concept")
TRUSTS = ("system", "corroborated", "untrusted")
RELATIONS = ("Cites", "Follows", "SameTopic", "AgentStep", "Derived", "Contains")  # place + 1 is memory.relation_code
Edge = tuple[int, int, str, float]  # src, dst, relation, weight


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
    """

    hops: int = 2
    fan: int = 32
    frontier: int = 64
    limit: int = 256  # nodes handed back, seeds among them: nearer hops first, then score, then id
    relations: tuple[str, ...] = ()  # empty: every relation
    reader: str = ""


@dataclass(frozen=True)
class Neighbourhood:
    """What a walk reached. Arrays over nodes in the order of Walk.limit; edges among them, each once.

    `edges` are (src, dst, relation, weight) with both ends among `ids`, as the walk met them, the heaviest first.
    """

    ids: NDArray[np.int64]  # (n,)
    hops: NDArray[np.int8]  # (n,) 0 for a seed
    scores: NDArray[np.float32]  # (n,)
    edges: tuple[Edge, ...]


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


@dataclass(frozen=True)
class WriteBack:
    """What became of an answer: outcome is written | merged | skipped | unscored."""

    outcome: str
    node: int | None
    reason: str = ""
