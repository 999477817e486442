"""A gateway over a real memory in a real Postgres, its model's words given by the test; for the console's tests."""

from __future__ import annotations

from collections.abc import Callable

from psycopg.types.json import Jsonb

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.memory.store import Memory
from ruvllm.router.store import BundleStore
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


def gateway_of(database: Database, settings: Settings, say: Callable[[str], str]) -> GatewayService:
    """`say` gives the model's answer to a prompt."""
    ladder = Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")
    pool = ModelPool(settings, ladder, start=lambda tier: FakeModel(answer=say))
    memory = Memory(database, EmbeddingAdapter(HashingEncoder()), settings)
    answerer = Answerer(settings, Perception(settings, memory.embedder, memory), pool, Interactions(database), seed=1)
    service = GatewayService(answerer, database, BundleStore(settings.router_dir), settings, models=lambda: pool.states)
    service.metrics.watch_models(lambda: pool.states)
    return service


def add_night(database: Database, night: int, regret: float | None, promoted: bool = False) -> None:
    """A night of the database's tenant that measured `regret`, or nothing where that is None."""
    cycle = f"{database.tenant}-{night}"
    measured = {"regret_after": regret, "regret_after_interval": None, "n_test": None}
    if regret is not None:
        measured |= {"regret_after_interval": [regret - 0.05, regret + 0.05], "n_test": 120}
    insert = "INSERT INTO learning.steps (cycle_id, tenant, step, result, seconds) VALUES (%s, %s, %s, %s, 1)"
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO learning.cycles (id, tenant, night) VALUES (%s, %s, %s)", [cycle, database.tenant, night]
        )
        connection.execute(insert, [cycle, database.tenant, "evaluate", Jsonb(measured)])
        connection.execute(insert, [cycle, database.tenant, "promote", Jsonb({"promoted": promoted})])
