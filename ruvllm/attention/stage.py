"""One question's retrieval with attention: expand, attend, rank. Knows nothing of prompts or of models that answer.

Without a model, or with one of another encoder, the order is the one before attention, and `Ranked.attended` is None:
attention is used only where it was trained and has passed its gate.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ruvllm.attention.gather import Reach, gather
from ruvllm.attention.graph import Array, Rows, Subgraph
from ruvllm.attention.model import AttentionModel
from ruvllm.attention.runtime import Attended
from ruvllm.attention.source import Source
from ruvllm.memory.records import Vector

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Node ids best first. `prior` and `scores` stand in the same order; the same numbers where nothing attended."""

    ids: Rows  # (n,)
    scores: Array  # (n,)
    prior: Array  # (n,)
    graph: Subgraph
    attended: Attended | None
    stage_ms: dict[str, float]  # expand, attend

    @property
    def entropy(self) -> float:
        """Of attention's choice, in [0, 1], for the router's coherence place; 1 where nothing is known."""
        return self.attended.entropy if self.attended else 1.0

    @property
    def summary(self) -> Array | None:
        """(width,) what was attended to, in one vector; None where nothing attended."""
        return self.attended.summary if self.attended else None


@dataclass(frozen=True)
class Placed:
    """A node before and after attention: its place in the plain search (0: not found there), and both scores."""

    node: int
    before: int
    score_before: float
    score: float
    hop: int

    def as_dict(self) -> dict[str, Any]:
        return {"node": self.node, "before": self.before, "score_before": round(self.score_before, 6),
                "score": round(self.score, 6), "hop": self.hop}  # fmt: skip


def placed(ranked: Ranked, before: Mapping[int, int]) -> dict[int, Placed]:
    """By id, in attention's order; `before` holds places from 1 in the plain search."""
    hops = dict(zip(ranked.graph.ids.tolist(), ranked.graph.hop.tolist(), strict=True))
    rows = zip(ranked.ids.tolist(), ranked.prior.tolist(), ranked.scores.tolist(), strict=True)
    return {id: Placed(id, before.get(id, 0), prior, score, int(hops[id])) for id, prior, score in rows}


class Retriever:
    """Ranks what memory holds for a question. Safe among threads."""

    def __init__(
        self, source: Source, encoder: str, model: AttentionModel | None = None, reach: Reach | None = None
    ) -> None:
        """`encoder` is the id of what embeds questions and nodes."""
        self.source, self.reach = source, reach or Reach()
        if model is not None and model.encoder != encoder:
            log.warning("attention %s was trained on %s, not %s: off", model.version, model.encoder, encoder)
            model = None
        self.model = model
        self._runtime = model.runtime() if model else None

    def rank(self, question: str, vector: Vector, reader: str = "") -> Ranked:
        """Nodes for `question`, whose unit vector is `vector` (d,).

        Raises:
            InputError: the vector is not finite.
            DatabaseError: memory is out of reach.
        """
        started = time.perf_counter()
        graph = gather(self.source, question, vector, self.reach, reader)
        expanded = time.perf_counter()
        attended = self._runtime.attend(graph) if self._runtime else None
        scores = attended.scores if attended else graph.prior
        order = np.argsort(-scores, kind="stable")
        times = {"expand": (expanded - started) * 1000, "attend": (time.perf_counter() - expanded) * 1000}
        return Ranked(graph.ids[order], scores[order], graph.prior[order], graph, attended, times)
