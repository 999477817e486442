"""A worker's program without a model, which does what the question tells it to; the protocol around it is the real one.

Run as `python -m tests.inference.scripted_worker FD`: a test gives this to LlamaWorker as its `program`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from ruvllm.errors import RuvllmError
from ruvllm.inference import worker
from ruvllm.inference.beat import Pulse
from ruvllm.inference.framing import Channel
from ruvllm.inference.wire import Wire, error_to_wire

MIB = 2**20
_held: list[bytearray] = []


class Scripted:
    state: Wire = {"threads": {"decode": 1, "prefill": 1}}  # noqa: RUF012

    def __init__(self, start: Wire) -> None:
        self._verbs: dict[str, Callable[[int, Pulse, worker.Gathered], None]] = {
            "say": _say,
            "tick": _tick,
            "grow": _grow,
            "leak": _leak,
            "hang": lambda n, pulse, say: threading.Event().wait() and None,
            "stop": lambda n, pulse, say: os.kill(os.getpid(), signal.SIGSTOP),
            "die": lambda n, pulse, say: signal.raise_signal(signal.SIGSEGV),
            "killed": lambda n, pulse, say: os.kill(os.getpid(), signal.SIGKILL),  # seen from its parent: from outside
        }

    def answer(self, request: Wire, pulse: Pulse, say: worker.Gathered) -> Wire:
        if request["op"] == "count_tokens":
            return {"ok": [len(text.split()) for text in request["texts"]]}
        try:
            for step in request["prompt"]["question"][0][0].split(", "):
                verb, _, number = step.partition(" ")
                self._verbs[verb](int(number or 0), pulse, say)
        except RuvllmError as error:
            return error_to_wire(error)
        say.rest()
        return {"ok": {**_ANSWER, "text": "" if request.get("stream") else request["prompt"]["question"][0][0]}}

    def rest(self, inbox: worker.Inbox) -> None:
        """Nothing to measure."""


_ANSWER: Wire = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "cached_tokens": 0,
    "prefill_s": 0.0,
    "decode_s": 0.0,
    "finish_reason": "stop",
}


def _say(number: int, pulse: Pulse, say: worker.Gathered) -> None:
    for i in range(number):
        say(f"{i} ")
        say.rest()


def _tick(number: int, pulse: Pulse, say: worker.Gathered) -> None:
    """Says something until it is stopped."""
    while True:
        _say(1, pulse, say)
        pulse.check("ticking")
        threading.Event().wait(0.005)


def _grow(number: int, pulse: Pulse, say: worker.Gathered) -> None:
    """Takes memory until there is none to be had."""
    while True:
        _leak(16, pulse, say)
        _say(1, pulse, say)


def _leak(number: int, pulse: Pulse, say: worker.Gathered) -> None:
    """Keeps so many MiB."""
    _held.append(bytearray(b"\1") * (number * MIB))


def _serve(channel: Channel) -> None:
    worker.serve(channel, Scripted)  # type: ignore[arg-type]


if __name__ == "__main__":
    worker.main(_serve)
