"""The process that holds one model: `python -m ruvllm.inference.worker FD`, started by llama_cpp.py alone.

Knows nothing of settings or tiers: its parent verified the file, whose open descriptor it loads. It ends when its
parent's end of the socket closes, however the parent went, even in the middle of an answer.

Messages in: first {id: 0, path, file, mark, identity, template, n_ctx, threads, stop, snapshots, data, beat_s,
deadline_s}, then {id, op, deadline_s, ...} and {cancel: id}. Messages out: {beat: id, steps, rss}, {id, say}, and for
every request one last {id, ok, rss, state} or {id, error, message, rss, state}.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, Protocol

from ruvllm.errors import InferenceError, RuvllmError
from ruvllm.inference import limits
from ruvllm.inference.beat import Beats, Pulse
from ruvllm.inference.engine import Engine
from ruvllm.inference.framing import Channel, FrameError
from ruvllm.inference.generation import Generator
from ruvllm.inference.opened import check_same, mark, source
from ruvllm.inference.snapshots import Identity, Snapshots
from ruvllm.inference.threads import LiveThreads, cores
from ruvllm.inference.types import Generation
from ruvllm.inference.wire import (
    Wire,
    choice_to_wire,
    error_to_wire,
    generation_to_wire,
    nested_to_wire,
    prompt_from_wire,
    sampling_from_wire,
)

PIECE_S = 0.02  # text that comes faster than this is gathered into one message
_LEFT, _BROKEN, _THREAD_DIED = 0, 2, 3


class Answering(Protocol):
    """What `serve` asks; made of the first message."""

    @property
    def state(self) -> Wire: ...
    def answer(self, request: Wire, pulse: Pulse, say: Gathered) -> Wire: ...
    def rest(self, inbox: Inbox) -> None: ...


class Worker:
    """Answers one request at a time."""

    def __init__(self, start: Wire) -> None:
        path, file = Path(start["path"]), int(start["file"])
        there = source(file, path)
        self._engine = Engine(path, int(start["n_ctx"]), there)
        check_same(path, tuple(start["mark"]), mark(there))
        os.close(file)  # the weights are mapped
        identity = Identity(start["identity"], self._engine.context, start["template"])
        self._snapshots = Snapshots(int(start["snapshots"]), identity)
        self._generator = Generator(self._engine, tuple(start["stop"]), self._snapshots)
        self._threads = LiveThreads(self._engine, int(start["threads"]), cores())
        self._operations: dict[str, Callable[[Wire, Pulse, Gathered], object]] = {
            "count_tokens": self._count_tokens,
            "generate": self._generate,
            "generate_nested": self._generate_nested,
            "choose": self._choose,
        }

    @property
    def state(self) -> Wire:
        """What a parent may want to show, beside an answer."""
        return {"threads": asdict(self._threads.counts), "snapshots": asdict(self._snapshots.counts)}

    def answer(self, request: Wire, pulse: Pulse, say: Gathered) -> Wire:
        try:
            return {"ok": self._operations[request["op"]](request, pulse, say)}
        except RuvllmError as error:
            return error_to_wire(error)
        except (KeyError, TypeError, ValueError) as error:  # a request of another shape, or a fault of ours
            traceback.print_exc()
            return error_to_wire(InferenceError(f"request {request.get('op')!r}: {error!r}; the log says where"))

    def _count_tokens(self, request: Wire, pulse: Pulse, say: Gathered) -> object:
        return [len(self._engine.tokenise(text, special=False)) for text in request["texts"]]

    def _generate(self, request: Wire, pulse: Pulse, say: Gathered) -> object:
        prompt, sampling = prompt_from_wire(request["prompt"]), sampling_from_wire(request["sampling"])
        if not request.get("stream"):
            return generation_to_wire(self._timed(self._generator.generate(prompt, sampling, pulse)))
        generation = self._timed(self._generator.generate(prompt, sampling, pulse, say))
        say.rest()
        return generation_to_wire(generation) | {"text": ""}  # the pieces are the text

    def _generate_nested(self, request: Wire, pulse: Pulse, say: Gathered) -> object:
        prompts = [(context_bin, prompt_from_wire(prompt)) for context_bin, prompt in request["prompts"]]
        answers = self._generator.generate_nested(prompts, sampling_from_wire(request["sampling"]), pulse)
        for answer in answers:
            self._timed(answer.generation)
        return [nested_to_wire(answer) for answer in answers]

    def _choose(self, request: Wire, pulse: Pulse, say: Gathered) -> object:
        prompts = [prompt_from_wire(prompt) for prompt in request["prompts"]]
        return [choice_to_wire(choice) for choice in self._generator.choose(prompts, request["choices"], pulse)]

    def _timed(self, generation: Generation) -> Generation:
        self._threads.answered(generation.completion_tokens, generation.decode_s)
        return generation

    def rest(self, inbox: Inbox) -> None:
        """Between requests: measures threads again where that is due, unless a request comes."""
        if self._threads.due and self._threads.measure_again(inbox.until_the_next()):
            print(f"worker: now {self._threads.counts}", file=sys.stderr, flush=True)


class Gathered:
    """Pieces of an answer's text on their way to the parent: the first at once, later ones at most every PIECE_S."""

    def __init__(self, send: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._kept: list[str] = []
        self._sent_at = -math.inf

    def __call__(self, piece: str) -> None:
        self._kept.append(piece)
        if self._clock() - self._sent_at >= PIECE_S:
            self.rest()

    def rest(self) -> None:
        """Sends what is kept."""
        if self._kept:
            self._send("".join(self._kept))
            self._kept.clear()
            self._sent_at = self._clock()


class Inbox:
    """Requests in order of arrival, read by a thread of its own, so that a cancel reaches the one that is worked on.

    A parent that is gone ends this process at once (llama.cpp runs with the GIL released).
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[tuple[Wire, Pulse]] = queue.SimpleQueue()
        self._pulses: dict[int, Pulse] = {}
        self._resting = Pulse()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self) -> tuple[Wire, Pulse]:
        return self._requests.get()

    def done(self, request: Wire) -> None:
        self._pulses.pop(request["id"], None)

    def until_the_next(self) -> Pulse:
        """Cancelled when a request comes."""
        self._resting = resting = Pulse()
        if not self._requests.empty():
            resting.cancel()
        return resting

    def _read(self) -> NoReturn:
        try:
            while True:
                self._sort(self._channel.receive())
        except (EOFError, OSError):
            os._exit(_LEFT)
        except FrameError as error:
            print(f"worker: {error}", file=sys.stderr, flush=True)
            os._exit(_BROKEN)

    def _sort(self, message: Wire) -> None:
        if isinstance(number := message.get("cancel"), int):
            if number in self._pulses:  # else it was answered meanwhile
                self._pulses[number].cancel()
            return
        pulse = Pulse(time.monotonic() + _seconds(message))
        self._pulses[message["id"]] = pulse
        self._requests.put((message, pulse))
        self._resting.cancel()


def _seconds(message: Wire) -> float:
    """Until the request's deadline, counted from now.

    Raises:
        FrameError: the message is no request: it lacks a number or a sound time.
    """
    number, seconds = message.get("id"), message.get("deadline_s")
    if not isinstance(number, int) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise FrameError(f"request: got id {number!r} and deadline_s {seconds!r}, want numbers")
    return float(seconds)


def serve(channel: Channel, make: Callable[[Wire], Answering] = Worker) -> None:
    """The first message says which model; then one answer per request."""
    inbox = Inbox(channel)
    start, pulse = inbox.take()
    beats = Beats(channel.send, start["beat_s"])
    limits.apply(start["data"])
    try:
        with beats.during(start["id"], pulse):
            worker = make(start)
    except RuvllmError as error:
        channel.send({"id": start["id"], **error_to_wire(error), "rss": limits.resident()})
        return
    inbox.done(start)
    channel.send({"id": start["id"], "ok": True, "rss": limits.resident(), "state": worker.state})
    while True:
        _answer(channel, inbox, beats, worker)
        worker.rest(inbox)


def _answer(channel: Channel, inbox: Inbox, beats: Beats, worker: Answering) -> None:
    request, pulse = inbox.take()
    number = request["id"]
    with beats.during(number, pulse):
        reply = worker.answer(request, pulse, Gathered(lambda text: channel.send({"id": number, "say": text})))
    inbox.done(request)
    channel.send({"id": number, **reply, "rss": limits.resident(), "state": worker.state})


def _end(error: threading.ExceptHookArgs) -> None:
    """A thread that died would leave a process that looks alive."""
    threading.__excepthook__(error)
    os._exit(limits.MEMORY_EXIT if isinstance(error.exc_value, MemoryError) else _THREAD_DIED)


def main(serve: Callable[[Channel], None] = serve) -> None:
    threading.excepthook = _end
    try:
        with socket.socket(fileno=int(sys.argv[1])) as sock:
            serve(Channel(sock))
    except MemoryError:
        os._exit(limits.MEMORY_EXIT)
    except OSError:  # the parent hung up in the middle of an answer
        os._exit(_LEFT)


if __name__ == "__main__":
    main()
