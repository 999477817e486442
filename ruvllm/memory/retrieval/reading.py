"""Reads memory by its faster face: the replica where there is one that may answer, else Postgres.

Knows nothing of encoders or of writing. Why the replica was not asked is counted, and logged when the reason changes.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ruvllm.database.pool import Database
from ruvllm.errors import InputError, ReplicaUnavailable
from ruvllm.memory import edges, hnsw
from ruvllm.memory.filters import Filter
from ruvllm.memory.records import Found, Hit, Neighbourhood, Vector, Walk
from ruvllm.memory.retrieval import fulltext, hybrid, rank, search
from ruvllm.memory.retrieval.cache import CacheState, SearchCache
from ruvllm.memory.retrieval.rank import Ranking

if TYPE_CHECKING:
    from psycopg import Connection

    from ruvllm.memory.replica import Replica, ReplicaState

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One search, but for what is searched for. `ef` wins over `budget_ms`; `token` is a write that must be seen."""

    k: int
    filter: Filter = search.PLAIN
    ef: int | None = None
    budget_ms: float | None = None
    exact: bool = False
    token: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= search.MAX_K:
            raise InputError(f"k: got {self.k}, want 1 to {search.MAX_K}")
        if self.ef is not None and not 1 <= self.ef <= search.MAX_K:
            raise InputError(f"ef: got {self.ef}, want 1 to {search.MAX_K}")
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise InputError(f"latency budget: got {self.budget_ms} ms, want more than 0")

    def ef_in_postgres(self, nodes: int) -> int:
        if self.ef is not None or self.budget_ms is None:
            return self.ef or hnsw.ef_search(self.k, nodes)
        return search.ef_for(self.budget_ms)

    @property
    def ef_in_process(self) -> int | None:
        """None: the replica's own choice."""
        return self.ef if self.budget_ms is None else self.ef or search.ef_for(self.budget_ms, search.IN_PROCESS)


@dataclass(frozen=True)
class ReadingState:
    """For metrics: the replica's state, None without one; how often Postgres was asked instead, by reason."""

    replica: ReplicaState | None
    fallbacks: Mapping[str, int]
    cache: CacheState


