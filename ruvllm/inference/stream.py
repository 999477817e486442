"""An answer while it is made, as its reader sees it; knows nothing of processes or sockets."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from ruvllm.errors import CancelledError, InferenceError, RuvllmError, WorkerDiedError
from ruvllm.inference.connection import Call
from ruvllm.inference.types import Generation, Stream
from ruvllm.inference.wire import generation_from_wire, shaped

PARTLY_READ = "stream: its answer is not there yet; read all its pieces first"


class WorkerStream:
    """A `Stream` from a model's process. One that is closed early, or lost without being closed, is cancelled there."""

    def __init__(self, call: Call, cancel: Callable[[int], None]) -> None:
        self._call = call
        self._cancel = weakref.finalize(self, cancel, call.number)
        self._cancel.atexit = False
        self._generation: Generation | None = None
        self._said: list[str] = []
        self._over = False

    def __iter__(self) -> Iterator[str]:
        while not self._over:
            piece = self._next()
            if piece:
                yield piece

    def _next(self) -> str:
        try:
            message = self._call.next()
        except RuvllmError:
            self._finish()
            raise
        if "ok" not in message:
            self._said.append(message["say"])
            return self._said[-1]
        self._finish()
        whole = shaped(lambda: generation_from_wire(message["ok"]))
        self._generation = replace(whole, text="".join(self._said))
        return ""

    def _finish(self) -> None:
        self._over = True
        self._cancel.detach()

    @property
    def generation(self) -> Generation:
        if self._generation is None:
            raise InferenceError(PARTLY_READ)
        return self._generation

    def cancel(self) -> None:
        """Takes the request back and waits for nothing: whoever reads gets CancelledError. Any thread may, any time."""
        self._cancel()

    def close(self) -> None:
        """Returns when the process is free again: after a token, or a layer of a prefill."""
        if self._over:
            return
        self._cancel()
        with suppress(InferenceError):  # it was cancelled, or its process ended
            while not self._over:
                self._next()
        self._over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@runtime_checkable
class Cancellable(Protocol):
    """A stream that another thread than its reader's may end."""

    def cancel(self) -> None: ...


Again = Callable[[WorkerDiedError, bool], Stream]  # the death, and whether anything was said


class RetriedStream:
    """A `Stream` that goes on in another one when its model's process dies: `again` gives it, or raises.

    One of the two is called once: `over`, with whether the answer is whole, or `lost` when the stream is collected
    before it is read or closed. That may be in any thread, inside any lock.
    """

    def __init__(self, stream: Stream, again: Again, over: Callable[[bool], None], lost: Callable[[], object]) -> None:
        self._stream, self._again, self._over = stream, again, over
        self._lost = weakref.finalize(self, lost)
        self._lost.atexit = False
        self._said, self._cancelled = False, threading.Event()

    def __iter__(self) -> Iterator[str]:
        while self._lost.alive:
            try:
                for piece in self._stream:
                    self._said = True
                    yield piece
                self._finish(whole=True)
            except WorkerDiedError as error:
                self._go_on(error)
            except RuvllmError:
                self._finish()
                raise

    def _go_on(self, error: WorkerDiedError) -> None:
        try:
            if self._cancelled.is_set():
                raise CancelledError("stream: cancelled by its caller; its model's process was lost meanwhile")
            self._stream = self._again(error, self._said)
        except RuvllmError:
            self._finish()
            raise
        if self._cancelled.is_set():  # while the other one was opened
            self.cancel()

    def _finish(self, whole: bool = False) -> None:
        if self._lost.detach():
            self._over(whole)

    @property
    def generation(self) -> Generation:
        return self._stream.generation

    def cancel(self) -> None:
        """As a `WorkerStream`'s: any thread, any time; the reader gets CancelledError."""
        self._cancelled.set()
        if isinstance(self._stream, Cancellable):
            self._stream.cancel()

    def close(self) -> None:
        self._stream.close()
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
