"""A model behind a process of its own, as its parent sees it; knows nothing of routing or of how files are found.

One process per GGUF: llama.cpp's C++ exceptions cannot cross ctypes and end the process they are in.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ruvllm.errors import DeadlineError, InputError, OverloadedError, RuvllmError, TooLargeError, WorkerDiedError
from ruvllm.inference.framing import FrameError, pack, receive
from ruvllm.inference.sampling import check_sampling
from ruvllm.inference.threads import Threads
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Generation, NestedGeneration, Prompt, Sampling
from ruvllm.inference.wire import (
    error_from_wire,
    generation_from_wire,
    nested_from_wire,
    prompt_to_wire,
    sampling_to_wire,
)
from ruvllm.settings import PROJECT_ROOT, Settings

START_S = 180.0  # loading a file of several GB from a cold disk, and measuring threads
GRACE_S = 5.0  # beyond a request's deadline: then the process hangs and is ended
END_S = 3.0
MAX_LOG = 1024 * 1024
_TUNING = ("OMP_", "GOMP_", "GGML_", "LLAMA_")
# A parser of model files needs no password: the child gets the variables that begin so, and no others.
_PASSED = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHON", *_TUNING)


class LlamaWorker:
    """A `Model` in a child process. Threads may share it: one is answered at a time, the others wait in turn.

    `threads` 0 measures at start. Close it, or use it as a context manager; it also ends when this process does.

    Raises:
        ModelFileError: llama.cpp cannot load the file.
        WorkerDiedError: the process ended while it started.
    """

    def __init__(self, tier: Tier, path: Path, settings: Settings, threads: int = 0) -> None:
        self.tier = tier
        self.n_ctx = min(settings.n_ctx, tier.n_ctx)
        self.log_path = settings.run_dir / f"model-{tier.name}.log"
        self._wait_s = settings.deadline_s
        self._lock = threading.Lock()
        self._socket, self._process = self._spawn()
        start = {"path": str(path), "n_ctx": self.n_ctx, "threads": threads, "stop": list(tier.stop)}
        try:
            counts = self._exchange(start, START_S)
        except RuvllmError:
            self.close()
            raise
        self.threads = Threads(**counts)

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs, _open_log(self.log_path) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ruvllm.inference.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=PROJECT_ROOT,
                env=_environment(os.environ),
                start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
            )
        return ours, process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._lock.locked()

    def count_tokens(self, texts: list[str]) -> list[int]:
        return list(self._call({"op": "count_tokens", "texts": texts}, self._wait_s))

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        request = {"op": "generate", "prompt": prompt_to_wire(prompt)}
        return generation_from_wire(self._call(request | _how(sampling), deadline_s))

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        pairs = [[context_bin, prompt_to_wire(prompt)] for context_bin, prompt in prompts.items()]
        answers = self._call({"op": "generate_nested", "prompts": pairs} | _how(sampling), deadline_s)
        return [nested_from_wire(answer) for answer in answers]

    def _call(self, request: Mapping[str, object], deadline_s: float) -> Any:
        began = time.monotonic()
        if not self._lock.acquire(timeout=deadline_s):
            raise OverloadedError(f"model {self.tier.name}: not free within {deadline_s:g} s; ask again later")
        try:
            left = max(0.0, deadline_s - (time.monotonic() - began))
            return self._exchange({**request, "deadline_s": left}, left + GRACE_S)
        finally:
            self._lock.release()

    def _exchange(self, request: Mapping[str, object], timeout: float) -> Any:
        frame = _pack(request, self.tier.name)
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(frame)
            reply = receive(self._socket)
        except TimeoutError as error:
            self._kill()
            raise DeadlineError(
                f"model {self.tier.name}: no answer in {timeout:.0f} s; its process was ended"
            ) from error
        except (EOFError, OSError, FrameError) as error:
            raise WorkerDiedError(self._obituary()) from error
        except BaseException:  # Ctrl-C here would leave an answer in the socket, and the next request would read it
            self._kill()
            raise
        if "error" in reply:
            raise error_from_wire(reply)
        return reply["ok"]

    def _obituary(self) -> str:
        self.close()
        code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"model {self.tier.name}: its process {self.pid} ended ({how}); the log is {self.log_path}"

    def close(self) -> None:
        """Ends the process: it leaves when its socket closes, and is killed if it does not."""
        self._hang_up()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def _hang_up(self) -> None:
        """Closing alone would not wake a thread of ours that waits for an answer, and the child would see no end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _kill(self) -> None:
        self._hang_up()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> LlamaWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pack(request: Mapping[str, object], name: str) -> bytes:
    try:
        return pack(request)
    except FrameError as error:
        raise TooLargeError(f"model {name}: {error}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"prompt: got a lone surrogate at {error.start}, want text that UTF-8 can hold") from error


def _how(sampling: Sampling) -> dict[str, object]:
    return {"sampling": sampling_to_wire(check_sampling(sampling))}


def _open_log(path: Path) -> IO[bytes]:
    """Appends, so that the words of a process that died stay; starts anew when it has grown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grown = path.exists() and path.stat().st_size > MAX_LOG
    return path.open("wb" if grown else "ab")


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    passed = {k: v for k, v in ours.items() if k.startswith(_PASSED)}
    # Waiting threads that spin starve every other process on the same cores.
    return {"OMP_WAIT_POLICY": "passive", **passed}