class Reader:
    """Searches, walks and look-ups of one tenant. Safe among threads; `nodes` is about how many there are."""

    def __init__(self, database: Database, nodes: int = 0) -> None:
        self.database, self.nodes = database, nodes
        self.cache: SearchCache[list[Hit]] = SearchCache()
        self._replica: Replica | None = None
        self._fallbacks: Counter[str] = Counter()
        self._reason = ""
        self._token = 0  # transaction id of this memory's last write
        self._lock = threading.Lock()

    def use(self, replica: Replica | None) -> None:
        """Ask `replica` first from now on; its owner closes it."""
        self._replica = replica
        self.cache.clear()

    def wrote(self, token: int) -> None:
        """What is read from now on has seen the transaction `token`."""
        with self._lock:
            self._token = max(self._token, token)

    @property
    def state(self) -> ReadingState:
        replica = self._replica
        return ReadingState(None if replica is None else replica.state, dict(self._fallbacks), self.cache.state)

    # -- searches

    def hits(self, vector: Vector, asked: Asked) -> list[Hit]:
        """Nodes, texts and vectors of the nearest; asked again, from the cache while nothing was written."""
        key = self._key(vector, asked)
        if key is not None and (known := self.cache.get(key)) is not None:
            return list(known)
        hits = self._hits(vector, asked)
        if key is not None and key == self._key(vector, asked):  # no write was seen in between
            for hit in hits:
                hit.embedding.flags.writeable = False  # many will hold it
            self.cache.put(key, hits)
        return list(hits)

    def found(self, vector: Vector, asked: Asked) -> Found:
        after = self._after(asked) or None
        return self._ask(
            lambda replica: replica.search(vector, asked.k, asked.filter, asked.ef_in_process, asked.exact, after),
            lambda database: search.nearest(database, vector, *self._in_postgres(asked)),
        )

    def batch(self, vectors: Vector, asked: Asked) -> list[Found]:
        ef = asked.ef_in_postgres(self.nodes)
        return self._ask(
            lambda replica: self._level(replica, asked).search_batch(
                vectors, asked.k, asked.filter, asked.ef_in_process, asked.exact
            ),
            _within(
                lambda connection: search.search_batch(connection, vectors, asked.k, asked.filter, ef, asked.exact)
            ),
        )

    def words(self, question: str, asked: Asked) -> Found:
        after = self._after(asked) or None
        return self._ask(
            lambda replica: replica.search_words(question, asked.k, asked.filter, after),
            _within(lambda connection: fulltext.search_words(connection, question, asked.k, asked.filter)),
        )

    def hybrid(self, question: str, vector: Vector, asked: Asked) -> Found:
        """By meaning and by words, fused; similarities are sums of reciprocal ranks."""
        deep = replace(asked, k=min(max(asked.k, hybrid.DEPTH), search.MAX_K))
        return hybrid.fused([self.found(vector, deep), self.words(question, deep)], asked.k)

    def concept_first(self, vector: Vector, asked: Asked) -> Found:
        with self.database.transaction() as connection:
            return hybrid.concept_first(connection, vector, asked.k, asked.filter)

    def reranked(self, found: Found, ranking: Ranking, k: int) -> Found:
        with self.database.transaction() as connection:
            return rank.reranked(connection, found, ranking, k)

    # -- what was found

    def nodes_of(self, found: Found) -> list[Hit]:
        """Hits in the order of `found`, with its similarities; what was deleted meanwhile is left out."""
        return self._ask(
            lambda replica: _hits_of(replica, found), _within(lambda connection: search.hits(connection, found))
        )

    def vectors(self, ids: Sequence[int], dimension: int) -> Vector:
        return self._ask(
            lambda replica: replica.vectors(ids),
            _within(lambda connection: search.vectors(connection, ids, dimension)),
        )

    def walk(self, seeds: Sequence[int], walk: Walk, token: int = 0) -> Neighbourhood:
        after = max(self._token, token) or None
        return self._ask(
            lambda replica: replica.walk(seeds, walk, after), lambda database: edges.walked(database, seeds, walk)
        )

    # -- which face

    def _ask(self, of_replica: Callable[[Replica], T], of_postgres: Callable[[Database], T]) -> T:
        replica = self._replica
        if replica is not None:
            try:
                answer = of_replica(replica)
            except ReplicaUnavailable as error:
                self._fell_back(replica, error)
            else:
                self._reason = ""
                return answer
        return of_postgres(self.database)

    def _fell_back(self, replica: Replica, error: ReplicaUnavailable) -> None:
        reason = "not_ready" if not replica.state.ready else "behind"
        with self._lock:
            self._fallbacks[reason] += 1
            new, self._reason = self._reason != reason, reason
        if new:
            log.warning("memory is read from Postgres: %s", error)

    def _hits(self, vector: Vector, asked: Asked) -> list[Hit]:
        if self._replica is not None:
            return self.nodes_of(self.found(vector, asked))
        return search.nearest_hits(self.database, vector, *self._in_postgres(asked))

    def _in_postgres(self, asked: Asked) -> tuple[int, Filter, int, bool]:
        return asked.k, asked.filter, asked.ef_in_postgres(self.nodes), asked.exact

    def _key(self, vector: Vector, asked: Asked) -> tuple[object, ...] | None:
        """None where no replica says what has been written, or it has not seen this memory's last write yet."""
        state = None if self._replica is None else self._replica.state
        if state is None or not state.ready or self._after(asked) >= state.position:
            return None
        return vector.tobytes(), replace(asked, token=0), state.stamp

    def _level(self, replica: Replica, asked: Asked) -> Replica:
        """`replica`, once it has seen what must be seen."""
        after = self._after(asked)
        if after and after >= replica.state.position:
            replica.follow()
            if after >= replica.state.position:
                raise ReplicaUnavailable(f"replica: it has not seen transaction {after} yet; ask Postgres")
        return replica

    def _after(self, asked: Asked) -> int:
        return max(self._token, asked.token)


def _within(ask: Callable[[Connection], T]) -> Callable[[Database], T]:
    """`ask` in a transaction."""

    def asked(database: Database) -> T:
        with database.transaction() as connection:
            return ask(connection)

    return asked


def _hits_of(replica: Replica, found: Found) -> list[Hit]:
    nodes = {node.id: node for node in replica.nodes(found.ids.tolist())}
    kept = [i for i, id in enumerate(found.ids.tolist()) if id in nodes]
    vectors = np.asarray(replica.vectors(found.ids[kept].tolist()), dtype=np.float32)
    ids, similarities = found.ids[kept].tolist(), found.similarities[kept].tolist()
    return [Hit(nodes[id], near, vectors[i]) for i, (id, near) in enumerate(zip(ids, similarities, strict=True))]
