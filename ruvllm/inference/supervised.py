"""One tier's model whatever becomes of its process: started at first use, again after a death, replaced when worn.

Knows nothing of HTTP, files or of what a model's process is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar, runtime_checkable

from ruvllm.errors import InferenceError, OverloadedError, WorkerDiedError
from ruvllm.inference.budget import MemoryBudget
from ruvllm.inference.counts import TokenCounts
from ruvllm.inference.quarantine import Quarantine
from ruvllm.inference.snapshots import Counts
from ruvllm.inference.states import TierState as TierState
from ruvllm.inference.stream import RetriedStream
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Choice, Generation, Model, NestedGeneration, Prompt, Sampling, Stream

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_COUNTING_S = 60.0  # to count tokens, which has no deadline of its own
_LOOK_S = 0.1  # how often a request that waits for a worn process looks for streams that were lost
_MOST_WAITS = 8  # processes that may be gone before a request's turn comes
_MIB = 2**20
T = TypeVar("T")


class WorkerModel(Model, Protocol):
    """A model with a process of its own, or a server's."""

    @property
    def alive(self) -> bool: ...
    def close(self) -> None: ...


@runtime_checkable
class Measured(Protocol):
    """What a worker may tell of its process."""

    @property
    def resident(self) -> int: ...
    @property
    def worn(self) -> str: ...


Starter = Callable[[Tier], WorkerModel]
Ask = Callable[[Model, float], T]  # the model, and the seconds that are left


