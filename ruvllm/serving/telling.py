"""An answer in the making, read by a thread and told to the event loop: pieces as they come, then the stored answer.

Knows nothing of HTTP. Whoever listens may leave: `cancel` reaches the model within one step of it, and its place is
free when the thread has seen that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol

from ruvllm.answering.answer import Answer, Ask
from ruvllm.memory.records import Hit
from ruvllm.router.decision import Decision
from ruvllm.serving.admission import Ticket
from ruvllm.serving.lanes import Lane

GRACE_S = 5.0  # the pipeline keeps the deadline itself; this is for one that does not


class Speech(Protocol):
    """An answer that is told while it is made; `ruvllm.answering.answer.AnswerStream` is one."""

    decision: Decision
    hits: tuple[Hit, ...]

    @property
    def tier(self) -> str: ...

    @property
    def answer(self) -> Answer: ...

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class Telling:
    """`open` starts the answer to `ask`, in the lane's thread. One task listens with `next`."""

    def __init__(self, lane: Lane, ticket: Ticket, ask: Ask, open: Callable[[Ask], Speech], deadline_s: float) -> None:
        self.ticket, self._ask, self._open = ticket, ask, open
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[str | Future[Answer]] = asyncio.Queue()
        self._ends = time.monotonic() + deadline_s + GRACE_S
        self._cancelled = False
        self.speech: Speech | None = None  # there from the first piece on at the latest
        self.entered, self.began = time.perf_counter(), 0.0
        self._future = lane.submit(ticket, self._read)
        self._future.add_done_callback(self._tell)

    @property
    def waited_s(self) -> float:
        """Seconds until a thread took it up."""
        return max(0.0, self.began - self.entered)

    async def next(self, patience_s: float | None = None) -> str | Answer | None:
        """The next piece, or at the end the answer; None where there was none within `patience_s` seconds.

        Raises:
            TimeoutError: its deadline has passed by far.
            RuvllmError: what went wrong with it.
        """
        left = self._ends - time.monotonic()
        try:
            async with asyncio.timeout(left if patience_s is None else min(left, patience_s)):
                said = await self._said.get()
        except TimeoutError:
            if time.monotonic() < self._ends:
                return None
            self.cancel()
            raise
        return said if isinstance(said, str) else said.result()

    async def whole(self) -> Answer:
        """The answer, its pieces left out."""
        while not isinstance(said := await self.next(), Answer):
            continue
        return said

    def cancel(self) -> None:
        """Nobody listens any more. Nothing happens where it is over."""
        self._cancelled = True
        if not self._future.cancel() and self.speech is not None:  # it runs, or did
            self.speech.cancel()

    def _read(self) -> Answer:
        self.began = time.perf_counter()
        speech = self._open(self._ask)
        try:
            self.speech = speech
            if self._cancelled:
                speech.cancel()
            for piece in speech:
                self._tell(piece)
            return speech.answer
        finally:
            speech.close()

    def _tell(self, said: str | Future[Answer]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._said.put_nowait, said)
        except RuntimeError:  # the loop is closed: nobody listens
            self._cancelled = True
