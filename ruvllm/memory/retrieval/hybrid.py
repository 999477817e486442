"""Rankings made one: by meaning and by words, or plain and by concept. Knows nothing of how each was made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from psycopg import Connection

from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, Vector
from ruvllm.memory.retrieval.search import members, search

# The constant of reciprocal-rank fusion. Cormack, Clarke & Büttcher 2009 (section 2) have 60, made for fusing many
# systems; of two, 20 was better (docs/retrieval.md, the row "the paper's constant").
RRF = 20
DEPTH = 100  # of each ranking at least: what is fused is longer than what is asked for
CONCEPTS = 8  # looked at before their members


def fused(rankings: Sequence[Found], k: int, constant: int = RRF) -> Found:
    """The `k` best by the sum of 1 / (constant + rank), rank from 1; of equals the one met first.

    Similarities of the result are those sums.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking.ids.tolist(), start=1):
            scores[id] = scores.get(id, 0.0) + 1.0 / (constant + rank)
    best = sorted(scores.items(), key=lambda pair: -pair[1])[:k]  # stable: first met is first
    return Found(
        np.array([id for id, _ in best], dtype=np.int64), np.array([score for _, score in best], dtype=np.float32)
    )


def concept_first(connection: Connection, vector: Vector, k: int, filter: Filter) -> Found:
    """The plain search of `vector` (d,) fused with the members of the concepts nearest to it."""
    plain = search(connection, vector, k, filter)
    concepts = search(connection, vector, CONCEPTS, Filter(kinds=("Concept",), reader=filter.reader))
    if not len(concepts.ids):
        return plain
    return fused([plain, members(connection, vector, concepts.ids.tolist(), k, filter)], k)
