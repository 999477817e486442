"""What the gateway holds: an answerer, bounded admission, and two threads that follow the champion and settle answers.

Knows nothing of HTTP. A request keeps the router it began with; a swap is one assignment in the answerer. While
Postgres or MLflow is away, the last champion goes on answering and `state()` says what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import psycopg

from ruvllm.answer import Answer, Ask
from ruvllm.database.pool import Database
from ruvllm.errors import BundleError, DatabaseError, OverloadedError, RuvllmError
from ruvllm.inference.supervised import TierState
from ruvllm.inference.tiers import Ladder
from ruvllm.interactions import OutboxState
from ruvllm.memory.records import Hit
from ruvllm.registry.fetch import sync_champion
from ruvllm.router.decision import Decision
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore, CurrentBundle
from ruvllm.serving.metrics import Metrics
from ruvllm.settings import Settings

SYNC_EVERY_S = 1.5
SETTLE_EVERY_S = 1.0
_SETTLE_BATCH = 100
T = TypeVar("T")
_GRACE_S = 5.0  # the pipeline keeps the deadline itself; this is for one that does not
log = logging.getLogger(__name__)


class Answering(Protocol):
    """What the gateway asks of an answerer; `ruvllm.answer.Answerer` is one."""

    ladder: Ladder

    @property
    def router_version(self) -> str: ...

    def answer(self, ask: Ask) -> Answer: ...

    def route(self, ask: Ask) -> tuple[Decision, tuple[Hit, ...]]: ...

    def settle_outbox(self, limit: int = 100) -> int: ...

    def use_router(self, runtime: RouterRuntime | None) -> None: ...

    def feedback(
        self, request_id: str, rating: int | None, correction: str | None, task_success: bool | None, writer: str = ""
    ) -> None: ...


@dataclass(frozen=True)
class State:
    """`degraded` is what is missing while answers still come; `blocked` is why none can."""

    router_version: str
    degraded: tuple[str, ...]
    blocked: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return not self.blocked


class GatewayService:
    """One gateway's parts and threads. `warm` loads the models while the first requests come; `on_close` ends all.

    `outbox` says what waits to be settled; `take_in` makes waiting rows of bursts nodes and says how many still wait;
    `models` says how each tier's process is.
    """

    def __init__(
        self,
        answerer: Answering,
        database: Database,
        store: BundleStore,
        settings: Settings,
        warm: Callable[[], None] = lambda: None,
        on_close: Callable[[], None] = lambda: None,
        outbox: Callable[[], OutboxState] | None = None,
        take_in: Callable[[], int] | None = None,
        models: Callable[[], Sequence[TierState]] = tuple,
    ) -> None:
        self.answerer, self.database, self.store, self.settings = answerer, database, store, settings
        self.metrics = Metrics()
        self.capacity = 2 * len(answerer.ladder.tiers)  # two a model: one that runs, one that waits
        self._warm, self._on_close = warm, on_close
        self._outbox, self._take_in, self._models = outbox, take_in, models
        self._taken, self._lock = 0, threading.Lock()
        self._executor = ThreadPoolExecutor(self.capacity, thread_name_prefix="answer")
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seen: str | None = None  # sha256 of the champion that was loaded, or found not to fit
        self._synced_at = time.monotonic()
        self._trouble: dict[str, str] = {}
        self.metrics.stale.set_function(lambda: time.monotonic() - self._synced_at)
        self.metrics.inflight.set_function(lambda: self._taken)
        self.metrics.db_up.set_function(lambda: float("database" not in self._trouble))

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(tier.name for tier in self.answerer.ladder.tiers)

    def start(self) -> None:
        """Load the cached champion, so that answers need neither Postgres nor MLflow, then follow the ledger."""
        self.load_cached()
        self._threads = [
            threading.Thread(target=self._every, args=(seconds, work), name=name, daemon=True)
            for name, seconds, work in (("sync", SYNC_EVERY_S, self.sync), ("settle", SETTLE_EVERY_S, self.settle))
        ]
        for thread in (*self._threads, threading.Thread(target=self.warm_up, name="warm", daemon=True)):
            thread.start()

    def stop(self) -> None:
        """No new request; wait for those that run, settle once more, end the threads and models."""
        self._ending.set()
        self._executor.shutdown(wait=True)
        for thread in self._threads:
            thread.join()
        self.settle()
        self._on_close()

    def state(self) -> State:
        blocked = [f"{thread.name} thread ended; see the log" for thread in self._threads if not thread.is_alive()]
        if not self._threads:
            blocked.append("not started")
        if self._ending.is_set():
            blocked.append("shutting down")
        degraded = [f"{name}: {text}" for name, text in list(self._trouble.items())]
        degraded += [f"model {each.name}: {each.detail}" for each in self._models() if each.state == "failing"]
        return State(self.answerer.router_version, tuple(degraded), tuple(blocked))

    async def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result of blocking `work` and the seconds it waited for a thread. The slot is taken before anything else.

        Raises:
            OverloadedError: every slot is taken.
            TimeoutError: it was not done by the deadline; its slot stays taken until it is.
        """
        self._admit()
        admitted = time.perf_counter()
        try:
            future = self._executor.submit(_timed, work, admitted)
        except RuntimeError as error:  # the executor is shut down
            self._leave()
            raise OverloadedError("the gateway is shutting down; try again elsewhere or in a moment") from error
        future.add_done_callback(lambda _: self._leave())
        with anyio.fail_after(self.settings.deadline_s + _GRACE_S):
            return await asyncio.wrap_future(future)

    def warm_up(self) -> None:
        """Load the models, so that no request waits for it; one that does not load is tried again when it is asked."""
        self._trouble["models"] = "loading; the first answers wait for them"
        try:
            self._warm()
        except (RuvllmError, OSError) as error:
            self._note("models", error)
        else:
            del self._trouble["models"]
            log.info("models: loaded")

    def load_cached(self) -> None:
        """Use the champion of the local cache, if there is a sound one."""
        try:
            current = self.store.current()
        except BundleError as error:
            self._note("router", error)
            return
        self._load(current)

    def sync(self) -> None:
        """Follow the ledger's champion once; trouble is noted and the router in use stays."""
        try:
            current = sync_champion(self.database, self.store, self.settings)
        except DatabaseError as error:
            self._note("database", error)
            return
        except (RuvllmError, OSError) as error:
            self._clear("database")
            self._note("router", error)
            return
        self._synced_at = time.monotonic()
        self._clear("database")
        self._load(current)

    def settle(self) -> None:
        """Score and write back what waits in the outbox, take in bursts; what fails waits for the next time."""
        self._try("outbox", self._settle_outbox)
        if (take_in := self._take_in) is not None:
            self._try("bursts", lambda: self.metrics.ingest_waiting.set(take_in()))

    def _settle_outbox(self) -> None:
        self.metrics.settled.inc(self.answerer.settle_outbox(_SETTLE_BATCH))
        if self._outbox is not None:
            self.metrics.waiting(self._outbox())

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (RuvllmError, OSError, psycopg.Error) as error:
            self._note(name, error)
        else:
            self._clear(name)

    def _load(self, current: CurrentBundle | None) -> None:
        if current is None or current.sha256 == self._seen:
            return
        try:
            self.answerer.use_router(RouterRuntime.load(current.path, current.sha256))
        except BundleError as error:
            self._note("router", error)
        else:
            self._clear("router")
            self.metrics.routed_by(self.answerer.router_version, current.sha256)
            log.info("router %s (version %s) decides", self.answerer.router_version, current.version)
        self._seen = current.sha256

    def _admit(self) -> None:
        with self._lock:
            if self._taken >= self.capacity:
                self.metrics.rejected.labels("overloaded").inc()
                raise OverloadedError(f"all {self.capacity} places are taken; try again in a second")
            self._taken += 1

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._ending.is_set():
            work()
            self._ending.wait(seconds)

    def _note(self, name: str, error: Exception) -> None:
        """Remember trouble; logged when it is new, not every second."""
        if self._trouble.get(name) != str(error):
            log.warning("%s: %s", name, error)
        self._trouble[name] = str(error)

    def _clear(self, name: str) -> None:
        if self._trouble.pop(name, None) is not None:
            log.info("%s: well again", name)


def _timed(work: Callable[[], T], admitted: float) -> tuple[T, float]:
    waited = time.perf_counter() - admitted
    return work(), waited
