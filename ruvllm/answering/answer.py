"""One request, from text to stored interaction, whole or streamed; the same for the CLI, the flows and the gateway.

Knows nothing of HTTP, Prefect or MLflow. text -> clean_text -> embed -> search -> features -> router -> context within
the chosen bin -> generate -> interaction and outbox row in one transaction. Scoring and write-back happen after, from
the outbox.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ruvllm.answering.asking import Answer, Ask, checked_bin, cleaned
from ruvllm.answering.attending import Attending
from ruvllm.answering.cascading import answered_by, surer
from ruvllm.answering.clock import Clock
from ruvllm.answering.interactions import Interaction, Interactions
from ruvllm.answering.offering import Offer
from ruvllm.answering.perception import Perception
from ruvllm.answering.privacy import Level, level
from ruvllm.answering.reading import assembly, context_of_hits
from ruvllm.answering.recall import CACHE, Recall, Recalled, Recited, fits, may_recall
from ruvllm.answering.sessions import Session, Sessions, key_of, trimmed
from ruvllm.answering.streaming import AnswerStream
from ruvllm.attention.citations import cited
from ruvllm.attention.context import Context
from ruvllm.attention.stage import Placed
from ruvllm.errors import (
    BackendError,
    DatabaseError,
    OverloadedError,
    SpoolFullError,
    TooLargeError,
    WorkerDiedError,
)
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.prompt import build, several_lines
from ruvllm.inference.tiers import Ladder, cost
from ruvllm.inference.types import ROUTED_BINS, Generation, Model, Prompt, Sampling, Stream
from ruvllm.memory.records import Hit, Vector
from ruvllm.memory.store import Memory
from ruvllm.router.cascade import CASCADE, Cascade
from ruvllm.router.decision import Decision
from ruvllm.router.live import InFlight, Live
from ruvllm.router.policy import Policy
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings
from ruvllm.text import clean_text, whole_question

__all__ = ["Answer", "AnswerStream", "Answerer", "Ask", "Perception", "Sessions", "Spooling", "Trial"]

log = logging.getLogger(__name__)
T = TypeVar("T")
_NEXT_TIER = (WorkerDiedError, OverloadedError, BackendError)  # another tier may well answer


class Spooling(Protocol):
    """Where an interaction waits that Postgres could not take; it raises SpoolFullError where it cannot."""

    def append(self, tenant: str, row: Interaction) -> None: ...


class Trial(Protocol):
    """A candidate beside the champion: it decides the units that it serves, and for the others what it would have."""

    @property
    def runtime(self) -> RouterRuntime: ...

    def serves(self, unit: str) -> bool: ...


def _whole(model: Model, prompt: Prompt, sampling: Sampling, left_s: float) -> Generation:
    return model.generate(prompt, sampling, left_s)


@dataclass
class _Run:
    """One request on its way. What is decided comes first, then the tier that answers and what it was shown."""

    ask: Ask
    policy: Policy
    level: Level
    session: Session
    refused: dict[int, str]
    clock: Clock
    degraded: list[str] = field(default_factory=list)
    decision: Decision = field(init=False)
    hits: list[Hit] = field(default_factory=list)
    left_s: float | None = None  # of the request's time, for a second answer
    spent: float = 0.0  # cost of an answer that does not stand
    attended: tuple[Placed, ...] = ()  # the hits' places and scores before and after attention, where there is one
    features: NDArray[np.float32] = field(init=False)
    tier: int = 0
    context_bin: int = 0
    shown: Context = field(default_factory=Context)  # to the tier
    began: float = 0.0  # of the generation
    ttft_ms: float | None = None
    recalled: Recalled | None = None  # what memory answers in a tier's place

    @property
    def used(self) -> tuple[int, ...]:
        """Ids of the nodes that the answer is made of."""
        return tuple(self.shown.ids) if self.recalled is None else (self.recalled.node,)


class Answerer:
    """Answers questions with the promoted router, or by the declared cold-start rule before there is one.

    `spool` keeps what Postgres cannot take; `trial` gives the candidate of the moment and `shadow` takes what it would
    have decided (request id, decision): a gateway sets them. `recall` gives answers again; None: never.
    """

    def __init__(
        self,
        settings: Settings,
        perception: Perception,
        pool: ModelPool,
        interactions: Interactions,
        runtime: RouterRuntime | None = None,
        seed: int | None = None,
        recall: Recall | None = None,
    ) -> None:
        self.settings, self.pool, self.perception, self.interactions = settings, pool, perception, interactions
        self.ladder: Ladder = pool.ladder
        self.live = Live(interactions.database, tiers=self.ladder.names)
        self.sessions = Sessions()
        self._recall = recall
        self._attending = Attending(perception)
        self._cascade = Cascade(settings.cascade_floor)
        self._assembly = assembly(settings)
        self.spool: Spooling | None = None
        self.trial: Callable[[], Trial | None] = lambda: None
        self.shadow: Callable[[str, Decision], None] = lambda request_id, decision: None
        self._in_flight = InFlight()
        self._rng = np.random.default_rng(seed)
        self._offer = Offer(settings, self.ladder)
        self._candidate: Policy | None = None
        self.use_router(runtime)

    def check_router(self, runtime: RouterRuntime) -> None:
        """
        Raises:
            BundleError: the router was trained for another ladder, or its attention part is damaged.
        """
        runtime.require(self.ladder.name, self.ladder.names, self.perception.embedder.id)
        self._attending.ready(runtime)

    def use_router(self, runtime: RouterRuntime | None) -> None:
        """Swap the router; one reference assignment, so a request sees the old or the new, never both.

        Raises:
            BundleError: the router was trained for another ladder, or its attention part is damaged.
        """
        if runtime is not None:
            self.check_router(runtime)
        self._policy = self._policy_of(runtime)

    def _policy_of(self, runtime: RouterRuntime | None) -> Policy:
        floor = self.settings.confidence_floor or None
        explorer = self.live.beliefs if self.settings.explorer == "thompson" else None
        return Policy(
            runtime, self._offer.tier_mask, self.settings.explore, self._rng, bins=ROUTED_BINS, floor=floor,
            explorer=explorer,
        )  # fmt: skip

    @property
    def router_version(self) -> str:
        """The promoted version; '' before the first promotion."""
        return self._policy.version

    @property
    def encoder(self) -> str:
        return self.perception.embedder.id

    @property
    def memory(self) -> Memory:
        return self.perception.memory

    def embed(self, texts: list[str]) -> Vector:
        """(n, d) unit vectors of the encoder that memory uses."""
        return self.perception.embedder.embed([clean_text(text, "input") for text in texts])

    # --- the three ways to ask ----------------------------------------------------------------------------------------

    def route(self, ask: Ask) -> tuple[Decision, tuple[Hit, ...]]:
        """The decision for a question and what memory found, without generating."""
        run = self._begun(ask)
        return run.decision, tuple(run.hits)

    def excluded(self, ask: Ask) -> dict[str, str]:
        """Tiers that the request itself rules out, and why."""
        return {self.ladder.names[index]: why for index, why in self._offer.refused(ask).items()}

    def answer(self, ask: Ask) -> Answer:
        """Answer one question and store the interaction.

        Raises:
            InputError: the text or a parameter is unacceptable.
            InferenceError: every tier that was allowed failed.
        """
        with self._in_flight.one_more():
            run = self._recalling(self._begun(ask))
            if run.recalled is not None:
                return self._ended(run, self._recited(run, run.recalled).generation)
            return self._ended(run, self._cascaded(run, self._with_a_tier(run, _whole)))

    def stream(self, ask: Ask) -> AnswerStream:
        """The same, told while it is made: the decision is there at once, the stored answer at the end.

        Another tier steps in only before the first piece; what then goes wrong comes out of the iteration. A stream
        that is closed or cancelled before its end stores nothing.

        Raises:
            InputError: the text or a parameter is unacceptable.
        """
        with ExitStack() as opened:
            opened.enter_context(self._in_flight.one_more())
            run = self._recalling(self._begun(ask))
            counted = opened.pop_all()
        return AnswerStream(
            run.decision,
            tuple(run.hits),
            speaker=lambda: self._speaker(run),
            open=lambda hold: self._told(run, hold),
            end=lambda generation: self._ended(run, generation),
            over=counted.close,
        )

    def _told(self, run: _Run, hold: Callable[[Stream], None]) -> Iterator[str]:
        if run.recalled is None:
            return self._with_a_tier(run, lambda *asked: self._first_piece(run, hold, *asked))
        stream = self._recited(run, run.recalled)
        hold(stream)
        run.ttft_ms = run.clock.total()
        return iter(stream)

    def _first_piece(
        self, run: _Run, hold: Callable[[Stream], None], model: Model, prompt: Prompt, sampling: Sampling, left: float
    ) -> Iterator[str]:
        """Waits for the first piece, so that whatever stands before it is another tier's chance."""
        stream = model.stream(prompt, sampling, left)
        hold(stream)
        try:
            pieces = iter(stream)
            first = next(pieces, "")
        except BaseException:
            stream.close()
            raise
        run.ttft_ms = run.clock.total()
        return chain([first] if first else [], pieces)

    # --- the decision -------------------------------------------------------------------------------------------------

    def _begun(self, ask: Ask) -> _Run:
        ask, policy, clock = cleaned(ask), self._policy, Clock()
        trial = self.trial()
        if trial is not None and trial.serves(ask.unit):
            policy = self._candidate_of(trial)
        session = self.sessions.get(key_of(ask.writer, ask.session_id, ask.history))
        if ask.kept_history:
            ask = replace(ask, history=session.history, turn=session.turns + 1)
        run = _Run(ask, policy, level(ask.privacy), session, self._offer.refused(ask), clock)
        self._decide(run)
        if trial is not None and policy is self._policy:
            self.shadow(ask.request_id, self._decided_by(self._candidate_of(trial), run))
        return run

    def _candidate_of(self, trial: Trial) -> Policy:
        if self._candidate is None or self._candidate.runtime is not trial.runtime:
            self._candidate = self._policy_of(trial.runtime)
        return self._candidate

    def _decide(self, run: _Run) -> None:
        ask, clock = run.ask, run.clock
        with clock.stage("embed"):
            vector = self.perception.vector(ask)
        with clock.stage("search"):
            run.hits = self._search(vector, ask, run.degraded)
        with clock.stage("features"):
            known, concurrent = self.live.now(ask.writer), max(1, self._in_flight.count)
            run.features = self.perception.features(
                ask, vector, run.hits, run.policy.runtime, self.pool.waiting, known, concurrent
            )
        with clock.stage("route"):
            run.decision = self._decided_by(run.policy, run)
        run.tier, run.context_bin = run.decision.tier, run.decision.context_bin

    def _decided_by(self, policy: Policy, run: _Run) -> Decision:
        return policy.decide(
            run.features,
            run.session.hidden_of(policy.version),
            self._offer.allowed(run.ask, run.refused),
            forced_tier=self._offer.place_of(run.ask.forced_tier, run.refused),
            forced_bin=checked_bin(run.ask.forced_bin),
        )

    def _recalling(self, run: _Run) -> _Run:
        """With the answer that memory gives in a tier's place, where it has one that may be given."""
        if self._recall is not None and may_recall(run.ask):
            with run.clock.stage("recall"):
                found = self._recall.look(run.ask.question, run.hits)
            if found is not None and fits(run.ask, found.text):
                run.recalled, run.decision = found, replace(run.decision, decided_by=CACHE)
        return run

    def _search(self, vector: Vector, ask: Ask, degraded: list[str]) -> list[Hit]:
        try:
            return self.perception.search(vector, ask.writer)
        except DatabaseError as error:
            log.warning("answering without memory: %s", error)
            degraded.append("memory")
            return []

    # --- the answer ---------------------------------------------------------------------------------------------------

    def _with_a_tier(self, run: _Run, ask: Callable[[Model, Prompt, Sampling, float], T]) -> T:
        """What `ask` gives for the chosen tier; if its process dies, for the next one that is there."""
        self._attending.reorder(run)
        last: Exception | None = None
        for index in self._offer.order(run.ask, run.decision.tier, run.refused):
            run.tier = index
            try:
                return self._with_a_bin(run, ask)
            except _NEXT_TIER as error:
                log.warning("tier %s: %s", self.ladder.names[index], error)
                run.degraded.append(f"tier:{self.ladder.names[index]}")
                last = error
        assert last is not None
        raise last

    def _with_a_bin(self, run: _Run, ask: Callable[[Model, Prompt, Sampling, float], T]) -> T:
        """With the chosen context bin, or the widest below it whose prompt the model can take."""
        wanted = run.context_bin = run.decision.context_bin
        narrower = [] if run.ask.forced_bin else [b for b in ROUTED_BINS if b < wanted]
        while True:
            try:
                return self._asked(run, ask)
            except TooLargeError:
                if not narrower:
                    raise
                run.degraded.append(f"bin:{run.context_bin}")
                run.context_bin = narrower.pop()

    def _cascaded(self, run: _Run, first: Generation) -> Generation:
        """The next tier's answer where this one was not sure of its words and a setting asks for that."""
        tier, shown, began, width = run.tier, run.shown, run.began, run.context_bin

        def again(further: Decision, left_s: float) -> Generation:
            run.tier, run.left_s = further.tier, left_s
            return self._with_a_bin(run, _whole)

        left_s = self._offer.deadline(run.ask) - run.clock.total() / 1000
        allowed, decision = self._offer.allowed(run.ask, run.refused), answered_by(run.decision, tier)
        given = surer(first, decision, allowed, self._cascade, left_s, again)
        if given.decision is None:
            run.tier, run.shown, run.began, run.context_bin = tier, shown, began, width
            return first
        run.clock.took("cascade", began, run.began)
        run.spent = cost(self.ladder.tiers[tier], self.ladder, first.prompt_tokens, first.completion_tokens)
        self._offer.saw(tier, first)
        run.decision = given.decision
        run.degraded.append(f"{CASCADE}:{self.ladder.names[tier]}")
        return given.generation

    def _asked(self, run: _Run, ask: Callable[[Model, Prompt, Sampling, float], T]) -> T:
        tier, model = self.ladder.tiers[run.tier], self.pool.model(run.tier)
        asked = run.ask
        with run.clock.stage("assemble"):
            question = whole_question(asked.question, asked.history)
            run.shown = context_of_hits(tier, model, run.hits, question, run.context_bin, self._assembly)
            prompt = build(tier, asked.question, run.shown.passages, asked.history, asked.instructions)
        run.began = time.perf_counter()
        left_s = self._offer.deadline(run.ask) if run.left_s is None else run.left_s
        return ask(model, prompt, self._sampling(run), left_s)

    def _sampling(self, run: _Run) -> Sampling:
        ask, decision = run.ask, run.decision
        sampling = Sampling(
            temperature=decision.temperature if ask.temperature is None else ask.temperature,
            top_p=decision.top_p if ask.top_p is None else ask.top_p,
            max_tokens=ask.max_tokens or self.settings.max_tokens,
            seed=ask.seed,
            stop=ask.stop,
            scored=self._cascade.floor > 0,
        )
        return several_lines(self.ladder.tiers[run.tier], sampling) if ask.lines else sampling

    def _recited(self, run: _Run, recalled: Recalled) -> Recited:
        run.began = time.perf_counter()
        return Recited(recalled.text)

    def _speaker(self, run: _Run) -> str:
        return self.ladder.names[run.tier] if run.recalled is None else CACHE

    def _ended(self, run: _Run, generation: Generation) -> Answer:
        run.clock.took("generate", run.began)
        if run.recalled is None:
            self._offer.saw(run.tier, generation)
        tier = self.ladder.tiers[run.tier]
        answer = Answer(
            request_id=run.ask.request_id,
            text=generation.text,
            tier=self._speaker(run),
            context_bin=run.context_bin,
            decision=run.decision,
            generation=generation,
            hits=tuple(run.hits),
            used=run.used,
            cited=cited(generation.text, run.shown).ids,
            stage_ms=run.clock.stages,
            total_ms=run.clock.total(),
            cost=run.spent + cost(tier, self.ladder, generation.prompt_tokens, generation.completion_tokens),
            ttft_ms=run.ttft_ms,
            attended=run.attended,
        )
        self._keep_session(run, answer)
        return self._stored(run, answer)

    def _keep_session(self, run: _Run, answer: Answer) -> None:
        """History only for sessions with an id: a client that names none sends the turns itself."""
        ask, hidden, said = run.ask, run.decision.hidden, answer.text.strip()
        if not run.level.keeps_session or (ask.session_id is None and hidden is None):
            return
        history = (*ask.history, (ask.question, said)) if said else ask.history
        kept = trimmed(history) if ask.session_id is not None else ()
        session = Session(kept, ask.turn, hidden, run.policy.version)
        self.sessions.put(key_of(ask.writer, ask.session_id, history), session)

    # --- what is kept of it -------------------------------------------------------------------------------------------

    def _stored(self, run: _Run, answer: Answer) -> Answer:
        with run.clock.stage("store"):
            outcome = self._store(run, answer) if run.level.stores else "off"
        return replace(
            answer,
            stage_ms=dict(run.clock.stages),
            total_ms=run.clock.total(),
            degraded=tuple(run.degraded),
            writeback=outcome if run.level.writes_back else "off",
        )

    def _store(self, run: _Run, answer: Answer) -> str:
        marked = (*run.degraded, run.level.mark) if run.level.mark else tuple(run.degraded)
        row = Interaction.of(run.ask, answer, run.features, self.ladder.name, marked)
        try:
            self.interactions.record(row)
        except DatabaseError as error:
            log.warning("interaction %s was not stored: %s", answer.request_id, error)
            return self._spooled(run, row)
        return "stored"

    def _spooled(self, run: _Run, row: Interaction) -> str:
        if self.spool is None:
            run.degraded.append("interaction-not-stored")
            return "dropped"
        try:
            self.spool.append(self.interactions.database.tenant, row)
        except SpoolFullError as error:
            log.error("%s", error)
            run.degraded.append("write-back-dropped")
            return "dropped"
        run.degraded.append("write-back-spooled")
        return "spooled"

    def settle_outbox(self, limit: int = 100) -> int:
        """Score and write back up to `limit` stored answers; returns how many were settled.

        It is also where what is known of users and history is read anew, out of every request's way.
        """
        self.live.refresh_if_old()
        if self._recall is not None:
            self._recall.refresh_if_old()
        return self.interactions.settle(self.perception.memory, limit)

    def feedback(
        self, request_id: str, rating: int | None, correction: str | None, task_success: bool | None, writer: str = ""
    ) -> None:
        """Store feedback on an earlier answer; it scores the answer at the next settling.

        Raises:
            NotFoundError: no interaction of that id.
            InputError: nothing was said, or what was said is unacceptable.
        """
        self.interactions.feedback(request_id, rating, correction, task_success, writer)
