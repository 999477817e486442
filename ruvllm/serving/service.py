"""What a gateway holds: an answerer per tenant, lanes of work, and threads that follow the champion and settle answers.

Knows nothing of HTTP. A request keeps the router it began with; a swap is one assignment in each answerer. While
Postgres or MLflow is away, the last champion goes on answering and `state()` says what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import psycopg

from ruvllm.answering.answer import Ask, Spooling, Trial
from ruvllm.answering.interactions import Interaction, Interactions, OutboxState
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, LearningError, RuvllmError
from ruvllm.inference.supervised import TierState
from ruvllm.inference.tiers import Ladder
from ruvllm.memory.records import Hit, Vector
from ruvllm.memory.store import Memory
from ruvllm.router.decision import Decision
from ruvllm.router.runtime import RouterRuntime
from ruvllm.router.store import BundleStore
from ruvllm.serving.admission import Bounds
from ruvllm.serving.background import Judges
from ruvllm.serving.canary import CANDIDATE, CHAMPION, Candidates
from ruvllm.serving.champion import HotRouter
from ruvllm.serving.door import Door
from ruvllm.serving.idle import IdleJudge
from ruvllm.serving.keys import Caller, KeyStore
from ruvllm.serving.lanes import Lane
from ruvllm.serving.metrics import Metrics
from ruvllm.serving.spool import Spool
from ruvllm.serving.telling import GRACE_S, Speech, Telling
from ruvllm.serving.tenants import Tenants, tenant_database
from ruvllm.settings import Settings

SYNC_EVERY_S = 1.0  # the champion is followed within 2 s, keys within one
SETTLE_EVERY_S = 1.0
JUDGE_EVERY_S = 2.0
REGISTRY_EVERY_S = 10.0
DRAIN_S = 30.0
_SETTLE_BATCH = 100
_LIGHT = Bounds(slots=4, queue=60)  # what generates nothing is over in milliseconds
_CHARS_A_TOKEN = 4  # a guess for the queue's budget, before any tokeniser is asked
T = TypeVar("T")
log = logging.getLogger(__name__)


class Answering(Protocol):
    """What the gateway asks of an answerer; `ruvllm.answering.answer.Answerer` is one."""

    ladder: Ladder
    spool: Spooling | None
    trial: Callable[[], Trial | None]
    shadow: Callable[[str, Decision], None]

    @property
    def router_version(self) -> str: ...

    @property
    def encoder(self) -> str: ...

    @property
    def memory(self) -> Memory: ...

    def stream(self, ask: Ask) -> Speech: ...

    def route(self, ask: Ask) -> tuple[Decision, tuple[Hit, ...]]: ...

    def excluded(self, ask: Ask) -> dict[str, str]: ...

    def embed(self, texts: list[str]) -> Vector: ...

    def settle_outbox(self, limit: int = 100) -> int: ...

    def check_router(self, runtime: RouterRuntime) -> None: ...

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
    `models` says how each tier's process is; `make` opens another tenant's answerer; `judge` gives who scores, while
    nobody asks, what nobody said anything of; `registry_is_up` looks whether MLflow answers. Answers are settled every
    `settle_every_s`.
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
        make: Callable[[str], Answering] | None = None,
        judge: Callable[[Database], Judges] | None = None,
        registry_is_up: Callable[[], bool] | None = None,
        settle_every_s: float = SETTLE_EVERY_S,
    ) -> None:
        self.answerer, self.database, self.settings = answerer, database, settings
        self.metrics = Metrics()
        slots = 2 * len(answerer.ladder.tiers)  # two a model: one that runs, one that gets ready
        self.asking = Lane("answer", Bounds(slots, settings.queue, settings.queue_tokens), self.metrics)
        self.light = Lane("light", _LIGHT, self.metrics)
        self.door = Door(settings, KeyStore(database))
        self.spool = Spool(settings.spool_dir, settings.spool_mb * 2**20)
        self.router = HotRouter(store, settings, self._use)
        self.candidates = Candidates(
            BundleStore(settings.router_dir / "trial"), settings, answerer.ladder, answerer.check_router
        )
        self.tenants: Tenants[Answering] = Tenants(database.tenant, self._joined(database.tenant, answerer), self._made)
        self._make, self._settle_every_s = make, settle_every_s
        self._judge = IdleJudge(database, judge, self._is_idle) if judge is not None else None
        self._runtime: RouterRuntime | None = None
        self._swapping = threading.Lock()
        self._warm, self._on_close = warm, on_close
        self._outbox, self._take_in, self._models = outbox, take_in, models
        self._registry_is_up = registry_is_up
        self._ending = threading.Event()
        self._refusing = False
        self._threads: list[threading.Thread] = []
        self._trouble: dict[str, str] = {}
        self.metrics.watch(self.asking.admission, self.router, lambda: "database" not in self._trouble)

    @property
    def tiers(self) -> tuple[str, ...]:
        return self.answerer.ladder.names

    @property
    def models(self) -> Sequence[TierState]:
        """How each tier's process is; empty where nobody says."""
        return self._models()

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load the cached champion, so that answers need neither Postgres nor MLflow, then follow the ledger."""
        self.load_cached()
        self._threads = [
            threading.Thread(target=self._every, args=(seconds, work), name=name, daemon=True)
            for name, seconds, work in (
                ("sync", SYNC_EVERY_S, self.sync),
                ("settle", self._settle_every_s, self.settle),
                *((("judge", JUDGE_EVERY_S, self.judge),) if self._judge is not None else ()),
                *((("registry", REGISTRY_EVERY_S, self.look_at_registry),) if self._registry_is_up is not None else ()),
            )
        ]
        for thread in (*self._threads, threading.Thread(target=self.warm_up, name="warm", daemon=True)):
            thread.start()

    def refuse(self) -> None:
        """Let nobody in any more, and say so in `state`; who is inside goes on. `stop` comes after."""
        self._refusing = True
        for lane in (self.asking, self.light):
            lane.admission.close()

    def drained(self, timeout_s: float) -> bool:
        """Wait until everybody is answered; False where somebody is not after `timeout_s` seconds."""
        return self.asking.admission.drained(timeout_s)

    def stop(self) -> None:
        """No new request; wait for those that run, settle once more, end the threads and models."""
        self._ending.set()
        if not (self.asking.close(DRAIN_S) & self.light.close(DRAIN_S)):
            log.warning("not drained within %.0f s: what still runs is cut off", DRAIN_S)
        for thread in self._threads:
            thread.join()
        self.settle()
        self._on_close()

    def state(self) -> State:
        blocked = [f"{thread.name} thread ended; see the log" for thread in self._threads if not thread.is_alive()]
        if not self._threads:
            blocked.append("not started")
        if self._refusing or self._ending.is_set():
            blocked.append("shutting down")
        degraded = [f"{name}: {text}" for name, text in list(self._trouble.items())]
        states = self._models()
        degraded += [f"model {each.name}: {each.detail}" for each in states if each.state == "failing"]
        if (waiting := self.spool.size) > 0:
            degraded.append(f"spool: {waiting} bytes of answers wait on disk for Postgres")
        return State(self.answerer.router_version, tuple(degraded), tuple(blocked))

    # --- requests -----------------------------------------------------------------------------------------------------

    def tell(self, caller: Caller, ask: Ask) -> Telling:
        """The answer to `ask`, in the making. Its place is taken before anything else is done.

        Raises:
            OverloadedError, RateLimitedError: no place for this request, or none for this caller.
        """
        deadline_s = min(ask.latency_budget_s or self.settings.deadline_s, self.settings.deadline_s)
        ticket = self.asking.enter(caller, guessed_tokens(ask), deadline_s)
        return Telling(self.asking, ticket, ask, lambda ask: self._opened(caller, ask), deadline_s)

    async def run(self, caller: Caller, work: Callable[[Answering], T]) -> T:
        """What `work` gives for the caller's answerer: anything that generates nothing.

        Raises:
            OverloadedError, RateLimitedError: no place for this request, or none for this caller.
            TimeoutError: it was not done by the deadline; its place stays taken until it is.
        """
        ticket = self.light.enter(caller, 0, self.settings.deadline_s)
        future = self.light.submit(ticket, lambda: work(self._of(caller.tenant)))
        with anyio.fail_after(self.settings.deadline_s + GRACE_S):
            return await asyncio.wrap_future(future)

    def _opened(self, caller: Caller, ask: Ask) -> Speech:
        return self._of(caller.tenant).stream(ask)

    def ended(self, ask: Ask, seconds: float, failed: bool) -> None:
        """An answer was given, or failed for a reason of ours: a trial compares."""
        trial = self.candidates.trial
        arm = CANDIDATE if trial is not None and trial.serves(ask.unit) else CHAMPION
        self.candidates.note(arm, seconds, failed)

    # --- the router ---------------------------------------------------------------------------------------------------

    def load_cached(self) -> None:
        """Use the champion of the local cache, if there is a sound one."""
        if self.router.load_cached():
            self.metrics.routed_by(self.answerer.router_version, self.router.sha256)
        self._say("router", self.router.trouble)

    def sync(self) -> None:
        """Follow keys, champion and candidate once; trouble is noted and what is in use stays."""
        try:
            self.door.refresh()
            if self.router.reconcile(self.database):
                self.metrics.routed_by(self.answerer.router_version, self.router.sha256)
            self.candidates.refresh(self.database, self.answerer.router_version, self.door.tenants)
        except DatabaseError as error:
            self._say("database", str(error))
            return
        self._say("database", None)
        self._say("router", self.router.trouble)
        self._say("candidate", self.candidates.trouble)

    def _use(self, runtime: RouterRuntime) -> None:
        """In every answerer; the gateway's own goes first, and where it refuses, nothing has changed."""
        with self._swapping:
            self.answerer.use_router(runtime)
            self._runtime = runtime
            for answerer in self.tenants.opened[1:]:
                answerer.use_router(runtime)

    def _of(self, tenant: str) -> Answering:
        """The tenant's answerer, with the router of now: one that was made during a swap may have that from before."""
        answerer = self.tenants.of(tenant)
        if self._runtime is not None and answerer.router_version != self._runtime.version:
            with self._swapping:
                answerer.use_router(self._runtime)
        return answerer

    def _joined(self, tenant: str, answerer: Answering) -> Answering:
        if self.settings.spool_mb:
            answerer.spool = self.spool
        answerer.trial = lambda: self.candidates.trial
        answerer.shadow = lambda request_id, decision: self.candidates.note_shadow(request_id, tenant, decision)
        return answerer

    def _made(self, tenant: str) -> Answering:
        if self._make is None:
            raise DatabaseError(f"tenant {tenant}: this gateway serves {self.database.tenant} alone")
        answerer = self._joined(tenant, self._make(tenant))
        answerer.use_router(self._runtime)
        return answerer

    # --- the background -----------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Load the models, so that no request waits for it; one that does not load is tried again when it is asked."""
        self._trouble["models"] = "loading; the first answers wait for them"
        try:
            self._warm()
        except (RuvllmError, OSError) as error:
            self._say("models", str(error))
        else:
            del self._trouble["models"]
            log.info("models: loaded")

    def settle(self) -> None:
        """Replay the spool, score and write back what waits, take in bursts; what fails waits for the next time."""
        self._try("spool", lambda: self.spool.replay(self._record))
        self._try("outbox", self._settle_outboxes)
        if (take_in := self._take_in) is not None:
            self._try("bursts", lambda: self.metrics.ingest_waiting.set(take_in()))

    def look_at_registry(self) -> None:
        """For metrics alone: answers never wait for MLflow, and what the ledger names was fetched or is said."""
        if (is_up := self._registry_is_up) is not None:
            self._try("mlflow", lambda: self.metrics.mlflow_up.set(float(is_up())))

    def judge(self) -> None:
        """Let the judge score what waits, while nobody asks; one that may not judge is said, and is not asked."""
        if (judge := self._judge) is not None and self._is_idle():
            self._try("judge", lambda: self._judged(judge))

    def _judged(self, judge: IdleJudge) -> None:
        for report in judge.judge(self._served):
            for outcome in ("scored", "unscored", "lost"):
                self.metrics.judged.labels(outcome).inc(getattr(report, outcome))
        if judge.refused:
            raise LearningError(f"not asked: {judge.refused}")

    def _is_idle(self) -> bool:
        """Nobody asks, and the gateway is not ending."""
        state = self.asking.admission.state
        return not (state.draining or self._ending.is_set() or state.running or state.queued)

    def _record(self, tenant: str, row: Interaction) -> None:
        Interactions(tenant_database(self.database, tenant)).record(row)

    def _settle_outboxes(self) -> None:
        for tenant in self._served:
            self.metrics.settled.inc(self.tenants.of(tenant).settle_outbox(_SETTLE_BATCH))
        if self._outbox is not None:
            self.metrics.waiting(self._outbox())

    @property
    def _served(self) -> tuple[str, ...]:
        """The tenants that keys were made for: their answers wait too, whether they ask at the moment or not."""
        return self.door.tenants if self._make is not None else (self.database.tenant,)

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except (RuvllmError, OSError, psycopg.Error) as error:
            self._say(name, str(error))
        else:
            self._say(name, None)

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            work()
            self._ending.wait(max(0.0, seconds - (time.monotonic() - began)))

    def _say(self, name: str, trouble: str | None) -> None:
        """Remember trouble; logged when it is new, not every second."""
        if trouble is None:
            if self._trouble.pop(name, None) is not None:
                log.info("%s: well again", name)
            return
        if self._trouble.get(name) != trouble:
            log.warning("%s: %s", name, trouble)
        self._trouble[name] = trouble


def guessed_tokens(ask: Ask) -> int:
    """Of the prompt without its context, by its characters: the place is taken before any tokeniser is asked."""
    said = sum(len(q) + len(a) for q, a in ask.history) + len(ask.question) + len(ask.instructions)
    return said // _CHARS_A_TOKEN + 1