class SupervisedModel:
    """One tier's `Model`. A request that its process dies of is tried once more in a new one.

    The first death costs nothing but the new start. When the process dies again before it has answered, the next start
    waits 1, 2, 4 … 60 s, and until then requests are refused at once with WorkerDiedError: the caller has other tiers.
    A stream that has said something is not tried again. A prompt that was worked on in two deaths is refused with
    QuarantinedError, unless the process was ended from outside. A worn process is replaced when nothing works in it;
    requests that come meanwhile wait.
    """

    def __init__(
        self,
        tier: Tier,
        start: Starter,
        clock: Callable[[], float] = time.monotonic,
        budget: MemoryBudget | None = None,
        memory: int = 0,
    ) -> None:
        self.tier = tier
        self.quarantine = Quarantine(tier.name, clock)
        self._counts = TokenCounts()
        self._start_worker, self._clock, self._budget, self._estimate = start, clock, budget, memory
        self._worker: WorkerModel | None = None
        self._using = 0  # requests in that worker
        self._door = threading.Condition()  # held while a process starts
        self._deaths, self._not_before, self._closed, self._loading = 0, 0.0, False, False
        self._restarts = self._recycled = self._evicted = 0
        self._counting, self._busy = threading.Lock(), 0
        self._lost: deque[_Request] = deque()  # of streams that were collected unread: no lock may be taken there

    @property
    def name(self) -> str:
        return self.tier.name

    @property
    def busy(self) -> int:
        """Requests that are being answered or wait."""
        self._settle_lost()
        return self._busy

    @property
    def memory(self) -> int:
        """Bytes that the process holds; before it is there, what it is expected to hold."""
        worker = self._worker
        return (worker.resident if isinstance(worker, Measured) else 0) or self._estimate

    @property
    def state(self) -> TierState:
        state, detail = self._state()
        resident = self.memory // _MIB if state == "ready" else 0
        busy = self.busy
        counts = (self._restarts, self._recycled, self._evicted, len(self.quarantine))
        kept = getattr(self._worker, "snapshots", None) if state == "ready" else None
        return TierState(self.name, state, detail, busy, resident, *counts, kept if isinstance(kept, Counts) else None)

    def _state(self) -> tuple[str, str]:
        worker, wait = self._worker, self._not_before - self._clock()
        if self._closed:
            return "closed", "its pool is closed"
        if self._loading:
            return "loading", "its process starts"
        if worker is not None and worker.alive:
            if not getattr(worker, "ready", True):  # a server's: it can be asked, and none answers
                return "failing", "none of its servers answers"
            return "ready", _told_worn(worker)
        if wait > 0:
            return "failing", f"its process died {self._deaths} times in a row; next start in {wait:.0f} s"
        return "cold", "starts with the next request"

    def start(self, deadline_s: float = 600.0) -> None:
        """Loads the model now instead of at the first request."""
        with self._counted():
            self._leave(self._enter(self._clock() + deadline_s))

    # -- the model

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Texts that were counted lately are not counted again, and wait for no answer that is being made."""
        return self._counts.of(texts, self._counted_by_worker)

    def _counted_by_worker(self, texts: list[str]) -> list[int]:
        return self._run(lambda model, _: model.count_tokens(texts), _COUNTING_S)

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        return self._run(lambda model, left: model.generate(prompt, sampling, left), deadline_s, [prompt])

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        asked = list(prompts.values())
        return self._run(lambda model, left: model.generate_nested(prompts, sampling, left), deadline_s, asked)

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        return self._run(lambda model, left: model.choose(prompts, choices, left), deadline_s, prompts)

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> RetriedStream:
        """Busy until it is read, closed or lost."""
        request = _Request(self, [prompt], deadline_s)

        def ask(model: Model, left: float) -> Stream:
            return model.stream(prompt, sampling, left)

        self._count(1)
        try:
            stream = request.first(ask)
        except BaseException:
            self._count(-1)
            raise
        lost = self._lost
        return RetriedStream(
            stream, lambda error, said: request.again(ask, error, said), request.over, lambda: lost.append(request)
        )

    def _settle_lost(self) -> None:
        while self._lost:
            with suppress(IndexError):  # another thread was faster
                self._lost.popleft().over(whole=False)

    def _run(self, ask: Ask[T], deadline_s: float, prompts: Sequence[Prompt] = ()) -> T:
        request = _Request(self, prompts, deadline_s)
        with self._counted():
            answer = request.first(ask)
            request.end(whole=True)
            return answer

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._busy += change
        if self._budget is not None and change < 0:
            self._budget.used(self)

    # -- its process

    def _enter(self, ends: float) -> WorkerModel:
        """A worker to ask; `_leave` it afterwards."""
        self._settle_lost()
        if not self._door.acquire(timeout=self._wait(ends)):
            raise OverloadedError(f"model {self.name}: still loading at the request's deadline; ask again later")
        try:
            self._until_it_can_go(ends)
            if self._closed:
                raise WorkerDiedError(f"model {self.name}: its pool is closed")
            self._drop_what_is_spent()
            if self._worker is None:
                self._worker, self._using = self._started(ends), 0
            self._using += 1
            return self._worker
        finally:
            self._door.release()

    def _until_it_can_go(self, ends: float) -> None:
        """A worn process ends when nothing works in it; at this request's deadline it is used once more."""
        while self._using and self._worn() and self._wait(ends):
            self._door.wait(min(_LOOK_S, self._wait(ends)))
            self._settle_lost()

    def _wait(self, ends: float) -> float:
        return min(max(0.0, ends - self._clock()), threading.TIMEOUT_MAX)

    def _worn(self) -> str:
        worker = self._worker
        return _told_worn(worker) if worker is not None and worker.alive else ""

    def _drop_what_is_spent(self) -> None:
        worker = self._worker
        if worker is None:
            return
        if not worker.alive:  # found dead before whoever worked in it has said so
            self._count_death()
        elif self._using == 0 and self._worn():
            self._recycled += 1
        else:
            return
        self._worker = None
        if self._budget is not None:
            self._budget.gone(self)
        worker.close()

    def _started(self, ends: float) -> WorkerModel:
        wait = self._not_before - self._clock()
        if wait > 0:
            raise WorkerDiedError(
                f"model {self.name}: its process died {self._deaths} times in a row; next start in {wait:.0f} s"
            )
        if self._budget is not None:
            self._budget.make_room(self, self._wait(ends))
        self._loading = True
        self._counts.clear()  # its file may be another one now
        try:
            return self._start_worker(self.tier)
        except BaseException as error:
            if isinstance(error, WorkerDiedError):
                self._count_death()
            if self._budget is not None:
                self._budget.gone(self)
            raise
        finally:
            self._loading = False

    def _leave(self, worker: WorkerModel) -> None:
        with self._door:
            if self._worker is worker:
                self._using -= 1
                self._door.notify_all()

    def _failed(self, worker: WorkerModel, error: InferenceError, prompts: Sequence[Prompt]) -> None:
        """Counts what a lost process means; any other error leaves it as it is."""
        if prompts and error.working and not error.external:
            self.quarantine.died(prompts)
        if error.working or isinstance(error, WorkerDiedError):
            self._bury(worker)

    def _bury(self, worker: WorkerModel) -> None:
        """Counts a death once, however many requests waited for that process."""
        with self._door:
            first = self._worker is worker
            if first:
                self._worker, self._using = None, 0
                self._count_death()
                self._door.notify_all()
        if first and self._budget is not None:
            self._budget.gone(self)
        worker.close()

    def _count_death(self) -> None:
        self._deaths += 1
        self._restarts += 1
        if self._deaths > 1:
            self._not_before = self._clock() + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self._deaths - 2))

    def leave(self) -> bool:
        """Ends its process to make room, unless anything works or waits there, or there is none."""
        if not self._door.acquire(blocking=False):
            return False
        try:
            self._settle_lost()
            worker = self._worker
            if self._busy or worker is None:
                return False
            self._worker, self._using = None, 0
            self._evicted += 1
        finally:
            self._door.release()
        worker.close()
        return True

    def close(self) -> None:
        with self._door:
            self._closed, worker, self._worker = True, self._worker, None
            self._door.notify_all()
        if worker is not None:
            worker.close()
        if self._budget is not None:
            self._budget.gone(self)


