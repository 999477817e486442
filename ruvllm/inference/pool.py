"""The models of a ladder, each in its process: started at first use, again after a death. Knows nothing of HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ruvllm.errors import UnknownTierError, WorkerDiedError
from ruvllm.inference.files import ensure
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.tiers import Ladder, Tier
from ruvllm.inference.types import Generation, Model, NestedGeneration, Prompt, Sampling
from ruvllm.settings import Settings

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
T = TypeVar("T")


class WorkerModel(Model, Protocol):
    """A model with a process of its own."""

    @property
    def alive(self) -> bool: ...
    def close(self) -> None: ...


Starter = Callable[[Tier], WorkerModel]


class SupervisedModel:
    """One tier's `Model`. A request that its process dies of is tried once more in a new one.

    The first death costs nothing but the new start. When the process dies again before it has answered, the next start
    waits 1, 2, 4 … 60 s, and until then requests are refused at once with WorkerDiedError: the caller has other tiers.
    """

    def __init__(self, tier: Tier, start: Starter, clock: Callable[[], float] = time.monotonic) -> None:
        self.tier = tier
        self._start_worker, self._clock = start, clock
        self._worker: WorkerModel | None = None
        self._starting = threading.Lock()
        self._deaths, self._not_before, self._closed = 0, 0.0, False
        self._counting, self._busy = threading.Lock(), 0

    @property
    def busy(self) -> int:
        """Requests that are being answered or wait."""
        return self._busy

    def start(self) -> None:
        """Loads the model now instead of at the first request."""
        self._current()

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._run(lambda model: model.count_tokens(texts))

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        return self._run(lambda model: model.generate(prompt, sampling, deadline_s))

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        return self._run(lambda model: model.generate_nested(prompts, sampling, deadline_s))

    def _run(self, ask: Callable[[Model], T]) -> T:
        with self._counted():
            try:
                return self._tried(ask)
            except WorkerDiedError:
                return self._tried(ask)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._counting:
            self._busy += 1
        try:
            yield
        finally:
            with self._counting:
                self._busy -= 1

    def _tried(self, ask: Callable[[Model], T]) -> T:
        worker = self._current()
        try:
            answer = ask(worker)
        except WorkerDiedError:
            self._buried(worker)
            raise
        self._deaths = 0
        return answer

    def _current(self) -> WorkerModel:
        with self._starting:
            if self._closed:
                raise WorkerDiedError(f"model {self.tier.name}: its pool is closed")
            if self._worker is None or not self._worker.alive:
                self._worker = self._started()
            return self._worker

    def _started(self) -> WorkerModel:
        wait = self._not_before - self._clock()
        if wait > 0:
            raise WorkerDiedError(
                f"model {self.tier.name}: its process died {self._deaths} times in a row; next start in {wait:.0f} s"
            )
        try:
            return self._start_worker(self.tier)
        except WorkerDiedError:
            self._count_death()
            raise

    def _buried(self, worker: WorkerModel) -> None:
        """Counts a death once, however many requests waited for that process."""
        with self._starting:
            if self._worker is worker:
                self._worker = None
                self._count_death()
        worker.close()

    def _count_death(self) -> None:
        self._deaths += 1
        if self._deaths > 1:
            self._not_before = self._clock() + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self._deaths - 2))

    def close(self) -> None:
        with self._starting:
            self._closed, worker, self._worker = True, self._worker, None
        if worker is not None:
            worker.close()


class ModelPool:
    """`model(i)` is the ladder's i-th tier, safe to use from several threads; close it, or use it as a context manager.

    `threads` per model: None takes the setting, whose 0 measures at start.
    """

    def __init__(
        self, settings: Settings, ladder: Ladder, threads: int | None = None, start: Starter | None = None
    ) -> None:
        self.ladder = ladder
        count = settings.threads if threads is None else threads
        starter = start or (lambda tier: LlamaWorker(tier, ensure(tier, settings), settings, count))
        self._models: Sequence[SupervisedModel] = [SupervisedModel(tier, starter) for tier in ladder.tiers]

    @property
    def waiting(self) -> int:
        """Requests that a model is answering or that wait for one."""
        return sum(model.busy for model in self._models)

    def model(self, index: int) -> SupervisedModel:
        """Starts nothing yet: the first request does.

        Raises:
            UnknownTierError: the ladder has no such place.
        """
        if not 0 <= index < len(self._models):
            raise UnknownTierError(
                f"tier {index}: the ladder {self.ladder.name} has places 0 to {len(self._models) - 1}"
            )
        return self._models[index]

    def close(self) -> None:
        for model in self._models:
            model.close()

    def __enter__(self) -> ModelPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
