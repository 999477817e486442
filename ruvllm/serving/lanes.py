"""A bounded place to work: who enters is counted before anything is done, and worked for by a thread.

Knows nothing of what the work is. Asking and everything else go on different lanes, so that an answer in the making
never holds up a look into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ruvllm.errors import OverloadedError, RateLimitedError
from ruvllm.serving.admission import Admission, Bounds, Ticket
from ruvllm.serving.keys import Caller
from ruvllm.serving.metrics import Metrics

T = TypeVar("T")


class Lane:
    """One admission and the threads behind it, as many as it has slots."""

    def __init__(self, name: str, bounds: Bounds, metrics: Metrics) -> None:
        self.admission, self._metrics = Admission(bounds), metrics
        self._threads = ThreadPoolExecutor(bounds.slots, thread_name_prefix=name)

    def enter(self, caller: Caller, tokens: int, deadline_s: float) -> Ticket:
        """A place, taken before any work; `submit` or `leave` it.

        Raises:
            OverloadedError: no place is left.
            RateLimitedError: the caller's own limits are reached.
        """
        try:
            return self.admission.enter(caller.key_id, caller.limits, tokens, deadline_s)
        except (OverloadedError, RateLimitedError) as error:
            self._metrics.rejected.labels(_REASONS[type(error)]).inc()
            raise

    def submit(self, ticket: Ticket, work: Callable[[], T]) -> Future[T]:
        """The work of a ticket, which leaves when it ends, however it ends.

        Raises:
            OverloadedError: the lane is closed.
        """

        def begun() -> T:
            ticket.begin()
            return work()

        try:
            future = self._threads.submit(begun)
        except RuntimeError as error:  # the executor is shut down
            ticket.leave()
            raise OverloadedError("the gateway is shutting down; try again elsewhere or in a moment") from error
        future.add_done_callback(lambda _: ticket.leave())
        return future

    def close(self, drain_s: float) -> bool:
        """Nobody enters any more; whether all who were inside were done within `drain_s` seconds."""
        self.admission.close()
        drained = self.admission.drained(drain_s)
        self._threads.shutdown(wait=drained, cancel_futures=True)
        return drained


_REASONS: dict[type[Exception], str] = {OverloadedError: "overloaded", RateLimitedError: "rate_limited"}
