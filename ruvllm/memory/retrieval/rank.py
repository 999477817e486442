"""Ranking by more than nearness: how fresh a node is and how often it was used. Knows nothing of search.

Computed when it is read, so nothing is rewritten as time goes by. An option: docs/retrieval.md says when it pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from ruvllm.errors import InputError
from ruvllm.memory.records import Found

CANDIDATES = 4  # times k: what is ranked anew is longer than what is handed out

_USE = """
    SELECT n.id, extract(epoch FROM %(now)s - greatest(n.created_at, u.last_used_at)) / 86400, coalesce(u.uses, 0)
    FROM memory.nodes n LEFT JOIN memory.node_usage u ON u.node = n.id AND u.node = ANY(%(ids)s)
    WHERE n.id = ANY(%(ids)s)
"""


@dataclass(frozen=True)
class Ranking:
    """score = similarity + recency · ½^(age / half_life) + strength · (1 - 1 / (1 + ln(1 + uses))).

    The sum of relevance, recency and importance of Park et al. 2023 (Generative Agents, section 4.1), importance being
    how often a node was used. Age counts from the last use. Both weights 0, the default: by similarity alone.
    """

    recency: float = 0.0
    half_life_days: float = 30.0
    strength: float = 0.0

    def __post_init__(self) -> None:
        if self.recency < 0 or self.strength < 0 or not self.half_life_days > 0:
            raise InputError(f"ranking: got {self}, want weights from 0 on and a half-life over 0 days")

    @property
    def plain(self) -> bool:
        return self.recency == 0 and self.strength == 0

    def scores(
        self, similarities: NDArray[np.float32], days: NDArray[np.float64], uses: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(n,) from (n,) each; `days` since the last use, a clock that went back counts as now."""
        fresh = 0.5 ** (np.maximum(days, 0) / self.half_life_days)
        used = 1 - 1 / (1 + np.log1p(uses))
        scores: NDArray[np.float64] = similarities + self.recency * fresh + self.strength * used
        return scores


def reranked(connection: Connection, found: Found, ranking: Ranking, k: int, now: datetime | None = None) -> Found:
    """The `k` best of `found` by `ranking`; similarities of the result are its scores. One look-up."""
    use = _use(connection, found.ids.tolist(), now or datetime.now(UTC))
    days = np.array([use.get(id, (np.inf, 0))[0] for id in found.ids.tolist()], dtype=np.float64)
    uses = np.array([use.get(id, (np.inf, 0))[1] for id in found.ids.tolist()], dtype=np.float64)
    scores = ranking.scores(found.similarities, days, uses)
    order = np.argsort(-scores, kind="stable")[:k]
    return Found(found.ids[order], scores[order].astype(np.float32))


def _use(connection: Connection, ids: Sequence[int], now: datetime) -> Mapping[int, tuple[float, float]]:
    return {id: (float(days), float(uses)) for id, days, uses in connection.execute(_USE, {"ids": ids, "now": now})}
