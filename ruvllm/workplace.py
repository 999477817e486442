"""The opened parts that a step of the night or a verb of the CLI works with. Knows nothing of Prefect."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database import open_database
from ruvllm.database.pool import Database
from ruvllm.embedding import EmbeddingAdapter, open_embedder
from ruvllm.errors import BundleError
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, active_ladder
from ruvllm.memory.store import Memory
from ruvllm.registry.fetch import sync_champion
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """Database, memory and embedder of one process; models are started by whoever needs them."""

    settings: Settings
    database: Database
    embedder: EmbeddingAdapter
    memory: Memory
    ladder: Ladder
    store: BundleStore

    @property
    def perception(self) -> Perception:
        return Perception(self.settings, self.embedder, self.memory)

    def champion(self) -> RouterRuntime | None:
        """The promoted router of the ledger, through the local cache; None where none was promoted for this ladder."""
        current = sync_champion(self.database, self.store, self.settings)
        if current is None:
            return None
        runtime = RouterRuntime.load(current.path, current.sha256)
        try:
            runtime.require(self.ladder.name, self.ladder.names, self.embedder.id)
        except BundleError as error:
            log.warning("%s; until then the cold-start rule decides", error)
            return None
        return runtime

    @contextmanager
    def answerer(self, runtime: RouterRuntime | None, seed: int | None = None) -> Iterator[Answerer]:
        """An answerer with models of its own, ended with the block."""
        with ModelPool(self.settings, self.ladder) as pool:
            yield Answerer(self.settings, self.perception, pool, Interactions(self.database), runtime, seed)


@contextmanager
def open_workplace(settings: Settings) -> Iterator[Workplace]:
    """Open database (the embedded one is started), embedder and memory.

    Raises:
        DatabaseError, EncoderMismatchError, ModelFileError: as the part says.
    """
    database = open_database(settings)
    try:
        embedder = open_embedder(settings)
        yield Workplace(
            settings,
            database,
            embedder,
            Memory(database, embedder, settings),
            active_ladder(settings),
            BundleStore(settings.router_dir),
        )
    finally:
        database.close()