def _told_worn(worker: object) -> str:
    return str(getattr(worker, "worn", ""))  # asked several times a request: a Protocol's isinstance takes 20 us


class _Request:
    """One request's way through the workers of one model: at most two work on it, and a few may die before its turn."""

    def __init__(self, model: SupervisedModel, prompts: Sequence[Prompt], deadline_s: float) -> None:
        self._model, self._prompts = model, prompts
        self._ends = model._clock() + deadline_s
        self._worker: WorkerModel | None = None
        self._tries = self._waited = 0

    def first(self, ask: Ask[T]) -> T:
        """
        Raises:
            QuarantinedError: a process died of these prompts twice.
            WorkerDiedError: two processes died, or none may be started now.
        """
        while True:
            self._model.quarantine.check(self._prompts)
            try:
                return self._ask(ask)
            except WorkerDiedError as error:
                if error.reached and self._tries > 1:
                    raise
                self._waited += not error.reached
                if self._waited > _MOST_WAITS or not self._model._wait(self._ends):
                    raise

    def _ask(self, ask: Ask[T]) -> T:
        self._tries += 1
        worker = self._worker = self._model._enter(self._ends)
        try:
            return ask(worker, self._model._wait(self._ends))
        except BaseException as error:
            self._tries -= not getattr(error, "reached", True)
            self.end(whole=False, error=error)
            raise

    def again(self, ask: Ask[T], error: WorkerDiedError, said: bool) -> T:
        """After a stream's process died.

        Raises:
            WorkerDiedError: something was said already, or it was the second.
        """
        self.end(whole=False, error=error)
        if said or self._tries > 1:
            raise error
        self._model.quarantine.check(self._prompts)
        return self._ask(ask)

    def end(self, whole: bool, error: BaseException | None = None) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if isinstance(error, InferenceError):
            self._model._failed(worker, error, self._prompts)
        if whole:
            self._model._deaths = 0
            self._model.quarantine.answered(self._prompts)
        self._model._leave(worker)

    def over(self, whole: bool) -> None:
        """A stream's end."""
        self.end(whole)
        self._model._count(-1)
