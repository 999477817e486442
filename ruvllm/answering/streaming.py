"""An answer that is told while it is made: its decision first, its pieces, then the stored answer.

Knows nothing of models or storage: whoever answers hands in how the pieces are opened and what follows the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from ruvllm.answering.asking import Answer
from ruvllm.errors import CancelledError, InferenceError
from ruvllm.inference.types import Generation, Stream
from ruvllm.memory.records import Hit
from ruvllm.router.decision import Decision


class AnswerStream:
    """Iterate once, then read `answer`. One thread iterates and closes; any may `cancel`. Or use it with `with`."""

    def __init__(
        self,
        decision: Decision,
        hits: tuple[Hit, ...],
        speaker: Callable[[], str],
        open: Callable[[Callable[[Stream], None]], Iterator[str]],
        end: Callable[[Generation], Answer],
        over: Callable[[], object],
    ) -> None:
        self.decision, self.hits = decision, hits
        self._speaker, self._open, self._end, self._over = speaker, open, end, over
        self._stream: Stream | None = None
        self._answer: Answer | None = None
        self._cancelled = self._closed = False

    @property
    def tier(self) -> str:
        """Whose pieces these are; before the first, whose they are to be."""
        return self._speaker()

    @property
    def answer(self) -> Answer:
        """Raises InferenceError while pieces are left."""
        if self._answer is None:
            raise InferenceError("stream: its answer is not there yet; read all its pieces first")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        """
        Raises:
            CancelledError: it was cancelled.
            InferenceError: no tier answered, or the one that spoke failed.
        """
        for piece in self._open(self._hold):
            self._check()
            yield piece
        self._check()
        assert self._stream is not None  # it was opened
        self._answer = self._end(self._stream.generation)

    def cancel(self) -> None:
        """Ends the work within one step of the model; whoever iterates gets CancelledError. Never waits."""
        self._cancelled = True
        cancel = getattr(self._stream, "cancel", None)  # ruvllm.inference.stream.Cancellable
        if cancel is not None:
            cancel()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._stream is not None:
                self._stream.close()
        finally:
            self._over()

    def _hold(self, stream: Stream) -> None:
        self._stream = stream
        if self._cancelled:
            stream.close()
            self._check()

    def _check(self) -> None:
        if self._cancelled:
            raise CancelledError("the caller took the request back")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
