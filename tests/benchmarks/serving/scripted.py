"""A model's process without a model, behind the real protocol; it takes as long as it is told. For load alone.

    python -m tests.benchmarks.serving.scripted FD

is what a LlamaWorker starts as its program; LC_SCRIPTED_MS in its environment is how many ms an answer takes.
"""

from __future__ import annotations

import os
import time

from ruvllm.inference import worker
from ruvllm.inference.beat import Pulse
from ruvllm.inference.framing import Channel
from ruvllm.inference.wire import Wire

MS = "LC_SCRIPTED_MS"  # a locale's prefix: of other variables a worker hears nothing
_TEXT = "Accra"


class Scripted:
    """Answers one request at a time, as a worker does."""

    state: Wire = {"threads": {"decode": 1, "prefill": 1}}  # noqa: RUF012

    def __init__(self, start: Wire) -> None:
        self._seconds = float(os.environ.get(MS, "0")) / 1000

    def answer(self, request: Wire, pulse: Pulse, say: worker.Gathered) -> Wire:
        if request["op"] == "count_tokens":
            return {"ok": [len(text.split()) for text in request["texts"]]}
        if self._seconds:
            time.sleep(self._seconds)
        if request.get("stream"):
            say(_TEXT)
            say.rest()
        return {"ok": {**_ANSWER, "decode_s": self._seconds, "text": "" if request.get("stream") else _TEXT}}

    def rest(self, inbox: worker.Inbox) -> None:
        """Nothing to measure."""


_ANSWER: Wire = {
    "prompt_tokens": 20,
    "completion_tokens": 1,
    "cached_tokens": 0,
    "prefill_s": 0.0,
    "finish_reason": "stop",
}


def _serve(channel: Channel) -> None:
    worker.serve(channel, Scripted)  # type: ignore[arg-type]


if __name__ == "__main__":
    worker.main(_serve)
