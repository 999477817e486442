"""LFM2.5-Embedding-350M behind a process of its own; knows nothing of projections, of memory or of llama.cpp.

A bidirectional encoder: the vector of the first token, asymmetric prompts, trained for 512 tokens (its model card). It
is a GGUF like the tiers' and parsed where theirs are: in a child, after its hash was checked (lfm2_worker.py).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from threading import Lock

import numpy as np

from ruvllm.embedding.adapter import Floats, Role
from ruvllm.embedding.lfm2_engine import check_text
from ruvllm.errors import InferenceError, ModelFileError, TooLargeError, WorkerDiedError
from ruvllm.inference import waiting
from ruvllm.inference.child import spawn
from ruvllm.inference.connection import Connection, Patience, answer_of
from ruvllm.inference.framing import MAX_FRAME, Channel
from ruvllm.inference.limits import Growth, memory_limit
from ruvllm.inference.opened import ModelFile, opened, verified
from ruvllm.inference.tiers import find_tier, is_blank
from ruvllm.inference.wire import shaped
from ruvllm.settings import Settings

TIER = "lfm2.5-embedding-350m"
MAX_TOKENS = 512
CLS, MEAN = 2, 1  # LLAMA_POOLING_TYPE_*; left to itself llama.cpp may take none
PROGRAM = ("-m", "ruvllm.embedding.lfm2_worker")
_START_S = 180.0  # loading from a cold disk
_ASK_S = 900.0  # for a message's texts; a process that makes no step is ended long before
_TEXTS, _BYTES = 32, 64 * 1024  # of one message, but for a text that is longer alone
_LONGEST = MAX_FRAME - 4096  # bytes of one text
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_DATA = 4 * 2**30
Opener = Callable[[], AbstractContextManager[ModelFile]]


def open_encoder(settings: Settings) -> Lfm2Encoder:
    """The encoder on its verified file; each start of its process verifies it again.

    Raises:
        ModelFileError: missing, altered, of another shape, or one with random weights, whose vectors mean nothing.
    """
    tier = find_tier(TIER, settings)
    return Lfm2Encoder(
        settings.models_dir / tier.file,
        threads=settings.threads or 1,
        open_file=lambda: model_file(settings),
        log_path=settings.run_dir / f"model-{TIER}.log",
        data=memory_limit(tier, settings),
        wait_policy=waiting.policy(settings.wait_policy),
    )


@contextmanager
def model_file(settings: Settings) -> Iterator[ModelFile]:
    """The encoder's file, open, verified like a tier's before anything parses it.

    Raises:
        ModelFileError: as `open_encoder`.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(verified(find_tier(TIER, settings), settings))
        except ModelFileError as error:
            raise ModelFileError(f"{error}; or set RUVLLM_ENCODER=minilm") from error
        if is_blank(file.path):
            raise ModelFileError(
                f'model file {file.path}: has random weights; run "ruvllm models remove {TIER}" and pull it'
            )
        yield file


class Lfm2Encoder:
    """An `Encoder`. Threads may share it: one is answered at a time, the others wait. A process that dies is replaced
    and what it died of is asked once more; when that dies too, the next start waits 1, 2, 4 … 60 s.

    `open_file` gives the verified file; without it `path` is loaded as it is, which is for files made here. `data` is
    the bytes that the process may take. Its process leaves with this object.

    Raises:
        ModelFileError: the file is missing or llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: Path,
        threads: int = 1,
        pooling: int = CLS,
        max_tokens: int = MAX_TOKENS,
        *,
        open_file: Opener | None = None,
        log_path: Path = Path(os.devnull),
        data: int = _DATA,
        wait_policy: str = "passive",
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = path.stem.lower()
        open_file = open_file or (lambda: opened(path))
        sizes = {"threads": threads, "pooling": pooling, "max_tokens": max_tokens}

        def start() -> EncoderProcess:
            with open_file() as file:
                return EncoderProcess(file, sizes, log_path, data, wait_policy, patience or Patience())

        self._start, self._clock = start, clock
        self._deaths, self._not_before = 0, 0.0
        self._lock = Lock()
        self._process: EncoderProcess | None = start()
        self.dimension = self._process.dimension

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        """(n, d) float32, in the order of `texts`; long text is the mean of its windows, each behind the prompt.

        Raises:
            InputError: a text has no UTF-8 (TooLargeError: or is over 8 MiB); nothing was encoded.
            WorkerDiedError: two processes died of it, or none may be started now.
            DeadlineError: it took more than a quarter of an hour.
        """
        batches = list(_batches(texts))
        with self._lock:
            rows = [self._asked(batch, role) for batch in batches]
        return np.concatenate(rows) if rows else np.empty((0, self.dimension), dtype=np.float32)

    def _asked(self, texts: list[str], role: Role) -> Floats:
        try:
            return self._ask(texts, role)
        except WorkerDiedError:
            return self._ask(texts, role)

    def _ask(self, texts: list[str], role: Role) -> Floats:
        process = self._running()
        try:
            vectors = process.ask(texts, role)
        except InferenceError:
            if not process.alive:
                self._bury()
            raise
        self._deaths = 0
        return vectors

    def _running(self) -> EncoderProcess:
        if self._process is not None and not self._process.alive:  # it died between two requests
            self._bury()
        if self._process is None:
            wait = self._not_before - self._clock()
            if wait > 0:
                raise WorkerDiedError(
                    f"encoder {self.id}: its process died {self._deaths} times in a row; next start in {wait:.0f} s"
                )
            self._process = self._start()
        return self._process

    def _bury(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None
        self._deaths += 1
        if self._deaths > 1:
            self._not_before = self._clock() + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self._deaths - 2))

    def close(self) -> None:
        """Ends its process; the next text starts another."""
        with self._lock:
            if self._process is not None:
                self._process.close()
            self._process = None


class EncoderProcess:
    """One child with one file. Not safe for threads."""

    def __init__(
        self, file: ModelFile, sizes: dict[str, int], log_path: Path, data: int, wait_policy: str, patience: Patience
    ) -> None:
        sock, process = spawn(PROGRAM, log_path, wait_policy, [file.number])
        self.pid = process.pid
        self._connection = Connection(Channel(sock), process, file.path.stem, log_path, Growth(data, 2.0), patience)
        self.close = weakref.finalize(self, self._connection.close)  # also when it is collected, or this process ends
        self._begin(file, sizes, data, patience)
        self.dimension = shaped(lambda: int(self._connection.state["dimension"]))

    def _begin(self, file: ModelFile, sizes: dict[str, int], data: int, patience: Patience) -> None:
        which = {"path": str(file.path), "file": file.number, "mark": list(file.mark)}
        try:
            call = self._connection.open({**which, **sizes, "data": data, "beat_s": patience.beat}, _START_S)
            answer_of(call, self._connection.cancel)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._connection.alive

    def ask(self, texts: list[str], role: Role) -> Floats:
        call = self._connection.open({"texts": texts, "role": role}, _ASK_S)
        reply = answer_of(call, self._connection.cancel)
        return shaped(lambda: np.frombuffer(reply["vectors"], np.float32).reshape(len(texts), self.dimension))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """In order, each of few enough texts and bytes for one message."""
    batch: list[str] = []
    size = 0
    for text in texts:
        check_text(text)
        length = len(text.encode())
        if length > _LONGEST:
            raise TooLargeError(f"text: got {length} bytes, want at most {_LONGEST}; cut it into passages first")
        if batch and (len(batch) == _TEXTS or size + length > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += length
    if batch:
        yield batch
