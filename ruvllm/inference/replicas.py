"""Several servers of one tier: which to ask, which to leave alone. Knows nothing of HTTP or of what is asked.

A replica leaves after `FALLS` failures in a row and comes back after `RISES` good checks in a row, so that one that
answers now and then is not taken in and thrown out with every request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ruvllm.errors import BackendError, DeadlineError, OverloadedError, UnreachableError

FALLS, RISES = 3, 2
CHECK_S, CHECK_LIMIT_S = 5.0, 3.0


class Checked(Protocol):
    """What a pool needs of a server."""

    @property
    def url(self) -> str: ...
    def healthy(self, deadline: float) -> bool: ...


S = TypeVar("S", bound=Checked)
T = TypeVar("T")


@dataclass
class Replica(Generic[S]):
    """A server and what is known of it."""

    server: S
    healthy: bool = True
    in_flight: int = 0
    served: int = 0
    streak: int = 0  # good (> 0) or bad (< 0) signs in a row

    def note(self, good: bool) -> None:
        """Counts a sign of life, or of its lack."""
        self.streak = max(self.streak, 0) + 1 if good else min(self.streak, 0) - 1
        if self.healthy and self.streak <= -FALLS:
            self.healthy = False
        elif not self.healthy and self.streak >= RISES:
            self.healthy = True


class Replicas(Generic[S]):
    """Chooses among `servers`; a thread checks them every `check_s` seconds once `watch` was called."""

    def __init__(self, name: str, servers: Sequence[S], check_s: float = CHECK_S) -> None:
        self.name, self._check_s = name, check_s
        self._replicas = [Replica(server) for server in servers]
        self._guard, self._closing = threading.Lock(), threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def healthy(self) -> int:
        """How many can be asked."""
        return sum(replica.healthy for replica in self._replicas)

    @property
    def states(self) -> dict[str, tuple[bool, int]]:
        """By address: whether it is asked at all, and how many requests it answers now."""
        return {each.server.url: (each.healthy, each.in_flight) for each in self._replicas}

    def run(self, ask: Callable[[S], T]) -> T:
        """`ask` of the least busy healthy server; where it cannot be connected to, of the next. Anything else that goes
        wrong goes to the caller: a server that was sent a request may have acted on it.

        Raises:
            OverloadedError: no server is healthy, or none could be connected to.
        """
        last: UnreachableError | None = None
        for replica in self.candidates():
            try:
                with self.borrowed(replica) as server:
                    return ask(server)
            except UnreachableError as error:
                last = error
        raise self.nobody(last)

    def candidates(self) -> Iterator[Replica[S]]:
        """Healthy servers, each once, the least busy first as they are asked for; give each to `borrowed`."""
        tried: list[Replica[S]] = []
        while (replica := self._pick(tried)) is not None:
            tried.append(replica)
            yield replica

    @contextmanager
    def borrowed(self, replica: Replica[S]) -> Iterator[S]:
        """Counts a request, and what becomes of it as a sign of the server's health."""
        try:
            yield replica.server
        except (UnreachableError, BackendError, DeadlineError) as error:
            # A deadline may be the caller's own impatience: it is no sign either way.
            self._done(replica, None if isinstance(error, DeadlineError) else False)
            raise
        except BaseException:
            self._done(replica, None)
            raise
        self._done(replica, True)

    def _pick(self, but: Sequence[Replica[S]]) -> Replica[S] | None:
        with self._guard:
            fit = [each for each in self._replicas if each.healthy and not any(each is tried for tried in but)]
            if not fit:
                return None
            best = min(fit, key=lambda each: (each.in_flight, each.served))
            best.in_flight += 1
            best.served += 1
            return best

    def _done(self, replica: Replica[S], good: bool | None) -> None:
        with self._guard:
            replica.in_flight -= 1
            # Health checks bring a replica back, not an answer that was on its way when it left.
            if good is not None and (replica.healthy or not good):
                replica.note(good)

    def nobody(self, last: UnreachableError | None) -> OverloadedError:
        """The error for a caller whom no candidate has answered."""
        count = len(self._replicas)
        why = f"; the last said: {last}" if last is not None else ""
        return OverloadedError(
            f"model {self.name}: none of its {count} servers answers ({', '.join(self.states)}){why}; "
            "start one with `ruvllm vllm up`, or ask again later"
        )

    def check(self, limit_s: float = CHECK_LIMIT_S) -> None:
        """Looks at every server once."""
        for replica in self._replicas:
            good = replica.server.healthy(time.monotonic() + limit_s)
            with self._guard:
                replica.note(good)

    def watch(self) -> None:
        """Checks from now on, in a thread, until `close`."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name=f"vllm-health-{self.name}", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        while not self._closing.wait(self._check_s):
            self.check()

    def close(self) -> None:
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join(CHECK_LIMIT_S * len(self._replicas) + 1.0)
