"""Puts the real gateway together. Starts even while Postgres is away: memory then joins when it is back.

Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from threadpoolctl import threadpool_limits

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database import open_database
from ruvllm.database.pool import Database
from ruvllm.embedding import EmbeddingAdapter, open_embedder
from ruvllm.errors import ContractError, DatabaseError, EncoderMismatchError
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import active_ladder
from ruvllm.memory.store import Memory
from ruvllm.memory.writing import burst
from ruvllm.ports import urls
from ruvllm.process import healthy
from ruvllm.router.store import BundleStore
from ruvllm.serving.cache import FollowedCache
from ruvllm.serving.idle import judge_of
from ruvllm.serving.service import GatewayService
from ruvllm.serving.tenants import tenant_database
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from ruvllm.memory.records import AddReport, Found, Hit, Neighbourhood, NewNode, Node, Vector, Walk, WriteBack
    from ruvllm.memory.replica import Replica
    from ruvllm.memory.retrieval.reading import ReadingState

log = logging.getLogger(__name__)

_TAKEN_IN = 400  # rows of bursts between two settlings: a second or two


def build_service(settings: Settings) -> GatewayService:
    """Everything that one gateway holds; its `stop` closes it.

    Raises:
        ModelFileError: no tier, or the encoder is missing.
        EncoderMismatchError: memory holds vectors of another encoder.
        DatabaseError: the embedded server cannot be started. A server of the user's own may be away.
    """
    one_blas_thread()
    with ExitStack() as opened:
        embedder = open_embedder(settings)
        database = _database(settings)
        opened.callback(database.close)
        pool = opened.enter_context(ModelPool(settings, active_ladder(settings)))
        late = LateMemory(settings, database, embedder, in_process=settings.replica)
        opened.callback(late.close)
        perception = Perception(settings, embedder, _memory(late))
        interactions = Interactions(database)
        answerer = Answerer(settings, perception, pool, interactions, recall=_recall(settings, database, embedder))
        log.info("%s", pool.ladder.note)
        closing = opened.pop_all()
        service = GatewayService(
            answerer,
            database,
            BundleStore(settings.router_dir),
            settings,
            warm=pool.warm,
            on_close=closing.close,
            outbox=interactions.outbox,
            take_in=late.take_in,
            models=lambda: pool.states,
            make=lambda tenant: _for_tenant(tenant, answerer),
            judge=(lambda of: judge_of(settings, pool, of)) if settings.judge else None,
            registry_is_up=lambda: healthy(f"{urls(settings).mlflow}/health"),
        )
        interactions.on_quality = service.metrics.quality.observe
        service.metrics.watch_memory(late.reading)
        service.metrics.watch_models(lambda: pool.states)
        return service


def one_blas_thread() -> None:
    """Keep NumPy's products on the thread that asks for them, for as long as this process lives.

    A gateway makes small ones in many threads at once. BLAS' own threads make none of them faster and spin while they
    wait: with attention on they took four times the time of all else.
    """
    threadpool_limits(1, user_api="blas")


def _for_tenant(tenant: str, first: Answerer) -> Answerer:
    """Another tenant's answerer: its rows and sessions are its own, models and encoder are shared.

    Its memory is read from Postgres: a replica for each tenant would take as many times the room.
    """
    settings = replace(first.settings, tenant=tenant)
    database = tenant_database(first.interactions.database, tenant)
    late = LateMemory(settings, database, first.perception.embedder)
    interactions = Interactions(database, first.interactions.on_quality)
    perception = Perception(settings, first.perception.embedder, _memory(late))
    recall = _recall(settings, database, perception.embedder)
    return Answerer(settings, perception, first.pool, interactions, recall=recall)


def _recall(settings: Settings, database: Database, embedder: EmbeddingAdapter) -> FollowedCache | None:
    return FollowedCache(database, embedder.id) if settings.answer_cache else None


def _database(settings: Settings) -> Database:
    try:
        return open_database(settings)
    except DatabaseError as error:
        if not settings.database_url:
            raise
        log.warning("starting from the local cache: %s", error)
        return Database(settings.database_url, settings.tenant)


def _memory(late: LateMemory) -> Memory:
    try:
        return late.open()
    except (EncoderMismatchError, ContractError):
        raise
    except DatabaseError as error:
        log.warning("answering without memory until Postgres is back: %s", error)
        return cast(Memory, late)  # it has what Answerer uses


class LateMemory:
    """What answers need of memory, opened when Postgres is there; until then using it is a DatabaseError.

    With `in_process` it is read through a replica, which opens in the background: Postgres answers until it is there.
    """

    def __init__(
        self, settings: Settings, database: Database, embedder: EmbeddingAdapter, in_process: bool = False
    ) -> None:
        self._settings, self._database, self._embedder, self._in_process = settings, database, embedder, in_process
        self._memory: Memory | None = None
        self._replica: Replica | None = None
        self._opening = threading.Lock()

    def open(self) -> Memory:
        """
        Raises:
            EncoderMismatchError: it holds vectors of another encoder.
            ContractError: the database is not as searches need it.
            DatabaseError: Postgres is away.
        """
        with self._opening:
            if self._memory is None:
                open_database(self._settings).close()  # a server that was away at the start may lack its schema
                self._memory = Memory(self._database, self._embedder, self._settings)
                if self._in_process:
                    self._replica = _replica(self._settings, self._database)
                    self._memory.use_replica(self._replica)
            return self._memory

    def close(self) -> None:
        """Ends the replica's threads."""
        with self._opening:
            if self._replica is not None:
                self._replica.close()

    def take_in(self) -> int:
        """Make nodes of rows of bursts that wait, not many at once; how many still wait.

        Raises:
            DatabaseError: Postgres is away.
        """
        self.open()
        return burst.merge(self._database, self._embedder, _TAKEN_IN).left

    def reading(self) -> ReadingState | None:
        """For metrics; None until memory is open."""
        return None if self._memory is None else self._memory.reading

    def search(self, vector: Vector, k: int, exclude_kinds: Sequence[str] = (), reader: str = "") -> list[Hit]:
        return self.open().search(vector, k, exclude_kinds, reader)

    def write_back(self, *args: Any, **kwargs: Any) -> WriteBack:
        return self.open().write_back(*args, **kwargs)

    # What attention and memory's own endpoints need of it.

    def find(self, *args: Any, **kwargs: Any) -> Found:
        return self.open().find(*args, **kwargs)

    def find_words(self, *args: Any, **kwargs: Any) -> Found:
        return self.open().find_words(*args, **kwargs)

    def vectors(self, ids: Sequence[int]) -> Vector:
        return self.open().vectors(ids)

    @property
    def database(self) -> Database:
        return self._database

    def search_text(self, *args: Any, **kwargs: Any) -> list[Hit]:
        return self.open().search_text(*args, **kwargs)

    def search_words(self, *args: Any, **kwargs: Any) -> list[Hit]:
        return self.open().search_words(*args, **kwargs)

    def hybrid(self, *args: Any, **kwargs: Any) -> list[Hit]:
        return self.open().hybrid(*args, **kwargs)

    def add(self, nodes: Sequence[NewNode]) -> AddReport:
        return self.open().add(nodes)

    def get(self, ids: Sequence[int]) -> list[Node]:
        return self.open().get(ids)

    def walk(self, seeds: Sequence[int], walk: Walk, token: int = 0) -> Neighbourhood:
        return self.open().walk(seeds, walk, token)


def _replica(settings: Settings, database: Database) -> Replica:
    from ruvllm.memory.replica import Replica, ReplicaOptions  # imports faiss

    options = replace(ReplicaOptions.of(settings), wait=False)
    return Replica.open(database, settings.replica_dir, options)
