"""Who is let in, and when: bounded places, queue and tokens for all, limits for each key. Counted before any work.

Knows nothing of HTTP, of models or of what is asked: whoever enters says who they are and how much they bring. Full for
all is OverloadedError (503, this box); full for one key is RateLimitedError (429, this key). Each says when to try
again. Times are seconds of `clock`, which only ever goes forward.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from ruvllm.errors import DeadlineError, OverloadedError, RateLimitedError
from ruvllm.serving.buckets import Bucket

_SHORTEST_S, _LONGEST_S = 1.0, 30.0  # what Retry-After may say
_SMOOTHING = 0.2  # weight of the newest request in the mean time that one takes
_REMEMBERED = 10_000  # keys whose buckets are kept; one that is forgotten starts full
Clock = Callable[[], float]


@dataclass(frozen=True)
class Bounds:
    """`slots` requests run, `queue` more may wait, with `queue_tokens` prompt tokens among those that wait."""

    slots: int
    queue: int = 8
    queue_tokens: int = 16384


@dataclass(frozen=True)
class CallerLimits:
    """Of one key; None: no limit."""

    concurrency: int | None = 4
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class AdmissionState:
    running: int
    queued: int
    queued_tokens: int
    draining: bool


@dataclass
class _Key:
    """What one key has going; its buckets refill over a minute."""

    limits: CallerLimits | None = None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    inside: int = 0

    def limit(self, limits: CallerLimits, now: float) -> None:
        self.limits = limits
        self.requests = Bucket.full(limits.requests_per_minute, now)
        self.tokens = Bucket.full(limits.tokens_per_minute, now)


class Admission:
    """One gateway's door. Safe among threads; nothing here waits but `drained`."""

    def __init__(self, bounds: Bounds, clock: Clock = time.monotonic) -> None:
        self.bounds, self._clock = bounds, clock
        self._lock = threading.Condition()
        self._keys: OrderedDict[str, _Key] = OrderedDict()
        self._running = self._queued = self._queued_tokens = 0
        self._closed = False
        self._taken_s = 1.0  # smoothed seconds from begin to leave

    def enter(self, key: str, limits: CallerLimits, tokens: int = 0, deadline_s: float = 60.0) -> Ticket:
        """A place in the queue, until the ticket leaves.

        Args:
            key: whose limits count.
            tokens: of the prompt, guessed: no tokeniser is asked before the place is taken.
            deadline_s: from now on the request is worth answering.

        Raises:
            OverloadedError: no place is left, the wait would outlast the deadline, or the gateway is shutting down.
            RateLimitedError: the key has too many at once, or too many in the last minute.
        """
        with self._lock:
            now = self._clock()
            entered = self._known(key, limits, now)
            self._check_key(entered, tokens, now)  # first: who is over a limit of their own is told so, full or not
            self._check_room(tokens, deadline_s)
            for bucket, amount in ((entered.requests, 1), (entered.tokens, tokens)):
                if bucket is not None:
                    bucket.take(amount, now)
            entered.inside += 1
            self._queued, self._queued_tokens = self._queued + 1, self._queued_tokens + tokens
            return Ticket(self, entered, tokens, now + deadline_s)

    @property
    def state(self) -> AdmissionState:
        with self._lock:
            return AdmissionState(self._running, self._queued, self._queued_tokens, self._closed)

    def close(self) -> None:
        """Nobody enters any more; who is inside goes on."""
        with self._lock:
            self._closed = True

    def drained(self, timeout_s: float) -> bool:
        """Wait until nobody is inside; False where somebody still is after `timeout_s` seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: self._running + self._queued == 0, timeout_s)

    def _check_room(self, tokens: int, deadline_s: float) -> None:
        if self._closed:
            raise _overloaded("the gateway is shutting down; try again elsewhere or in a moment", _SHORTEST_S)
        places = self.bounds.slots + self.bounds.queue
        if self._running + self._queued >= places:
            raise _overloaded(f"all {places} places are taken", self._wait_s())
        waiting = self._running + self._queued >= self.bounds.slots
        if waiting and self._queued_tokens + tokens > self.bounds.queue_tokens:
            raise _overloaded(
                f"{self._queued_tokens} prompt tokens wait and this request has {tokens}, "
                f"want at most {self.bounds.queue_tokens} together",
                self._wait_s(),
            )
        if (wait := self._wait_s() if waiting else 0.0) > deadline_s:
            raise _overloaded(f"the wait would be {wait:.0f} s, the request's deadline is {deadline_s:g} s", wait)

    def _wait_s(self) -> float:
        """Until a place in work is free for one more, as things go: what is ahead, by the time that one takes."""
        ahead = max(0, self._running + self._queued - self.bounds.slots + 1)
        return ahead * self._taken_s / max(1, self.bounds.slots)

    def _known(self, key: str, limits: CallerLimits, now: float) -> _Key:
        known = self._keys.setdefault(key, _Key())
        if known.limits != limits:  # new, or its limits were changed: they count from now on, for who is inside too
            known.limit(limits, now)
        self._keys.move_to_end(key)
        while len(self._keys) > _REMEMBERED and not next(iter(self._keys.values())).inside:
            self._keys.popitem(last=False)
        return known

    def _check_key(self, key: _Key, tokens: int, now: float) -> None:
        most = key.limits.concurrency if key.limits else None
        if most is not None and key.inside >= most:
            raise RateLimitedError(
                f"this key has {key.inside} requests under way, want at most {most} at once",
                _told(self._taken_s),
                _headers(key, now),
            )
        for bucket, amount, what in ((key.requests, 1, "requests"), (key.tokens, tokens, "tokens")):
            if bucket is not None and (wait := bucket.wait_s(amount, now)) > 0:
                raise _too_fast(bucket, what, wait, _headers(key, now))

    # --- what tickets do ----------------------------------------------------------------------------------------------

    def _begin(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.stage != _QUEUED:
                return
            if (late := self._clock() - ticket.deadline) > 0:
                raise DeadlineError(f"the request waited {late:.1f} s past its deadline for a free place")
            self._leave_queue(ticket)
            self._running += 1
            ticket.stage, ticket.began = _RUNNING, self._clock()

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.stage == _QUEUED:
                self._leave_queue(ticket)
            elif ticket.stage == _RUNNING:
                self._running -= 1
                self._taken_s += _SMOOTHING * (self._clock() - ticket.began - self._taken_s)
            else:
                return
            ticket.stage = _GONE
            ticket.key.inside -= 1
            self._lock.notify_all()

    def _leave_queue(self, ticket: Ticket) -> None:
        self._queued, self._queued_tokens = self._queued - 1, self._queued_tokens - ticket.tokens

    def _headers_of(self, ticket: Ticket) -> dict[str, str]:
        with self._lock:
            return _headers(ticket.key, self._clock())


_QUEUED, _RUNNING, _GONE = "queued", "running", "gone"


@dataclass(eq=False)
class Ticket:
    """One request's place. `with ticket:` leaves at the end; to leave twice is to leave once."""

    admission: Admission
    key: _Key
    tokens: int
    deadline: float  # of the admission's clock
    stage: str = field(default=_QUEUED)
    began: float = 0.0

    def begin(self) -> None:
        """Out of the queue, into work.

        Raises:
            DeadlineError: its deadline passed while it waited.
        """
        self.admission._begin(self)

    def leave(self) -> None:
        """The place is free again, and so is the key's."""
        self.admission._leave(self)

    def headers(self) -> dict[str, str]:
        """x-ratelimit-{limit,remaining,reset}-{requests,tokens}; empty for a key without such limits."""
        return self.admission._headers_of(self)

    def remaining_s(self) -> float:
        """Seconds to its deadline; not below 0."""
        return max(0.0, self.deadline - self.admission._clock())

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def _told(seconds: float) -> float:
    return min(_LONGEST_S, max(_SHORTEST_S, seconds))


def _overloaded(why: str, wait_s: float) -> OverloadedError:
    error = OverloadedError(f"{why}; try again in {_told(wait_s):.0f} s")
    error.retry_after_s = _told(wait_s)
    return error


def _too_fast(bucket: Bucket, what: str, wait_s: float, headers: dict[str, str]) -> RateLimitedError:
    return RateLimitedError(
        f"this key may send {bucket.per_minute} {what} a minute; try again in {max(wait_s, _SHORTEST_S):.0f} s",
        max(wait_s, _SHORTEST_S),
        headers,
    )


def _headers(key: _Key, now: float) -> dict[str, str]:
    pairs: Sequence[tuple[str, Bucket | None]] = (("requests", key.requests), ("tokens", key.tokens))
    return {
        f"x-ratelimit-{name}-{what}": value
        for what, bucket in pairs
        if bucket is not None
        for name, value in (
            ("limit", str(bucket.per_minute)),
            ("remaining", str(bucket.remaining(now))),
            ("reset", f"{bucket.reset_s(now):.3f}s"),
        )
    }
