"""A real gateway in a process of its own, over scripted models: what load is put on. Measures nothing.

    python -m tests.benchmarks.serving.place --dsn DSN --encoder benchmark --dim 384 --state FOLDER

prints its address in a line and serves until it is ended. Memory, outbox, admission and router are the real ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.supervised import WorkerModel
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.store import Memory
from ruvllm.router.store import BundleStore
from ruvllm.serving.__main__ import listen
from ruvllm.serving.app import create_app
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings, load_settings
from tests.benchmarks.serving.scripted import MS

MINILM = "minilm"
_PROGRAM = ("-m", "tests.benchmarks.serving.scripted")
Start = Callable[[Tier], WorkerModel]


def ladder() -> Ladder:
    return Ladder("packaged", tuple(load_catalogue()["packaged"]), "scripted")


def embedder_of(encoder: str, dim: int, settings: Settings) -> EmbeddingAdapter:
    """The real encoder by its name, else the hashing one under the id that the database's vectors have."""
    return open_embedder(settings) if encoder == MINILM else EmbeddingAdapter(HashingEncoder(dim, encoder))


def service(settings: Settings, database: Database, embedder: EmbeddingAdapter, start: Start) -> GatewayService:
    """A gateway over the database; its `stop` closes what it opened."""
    memory = Memory(database, embedder, settings)
    replica = None
    if settings.replica:
        replica = Replica.open(database, settings.replica_dir, replace(ReplicaOptions.of(settings), wait=True))
        memory.use_replica(replica)
    pool = ModelPool(settings, ladder(), start=start)
    interactions = Interactions(database)
    answerer = Answerer(settings, Perception(settings, embedder, memory), pool, interactions)

    def close() -> None:
        if replica is not None:
            replica.close()
        pool.close()
        database.close()

    store = BundleStore(settings.router_dir)
    return GatewayService(
        answerer, database, store, settings, warm=pool.warm, on_close=close, outbox=interactions.outbox
    )


def scripted(settings: Settings) -> Start:
    """Models as processes of their own, behind the worker protocol; their file is opened and never read."""
    file = settings.state_dir / "scripted.gguf"
    file.touch()
    return lambda tier: LlamaWorker(tier, file, settings, 1, None, _PROGRAM)


def config(settings: Settings, of: GatewayService) -> uvicorn.Config:
    """As `ruvllm serve` runs it."""
    return uvicorn.Config(
        create_app(settings, of),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--encoder", default=MINILM, help="minilm, or the id of the database's vectors")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--service-ms", type=float, default=0.0, help="that an answer takes")
    parser.add_argument("--no-replica", action="store_true")
    chosen = parser.parse_args(arguments)
    os.environ[MS] = str(chosen.service_ms)
    settings = load_settings(
        state_dir=chosen.state, database_url=chosen.dsn, replica=not chosen.no_replica, access="open"
    )
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    embedder = embedder_of(chosen.encoder, chosen.dim, settings)
    with listen("127.0.0.1", 0) as door:
        of = service(settings, Database(chosen.dsn), embedder, scripted(settings))
        print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
        uvicorn.Server(config(settings, of)).run(sockets=[door])


if __name__ == "__main__":
    sys.exit(main())
