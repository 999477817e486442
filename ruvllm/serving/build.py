"""Puts the real gateway together. Starts even while Postgres is away: memory then joins when it is back.

Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from ruvllm.answer import Answerer, Perception
from ruvllm.database import open_database
from ruvllm.database.pool import Database
from ruvllm.embedding import EmbeddingAdapter, open_embedder
from ruvllm.errors import DatabaseError, EncoderMismatchError
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import active_ladder
from ruvllm.interactions import Interactions
from ruvllm.memory.store import Memory
from ruvllm.router.store import BundleStore
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings

if TYPE_CHECKING:
    from ruvllm.memory.records import Hit, Vector, WriteBack

log = logging.getLogger(__name__)


def build_service(settings: Settings) -> GatewayService:
    """Everything that one gateway holds; its `stop` closes it.

    Raises:
        ModelFileError: no tier, or the encoder is missing.
        EncoderMismatchError: memory holds vectors of another encoder.
        DatabaseError: the embedded server cannot be started. A server of the user's own may be away.
    """
    with ExitStack() as opened:
        embedder = open_embedder(settings)
        database = _database(settings)
        opened.callback(database.close)
        pool = opened.enter_context(ModelPool(settings, active_ladder(settings)))
        perception = Perception(settings, embedder, _memory(settings, database, embedder))
        answerer = Answerer(settings, perception, pool, Interactions(database))
        log.info("%s", pool.ladder.note)
        return GatewayService(
            answerer,
            database,
            BundleStore(settings.router_dir),
            settings,
            warm=lambda: _load(pool),
            on_close=opened.pop_all().close,
        )


def _load(pool: ModelPool) -> None:
    for index in range(len(pool.ladder.tiers)):
        pool.model(index).start()


def _database(settings: Settings) -> Database:
    try:
        return open_database(settings)
    except DatabaseError as error:
        if not settings.database_url:
            raise
        log.warning("starting from the local cache: %s", error)
        return Database(settings.database_url, settings.tenant)


def _memory(settings: Settings, database: Database, embedder: EmbeddingAdapter) -> Memory:
    late = LateMemory(settings, database, embedder)
    try:
        return late.open()
    except EncoderMismatchError:
        raise
    except DatabaseError as error:
        log.warning("answering without memory until Postgres is back: %s", error)
        return cast(Memory, late)  # it has what Answerer uses


class LateMemory:
    """What answers need of memory, opened when Postgres is there; until then using it is a DatabaseError."""

    def __init__(self, settings: Settings, database: Database, embedder: EmbeddingAdapter) -> None:
        self._settings, self._database, self._embedder = settings, database, embedder
        self._memory: Memory | None = None
        self._opening = threading.Lock()

    def open(self) -> Memory:
        """
        Raises:
            EncoderMismatchError: it holds vectors of another encoder.
            DatabaseError: Postgres is away.
        """
        with self._opening:
            if self._memory is None:
                open_database(self._settings).close()  # a server that was away at the start may lack its schema
                self._memory = Memory(self._database, self._embedder, self._settings)
            return self._memory

    def search(self, vector: Vector, k: int, exclude_kinds: Sequence[str] = (), reader: str = "") -> list[Hit]:
        return self.open().search(vector, k, exclude_kinds, reader)

    def write_back(self, *args: Any, **kwargs: Any) -> WriteBack:
        return self.open().write_back(*args, **kwargs)
