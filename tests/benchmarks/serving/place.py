"""A real gateway in a process of its own, over scripted models: what load is put on. Measures nothing.

    python -m tests.benchmarks.serving.place --dsn DSN --encoder benchmark --dim 384 --state FOLDER

prints its address in a line and serves until it is ended. Memory, outbox, admission and router are the real ones.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn

from ruvllm.answering.answer import Answerer, Perception
from ruvllm.answering.interactions import Interactions
from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.embedding.adapter import EmbeddingAdapter, Floats, Role
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.supervised import WorkerModel
from ruvllm.inference.tiers import Ladder, Tier, load_catalogue
from ruvllm.memory.replica import Replica, ReplicaOptions
from ruvllm.memory.store import Memory
from ruvllm.router.decision import N_TIERS
from ruvllm.router.fake import write_random_bundle
from ruvllm.router.store import BundleStore
from ruvllm.serving.__main__ import listen
from ruvllm.serving.app import create_app
from ruvllm.serving.build import one_blas_thread
from ruvllm.serving.service import SETTLE_EVERY_S, GatewayService
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


def service(
    settings: Settings,
    database: Database,
    embedder: EmbeddingAdapter,
    start: Start,
    settle_every_s: float = SETTLE_EVERY_S,
) -> GatewayService:
    """A gateway over the database; its `stop` closes what it opened."""
    one_blas_thread()
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
        answerer,
        database,
        store,
        settings,
        warm=pool.warm,
        on_close=close,
        outbox=interactions.outbox,
        settle_every_s=settle_every_s,
    )


class _Renamed:
    """The real encoder's time with vectors that a made memory may be searched by; what is found means nothing."""

    def __init__(self, encoder: MiniLMEncoder, id: str) -> None:
        self._encoder, self.id, self.dimension = encoder, id, encoder.dimension

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        return self._encoder.encode(texts, role)


def bundles(settings: Settings, encoder_id: str) -> list[tuple[Path, str]]:
    """Two routers with random weights: folder and digest."""
    names = tuple(ladder().names) + ("",) * (N_TIERS - len(ladder().names))
    found = []
    for seed in range(2):
        folder = settings.state_dir / "bundles" / uuid.uuid4().hex  # a bundle is never overwritten
        sha256 = write_random_bundle(folder, version=f"router-{seed}", tiers=names, seed=seed, encoder_id=encoder_id)
        found.append((folder, sha256))
    return found


def _swap(of: GatewayService, settings: Settings, encoder_id: str, every_s: float) -> None:
    """Let two routers of the local cache decide in turn, each verified by its golden vectors before it does."""
    store = BundleStore(settings.router_dir)
    installed = [(store.install(folder, sha256), sha256) for folder, sha256 in bundles(settings, encoder_id)]
    for path, sha256 in itertools.cycle(installed):
        store.activate(sha256, path.name)
        of.load_cached()
        time.sleep(every_s)


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
    parser.add_argument("--settle-s", type=float, default=SETTLE_EVERY_S, help="between two settlings of the outbox")
    parser.add_argument("--swap-s", type=float, default=0.0, help="between two swaps through the local cache; 0: none")
    parser.add_argument("--real-encoder", action="store_true", help="embed with MiniLM under the id of --encoder")
    chosen = parser.parse_args(arguments)
    os.environ[MS] = str(chosen.service_ms)
    settings = load_settings(
        state_dir=chosen.state, database_url=chosen.dsn, replica=not chosen.no_replica, access="open"
    )
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    embedder = embedder_of(chosen.encoder, chosen.dim, settings)
    if chosen.real_encoder:
        embedder = EmbeddingAdapter(_Renamed(MiniLMEncoder(), chosen.encoder))
    with listen("127.0.0.1", 0) as door:
        of = service(settings, Database(chosen.dsn), embedder, scripted(settings), chosen.settle_s)
        if chosen.swap_s:
            threading.Thread(target=_swap, args=(of, settings, embedder.id, chosen.swap_s), daemon=True).start()
        print(f"http://127.0.0.1:{door.getsockname()[1]}", flush=True)
        uvicorn.Server(config(settings, of)).run(sockets=[door])


if __name__ == "__main__":
    sys.exit(main())
