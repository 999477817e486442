"""The library's own loop over one GGUF: what llama.cpp does without any of our code. `test_latency.py` runs it.

    python -m tests.benchmarks.inference.raw_loop FILE N_CTX THREADS [plain]

reads lines of JSON, {"prompt": n, "answer": m}, and answers each with the seconds of a prompt of n tokens (`prefill_s`)
and of m tokens one by one after it (`decode_s`), greedy. `plain`: weights stay as they are in the file.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np

from ruvllm.inference.loading import extra_buffers

_BATCH = 512
_quiet = api.llama_log_callback(lambda *_: None)  # ctypes keeps no reference of its own


class Loop:
    """Threads, context and buffers as our worker sets them, so that the two differ in our code alone."""

    def __init__(self, path: str, n_ctx: int, threads: int, plain: bool = False) -> None:
        api.llama_log_set(_quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.use_extra_bufts = not plain and extra_buffers(api)
        self.model: Any = api.llama_model_load_from_file(path.encode(), params)
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_seq_max = n_ctx, _BATCH, _BATCH, 1
        wanted.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context: Any = api.llama_init_from_model(self.model, wanted)
        api.llama_set_n_threads(self.context, threads, threads)

    def run(self, prompt: int, answer: int) -> dict[str, float]:
        random = np.random.default_rng(prompt)
        tokens = random.integers(300, self.n_vocab, prompt).tolist()
        api.llama_memory_clear(api.llama_get_memory(self.context), False)
        began = time.perf_counter()
        for start in range(0, prompt, _BATCH):
            self._decode(tokens[start : start + _BATCH])
        prefilled = time.perf_counter()
        for _ in range(answer):
            self._decode([self._best()])
        return {"prefill_s": prefilled - began, "decode_s": time.perf_counter() - prefilled}

    def _decode(self, tokens: list[int]) -> None:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)  # the batch only points to them
        code = api.llama_decode(self.context, api.llama_batch_get_one(ids, len(tokens)))
        assert code == 0, code

    def _best(self) -> int:
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, -1), shape=(self.n_vocab,))
        return int(logits.argmax())


def main() -> None:
    path, n_ctx, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    loop = Loop(path, n_ctx, threads, "plain" in sys.argv[4:])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(loop.run(asked["prompt"], asked["answer"])), flush=True)


if __name__ == "__main__":
    main()
