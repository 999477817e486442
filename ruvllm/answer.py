"""One request, from text to stored interaction; the same for the CLI, the flows and the gateway.

Knows nothing of HTTP, Prefect or MLflow. text -> clean_text -> embed -> search -> features -> router -> context within
the chosen bin -> generate -> interaction and outbox row in one transaction. Scoring and write-back happen after, from
the outbox.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import BackendError, DatabaseError, InputError, OverloadedError, UnknownTierError, WorkerDiedError
from ruvllm.inference.deadlines import Paces, too_slow
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.prompt import assemble, build
from ruvllm.inference.tiers import Ladder, cost
from ruvllm.inference.types import BINS, ROUTED_BINS, Generation, Sampling
from ruvllm.interactions import Interaction, Interactions
from ruvllm.memory.records import Hit, Vector
from ruvllm.memory.store import Memory
from ruvllm.router import language
from ruvllm.router.decision import N_TIERS, Allowed, Decision
from ruvllm.router.features import FeatureInput, extract
from ruvllm.router.live import NOTHING_KNOWN, InFlight, Live, Now
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings
from ruvllm.text import clean_text

log = logging.getLogger(__name__)

_MAX_SESSIONS = 1000
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Ask:
    """One question. `gold`, where known, scores the answer; `history` is (question, answer) of earlier turns."""

    question: str
    history: tuple[tuple[str, str], ...] = ()
    session_id: str | None = None
    turn: int = 1
    request_id: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    forced_tier: str | None = None
    forced_bin: int | None = None
    latency_budget_s: float | None = None
    gold: tuple[str, ...] | None = None
    cycle_id: str | None = None
    domain: str = ""
    writer: str = ""


@dataclass(frozen=True)
class Answer:
    """What a request became. `stage_ms` holds embed, search, features, route, assemble, generate and store."""

    request_id: str
    text: str
    tier: str
    context_bin: int
    decision: Decision
    generation: Generation
    hits: tuple[Hit, ...]
    used: tuple[int, ...]  # ids of the nodes in the prompt
    stage_ms: dict[str, float]
    total_ms: float
    cost: float
    degraded: tuple[str, ...] = ()
    quality: float | None = None


@dataclass
class _Clock:
    """Milliseconds of each stage, from the monotonic clock of this process."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = (time.perf_counter() - before) * 1000

    def total(self) -> float:
        return (time.perf_counter() - self.started) * 1000


class Sessions:
    """The router's hidden state per session, bounded; a new router version starts all of them afresh."""

    def __init__(self, limit: int = _MAX_SESSIONS) -> None:
        self._states: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, session_id: str | None, version: str) -> NDArray[np.float32] | None:
        with self._lock:
            return self._states.get((session_id, version)) if session_id else None

    def put(self, session_id: str | None, version: str, hidden: NDArray[np.float32] | None) -> None:
        if session_id is None or hidden is None:
            return
        with self._lock:
            self._states[(session_id, version)] = hidden
            self._states.move_to_end((session_id, version))
            while len(self._states) > self._limit:
                self._states.popitem(last=False)


class Perception:
    """What the router sees of a question: its vector, what memory holds near it, the 128 features."""

    def __init__(self, settings: Settings, embedder: EmbeddingAdapter, memory: Memory) -> None:
        self.settings, self.embedder, self.memory = settings, embedder, memory
        language.warm()

    def vector(self, ask: Ask) -> Vector:
        """(d,) unit vector; a follow-up is embedded behind the question that opened its session."""
        return self.embedder.embed_one(f"{ask.history[0][0]} {ask.question}" if ask.history else ask.question)

    def search(self, vector: Vector, reader: str = "") -> list[Hit]:
        return self.memory.search(vector, self.settings.search_k, reader=reader)

    def features(
        self,
        ask: Ask,
        vector: Vector,
        hits: Sequence[Hit],
        runtime: RouterRuntime | None,
        queue_depth: int = 0,
        known: Now = NOTHING_KNOWN,
        concurrent: float = math.nan,
    ) -> NDArray[np.float32]:
        """(128,) float32. `known` and `concurrent` are of the service that asks; unknown outside one."""
        return extract(
            FeatureInput(
                question=ask.question,
                token_count=len(_WORDS.findall(ask.question)),
                embedding=vector,
                similarities=np.array([hit.similarity for hit in hits], dtype=np.float32),
                hit_embeddings=np.array([h.embedding for h in hits], dtype=np.float32).reshape(len(hits), vector.size),
                hit_domains=tuple(hit.node.domain for hit in hits),
                k_asked=self.settings.search_k,
                turn=ask.turn,
                latency_budget_s=ask.latency_budget_s or self.settings.deadline_s,
                queue_depth=queue_depth,
                concurrent=concurrent,
                now=datetime.now(),
                **vars(known),
            ),
            runtime.transforms if runtime else None,
        )


