"""An answerer that answers at once with what it was asked; for unit tests of HTTP, never for a cycle or a benchmark."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ruvllm.answering.answer import Answer, Ask, Spooling, Trial
from ruvllm.errors import CancelledError, InferenceError, NotFoundError
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.inference.types import Generation
from ruvllm.memory.records import Hit, Node, Vector
from ruvllm.memory.store import Memory
from ruvllm.router.decision import Decision
from ruvllm.router.runtime import RouterRuntime
from ruvllm.text import clean_text

HIT = Hit(
    Node(7, "uuid", "Document", "geography", "system", "secret text", "factbook", "", (), {}, 1.0, 1),
    0.75,
    np.zeros(4, dtype=np.float32),
)


class FakeSpeech:
    """Word by word. `pause`, where given, is waited for behind the first; `fails` is raised there."""

    def __init__(self, answer: Answer, pause: threading.Event | None, fails: Exception | None) -> None:
        self.decision, self.hits, self.tier = answer.decision, answer.hits, answer.tier
        self._answer, self._pause, self._fails = answer, pause, fails
        self._left = re.findall(r"\S+\s*", answer.text)
        self.cancelled, self.closed = threading.Event(), threading.Event()

    @property
    def answer(self) -> Answer:
        if self._left:
            raise InferenceError("fake: pieces are left")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        while self._left:
            yield self._left.pop(0)
            if self._pause is not None:
                assert self._pause.wait(30)
            if self.cancelled.is_set():
                raise CancelledError("fake: taken back")
            if self._fails is not None:
                raise self._fails

    def cancel(self) -> None:
        self.cancelled.set()
        if self._pause is not None:
            self._pause.set()

    def close(self) -> None:
        self.closed.set()


@dataclass
class FakeAnswerer:
    """Answers with what it was asked. `error` is raised instead, `late_error` behind the first word; `gate`, where set,
    is waited for first, `pause` behind the first word."""

    ladder: Ladder = field(default_factory=lambda: Ladder("packaged", tuple(load_catalogue()["packaged"]), "of a test"))
    router_version: str = ""
    error: Exception | None = None
    late_error: Exception | None = None
    gate: threading.Event | None = None
    pause: threading.Event | None = None
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: list[Ask] = field(default_factory=list)
    speeches: list[FakeSpeech] = field(default_factory=list)
    feedbacks: list[tuple[object, ...]] = field(default_factory=list)
    settled: int = 0
    encoder: str = "test-encoder"
    spool: Spooling | None = None
    trial: Callable[[], Trial | None] = lambda: None
    shadow: Callable[[str, Decision], None] = lambda request_id, decision: None

    @property
    def memory(self) -> Memory:
        raise NotImplementedError("a fake answerer has no memory")

    def stream(self, ask: Ask) -> FakeSpeech:
        self._take(ask)
        speech = FakeSpeech(self._answer(ask), self.pause, self.late_error)
        self.speeches.append(speech)
        return speech

    def _answer(self, ask: Ask) -> Answer:
        return Answer(
            request_id=ask.request_id,
            text=f"You asked: {ask.question}",
            tier=ask.forced_tier or self.ladder.tiers[0].name,
            context_bin=ask.forced_bin or 512,
            decision=self._decision(ask),
            generation=Generation("", 20, 5, 12, 0.0, 0.0, "stop"),
            hits=(HIT,),
            used=(7,),
            stage_ms={"embed": 4.0, "search": 1.5, "route": 0.05, "generate": 0.0},
            total_ms=6.0,
            cost=0.01,
            degraded=("memory",),
        )

    def route(self, ask: Ask) -> tuple[Decision, tuple[Hit, ...]]:
        self._take(ask)
        return self._decision(ask), (HIT,)

    def excluded(self, ask: Ask) -> dict[str, str]:
        return {}

    def embed(self, texts: list[str]) -> Vector:
        cleaned = [clean_text(text, "input") for text in texts]
        return np.array([[len(text), 1.0, 0.0] for text in cleaned], dtype=np.float32)

    def settle_outbox(self, limit: int = 100) -> int:
        self.settled += 1
        return 0

    def check_router(self, runtime: RouterRuntime) -> None:
        runtime.require("packaged", ("smollm2-135m", "gemma3-270m"), self.encoder)

    def use_router(self, runtime: RouterRuntime | None) -> None:
        assert runtime is not None
        self.check_router(runtime)
        self.router_version = runtime.version

    def feedback(
        self, request_id: str, rating: int | None, correction: str | None, task_success: bool | None, writer: str = ""
    ) -> None:
        if request_id == "unknown":
            raise NotFoundError("request 'unknown': no such interaction")
        self.feedbacks.append((request_id, rating, correction, task_success, writer))

    def _take(self, ask: Ask) -> None:
        self.asked.append(ask)
        self.began.release()
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        for text in (ask.question, *(text for turn in ask.history for text in turn)):
            clean_text(text, "question")

    def _decision(self, ask: Ask) -> Decision:
        tier = [t.name for t in self.ladder.tiers].index(ask.forced_tier) if ask.forced_tier else 0
        source = "forced" if ask.forced_tier else "champion"
        return Decision(tier, 512, 0.0, 1.0, 0.875, 0.9, source, self.router_version, (0.9, 0.1, 0, 0), (0, 1, 0, 0, 0))
