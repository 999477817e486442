"""What memory hands out and takes in: frozen records, no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


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
