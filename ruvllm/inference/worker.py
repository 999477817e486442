"""The process that holds one model: `python -m ruvllm.inference.worker FD`, started by llama_cpp.py alone.

Knows nothing of settings, tiers or files' hashes: its parent verified the file. It ends when its parent's end of the
socket closes, however the parent went, even in the middle of an answer.
"""

from __future__ import annotations

import os
import queue
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ruvllm.errors import RuvllmError
from ruvllm.inference.engine import Engine
from ruvllm.inference.framing import FrameError, receive, send
from ruvllm.inference.generation import Generator
from ruvllm.inference.threads import Threads, cores, measure
from ruvllm.inference.wire import (
    Wire,
    error_to_wire,
    generation_to_wire,
    nested_to_wire,
    prompt_from_wire,
    sampling_from_wire,
)


class Worker:
    """Answers one request at a time."""

    def __init__(self, path: Path, n_ctx: int, threads: int, stop: tuple[str, ...]) -> None:
        self._engine = Engine(path, n_ctx)
        self._generator = Generator(self._engine, stop)
        self.threads = self._choose_threads(threads)
        self._operations: dict[str, Callable[[Wire], object]] = {
            "count_tokens": self._count_tokens,
            "generate": self._generate,
            "generate_nested": self._generate_nested,
        }

    def _choose_threads(self, wanted: int) -> Threads:
        if wanted == 0:
            return measure(self._engine, cores())
        self._engine.set_threads(wanted, wanted)
        return Threads(wanted, wanted)

    def answer(self, request: Wire) -> Wire:
        try:
            return {"ok": self._operations[request["op"]](request)}
        except RuvllmError as error:
            return error_to_wire(error)

    def _count_tokens(self, request: Wire) -> object:
        return [len(self._engine.tokenise(text, special=False)) for text in request["texts"]]

    def _generate(self, request: Wire) -> object:
        sampling, deadline = sampling_from_wire(request["sampling"]), _deadline(request)
        return generation_to_wire(self._generator.generate(prompt_from_wire(request["prompt"]), sampling, deadline))

    def _generate_nested(self, request: Wire) -> object:
        prompts = [(context_bin, prompt_from_wire(prompt)) for context_bin, prompt in request["prompts"]]
        sampling, deadline = sampling_from_wire(request["sampling"]), _deadline(request)
        return [nested_to_wire(n) for n in self._generator.generate_nested(prompts, sampling, deadline)]


def _deadline(request: Wire) -> float:
    return time.monotonic() + float(request["deadline_s"])


def _read(sock: socket.socket, inbox: queue.SimpleQueue[dict[str, Any]]) -> NoReturn:
    """Feeds the inbox; a parent that is gone ends this process at once (llama.cpp runs with the GIL released)."""
    try:
        while True:
            inbox.put(receive(sock))
    except (EOFError, OSError):
        os._exit(0)
    except FrameError as error:
        print(f"worker: {error}", file=sys.stderr, flush=True)
        os._exit(2)


def serve(sock: socket.socket) -> None:
    """The first message says which model; then one answer per request."""
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sock, inbox), daemon=True).start()
    start = inbox.get()
    try:
        worker = Worker(Path(start["path"]), start["n_ctx"], start["threads"], tuple(start["stop"]))
    except RuvllmError as error:
        send(sock, error_to_wire(error))
        return
    send(sock, {"ok": {"decode": worker.threads.decode, "prefill": worker.threads.prefill}})
    while True:
        send(sock, worker.answer(inbox.get()))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave a core file of the model's size
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        serve(sock)


if __name__ == "__main__":
    main()