class Answerer:
    """Answers questions with the promoted router, or by the declared cold-start rule before there is one."""

    def __init__(
        self,
        settings: Settings,
        perception: Perception,
        pool: ModelPool,
        interactions: Interactions,
        runtime: RouterRuntime | None = None,
        seed: int | None = None,
    ) -> None:
        self.settings, self.pool, self.perception, self.interactions = settings, pool, perception, interactions
        self.ladder: Ladder = pool.ladder
        self.live = Live(interactions.database)
        self._in_flight = InFlight()
        self._sessions = Sessions()
        self._rng = np.random.default_rng(seed)
        self._tier_mask = tuple(place < len(self.ladder.tiers) for place in range(N_TIERS))
        self._paces = [Paces() for _ in self.ladder.tiers]
        self._told: frozenset[tuple[int, int]] = frozenset()
        self.use_router(runtime)

    def use_router(self, runtime: RouterRuntime | None) -> None:
        """Swap the router; one reference assignment, so a request sees the old or the new, never both.

        Raises:
            BundleError: the router was trained for another ladder.
        """
        if runtime is not None:
            runtime.require(self.ladder.name, self.ladder.names, self.perception.embedder.id)
        self._policy = Policy(
            runtime,
            self._tier_mask,
            self.settings.explore,
            self._rng,
            bins=ROUTED_BINS,
            floor=self.settings.confidence_floor or None,
        )

    @property
    def router_version(self) -> str:
        """The promoted version; '' before the first promotion."""
        return self._policy.version

    def route(self, ask: Ask) -> tuple[Decision, tuple[Hit, ...]]:
        """The decision for a question and what memory found, without generating."""
        decision, hits, _, _ = self._decide(self._policy, _cleaned(ask), _Clock(), [])
        return decision, tuple(hits)

    def answer(self, ask: Ask) -> Answer:
        """Answer one question and store the interaction.

        Raises:
            InputError: the text or a parameter is unacceptable.
            InferenceError: every tier that was allowed failed.
        """
        with self._in_flight.one_more():
            return self._answered(ask)

    def _answered(self, ask: Ask) -> Answer:
        ask, clock, policy = _cleaned(ask), _Clock(), self._policy
        degraded: list[str] = []
        decision, hits, features, hidden_version = self._decide(policy, ask, clock, degraded)
        generation, used, tier_index = self._generate(ask, decision, hits, clock, degraded)
        self._sessions.put(ask.session_id, hidden_version, decision.hidden)
        tier = self.ladder.tiers[tier_index]
        answer = Answer(
            request_id=ask.request_id,
            text=generation.text,
            tier=tier.name,
            context_bin=decision.context_bin,
            decision=decision,
            generation=generation,
            hits=tuple(hits),
            used=tuple(used),
            stage_ms=clock.stages,
            total_ms=clock.total(),
            cost=cost(tier, self.ladder, generation.prompt_tokens, generation.completion_tokens),
        )
        return self._stored(ask, answer, features, clock, degraded)

    def _decide(
        self, policy: Policy, ask: Ask, clock: _Clock, degraded: list[str]
    ) -> tuple[Decision, list[Hit], NDArray[np.float32], str]:
        with clock.stage("embed"):
            vector = self.perception.vector(ask)
        with clock.stage("search"):
            hits = self._search(vector, ask, degraded)
        with clock.stage("features"):
            known, concurrent = self.live.now(ask.writer), max(1, self._in_flight.count)
            features = self.perception.features(ask, vector, hits, policy.runtime, self.pool.waiting, known, concurrent)
        with clock.stage("route"):
            decision = policy.decide(
                features,
                self._sessions.get(ask.session_id, policy.version),
                self._allowed(ask),
                forced_tier=self._tier_index(ask.forced_tier),
                forced_bin=_checked_bin(ask.forced_bin),
            )
        return decision, hits, features, policy.version

    def _allowed(self, ask: Ask) -> Allowed:
        """What can be done in the time that the request has, at the pace of the latest answers."""
        paces = [each.pace for each in self._paces]
        slow = too_slow(paces, ask.max_tokens or self.settings.max_tokens, self._deadline(ask))
        if ask.latency_budget_s is None and slow != self._told:
            self._told = slow
            log.warning("%s", self._slowness(slow))
        return Allowed(self._tier_mask, tuple(b in ROUTED_BINS for b in BINS), slow)

    def _deadline(self, ask: Ask) -> float:
        return min(ask.latency_budget_s or self.settings.deadline_s, self.settings.deadline_s)

    def _slowness(self, slow: frozenset[tuple[int, int]]) -> str:
        pairs = ", ".join(f"{self.ladder.tiers[tier].name} at {BINS[place]} tokens" for tier, place in sorted(slow))
        limit = f"{self.settings.deadline_s:g} s (RUVLLM_DEADLINE_S)"
        return (
            f"too slow here for {limit}, so not offered to the router: {pairs}" if pairs else f"all fits {limit} again"
        )

    def _search(self, vector: Vector, ask: Ask, degraded: list[str]) -> list[Hit]:
        try:
            return self.perception.search(vector, ask.writer)
        except DatabaseError as error:
            log.warning("answering without memory: %s", error)
            degraded.append("memory")
            return []

    def _generate(
        self, ask: Ask, decision: Decision, hits: list[Hit], clock: _Clock, degraded: list[str]
    ) -> tuple[Generation, list[int], int]:
        """Generate with the chosen tier; if its process dies, with the next one that is there."""
        last: Exception | None = None
        for index in self._order(decision.tier, forced=ask.forced_tier is not None):
            try:
                generation, used = self._generate_with(index, ask, decision, hits, clock)
                return generation, used, index
            except (WorkerDiedError, OverloadedError, BackendError) as error:
                log.warning("tier %s: %s", self.ladder.tiers[index].name, error)
                degraded.append(f"tier:{self.ladder.tiers[index].name}")
                last = error
        assert last is not None
        raise last

    def _order(self, first: int, forced: bool) -> list[int]:
        others = [] if forced else [i for i in range(len(self.ladder.tiers)) if i != first]
        return [first, *others]

    def _generate_with(
        self, index: int, ask: Ask, decision: Decision, hits: list[Hit], clock: _Clock
    ) -> tuple[Generation, list[int]]:
        tier, model = self.ladder.tiers[index], self.pool.model(index)
        passages = [hit.node.text for hit in hits]
        with clock.stage("assemble"):
            chosen = assemble(tier, model, passages, decision.context_bin)
            prompt = build(tier, ask.question, [passages[i] for i in chosen], ask.history)
        with clock.stage("generate"):
            sampling = self._sampling(ask, decision)
            generation = model.generate(prompt, sampling, self._deadline(ask))
        self._paces[index].saw(generation)
        return generation, [hits[i].node.id for i in chosen]

    def _sampling(self, ask: Ask, decision: Decision) -> Sampling:
        return Sampling(
            temperature=decision.temperature if ask.temperature is None else ask.temperature,
            top_p=decision.top_p if ask.top_p is None else ask.top_p,
            max_tokens=ask.max_tokens or self.settings.max_tokens,
        )

    def _tier_index(self, name: str | None) -> int | None:
        if name is None:
            return None
        if name not in self.ladder.names:
            raise UnknownTierError(
                f"tier {name!r}: not in the ladder {self.ladder.name}; want one of {self._choices()}"
            )
        return self.ladder.names.index(name)

    def _choices(self) -> str:
        return ", ".join(("auto", *self.ladder.names))

    def _stored(
        self, ask: Ask, answer: Answer, features: NDArray[np.float32], clock: _Clock, degraded: list[str]
    ) -> Answer:
        with clock.stage("store"):
            try:
                row = Interaction.of(ask, answer, features, self.ladder.name, tuple(degraded))
                self.interactions.record(row)
            except DatabaseError as error:
                log.warning("interaction %s was not stored: %s", answer.request_id, error)
                degraded.append("interaction-not-stored")
        return _replace_times(answer, clock, tuple(degraded))

    def settle_outbox(self, limit: int = 100) -> int:
        """Score and write back up to `limit` stored answers; returns how many were settled.

        It is also where what is known of users and history is read anew, out of every request's way.
        """
        self.live.refresh_if_old()
        return self.interactions.settle(self.perception.memory, limit)

    def feedback(
        self, request_id: str, rating: int | None, correction: str | None, task_success: bool | None, writer: str = ""
    ) -> None:
        """Store feedback on an earlier answer; it scores the answer at the next settling.

        Raises:
            InputError: no interaction of that id, or nothing was said.
        """
        self.interactions.feedback(request_id, rating, correction, task_success, writer)


def _cleaned(ask: Ask) -> Ask:
    history = tuple((clean_text(q, "history"), clean_text(a, "history")) for q, a in ask.history)
    return replace(
        ask,
        question=clean_text(ask.question, "question"),
        history=history,
        request_id=ask.request_id or str(uuid.uuid4()),
    )


def _checked_bin(context_bin: int | None) -> int | None:
    if context_bin is not None and context_bin not in ROUTED_BINS:
        raise InputError(f"context bin {context_bin}: want one of {', '.join(map(str, ROUTED_BINS))}")
    return context_bin


def _replace_times(answer: Answer, clock: _Clock, degraded: tuple[str, ...]) -> Answer:
    return replace(answer, stage_ms=dict(clock.stages), total_ms=clock.total(), degraded=degraded)
