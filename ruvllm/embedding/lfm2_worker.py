"""The process that holds the encoder: `python -m ruvllm.embedding.lfm2_worker FD`, started by lfm2.py alone.

Speaks the protocol of ruvllm/inference/worker.py, whose loop it runs. Knows nothing of settings; its parent verified
the file, whose open descriptor it loads.

Messages in: first {id: 0, path, file, mark, threads, pooling, max_tokens, data, beat_s, deadline_s}, then {id, texts,
role, deadline_s}. Messages out: {id, ok: {dimension}} or {id, ok: {vectors}}, bytes of float32 (n, d).
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from ruvllm.embedding.lfm2_engine import EncoderEngine
from ruvllm.errors import InferenceError, RuvllmError
from ruvllm.inference import worker
from ruvllm.inference.beat import Pulse
from ruvllm.inference.framing import Channel
from ruvllm.inference.opened import check_same, mark, source
from ruvllm.inference.wire import Wire, error_to_wire


class EncoderWorker:
    """Answers one request at a time."""

    def __init__(self, start: Wire) -> None:
        path, file = Path(start["path"]), int(start["file"])
        there = source(file, path)
        sizes = int(start["threads"]), int(start["pooling"]), int(start["max_tokens"])
        self._engine = EncoderEngine(path, *sizes, source=there)
        check_same(path, tuple(start["mark"]), mark(there))
        os.close(file)  # the weights are mapped

    @property
    def state(self) -> Wire:
        return {"dimension": self._engine.dimension}

    def answer(self, request: Wire, pulse: Pulse, say: worker.Gathered) -> Wire:
        try:
            vectors = self._engine.encode(request["texts"], request["role"], pulse)
        except RuvllmError as error:
            return error_to_wire(error)
        except (KeyError, TypeError, ValueError) as error:  # a request of another shape, or a fault of ours
            traceback.print_exc()
            return error_to_wire(InferenceError(f"encoder: {error!r}; the log says where"))
        return {"ok": {"vectors": vectors.tobytes()}}

    def rest(self, inbox: worker.Inbox) -> None:
        """Nothing to measure between requests."""


def serve(channel: Channel) -> None:
    worker.serve(channel, EncoderWorker)


if __name__ == "__main__":
    worker.main(serve)
