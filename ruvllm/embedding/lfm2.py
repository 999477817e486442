"""LFM2.5-Embedding-350M through llama.cpp; knows nothing of projections or of memory.

A bidirectional encoder: the vector of the first token, asymmetric prompts, trained for 512 tokens (its model card).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ruvllm.embedding.adapter import Floats, Role
from ruvllm.embedding.windows import windows
from ruvllm.errors import InferenceError, InputError, ModelFileError
from ruvllm.inference.files import ensure
from ruvllm.inference.tiers import find_tier, is_blank
from ruvllm.settings import Settings

TIER = "lfm2.5-embedding-350m"
MAX_TOKENS = 512
PROMPTS: dict[Role, str] = {"query": "query: ", "document": "document: "}
CLS, MEAN = 2, 1  # LLAMA_POOLING_TYPE_*; left to itself llama.cpp may take none


def model_path(settings: Settings) -> Path:
    """The encoder's file, verified like a tier's before anything parses it.

    Raises:
        ModelFileError: missing, altered, of another shape, or one with random weights, whose vectors mean nothing.
    """
    tier = find_tier(TIER, settings)
    try:
        path = ensure(tier, settings)
    except ModelFileError as error:
        raise ModelFileError(f"{error}; or set RUVLLM_ENCODER=minilm") from error
    if is_blank(path):
        raise ModelFileError(f'model file {path}: has random weights; run "ruvllm models remove {TIER}" and pull it')
    return path


class Lfm2Encoder:
    """A GGUF encoder with a context of its own; one text at a time, a second thread waits."""

    def __init__(self, path: Path, threads: int = 1, pooling: int = CLS, max_tokens: int = MAX_TOKENS) -> None:
        """
        Raises:
            ModelFileError: the file is missing or llama.cpp cannot load it.
        """
        if not path.is_file():
            raise ModelFileError(
                f'model file {path.name}: not in {path.parent}; run "ruvllm models pull {TIER}", or set'
                " RUVLLM_ENCODER=minilm"
            )
        self.id = path.stem.lower()
        self._max_tokens = max_tokens
        self._engine = _Engine(path, threads, pooling, max_tokens)
        self.dimension = self._engine.dimension
        self._lock = Lock()  # a llama.cpp context is not safe to share

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        """(n, d) float32, in the order of `texts`; long text is the mean of its windows, each behind the prompt."""
        with self._lock:
            head = [*self._engine.begin, *self._engine.tokenise(PROMPTS[role])]
            rows = [self._mean_of_windows(head, self._engine.tokenise(text)) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dimension)

    def _mean_of_windows(self, head: list[int], body: list[int]) -> Floats:
        parts = windows(body, self._max_tokens - len(head))
        mean: Floats = np.mean([self._engine.pooled([*head, *part]) for part in parts], axis=0, dtype=np.float32)
        return mean


class _Engine:
    """The few calls of llama.cpp's C API that embedding needs; `Llama.embed` cuts text at its batch size, silently."""

    def __init__(self, path: Path, threads: int, pooling: int, max_tokens: int) -> None:
        import llama_cpp.llama_cpp as api

        self._api: Any = api
        self._quiet = api.llama_log_callback(lambda *_: None)  # ctypes keeps no reference of its own
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = self._load(path)
        self._vocab = api.llama_model_get_vocab(self._model)
        self._context = self._open(path, threads, pooling, max_tokens)
        self._batch = api.llama_batch_init(max_tokens, 0, 1)
        self.dimension = int(api.llama_model_n_embd(self._model))
        self.begin = [int(api.llama_vocab_bos(self._vocab))] if api.llama_vocab_get_add_bos(self._vocab) else []

    def _load(self, path: Path) -> int:
        params = self._api.llama_model_default_params()
        # GCC 12 miscompiles ggml's AMX code (see ruvllm/inference/engine.py); AMX is one of the extra buffer types
        params.use_extra_bufts = b"AMX_INT8 = 1" not in self._api.llama_print_system_info()
        model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise ModelFileError(f"model file {path.name}: llama.cpp cannot load it; put an intact one in its place")
        return int(model)

    def _open(self, path: Path, threads: int, pooling: int, max_tokens: int) -> int:
        params = self._api.llama_context_default_params()
        # a bidirectional sequence is evaluated in one piece: context >= batch >= ubatch >= sequence
        params.n_ctx = params.n_batch = params.n_ubatch = max_tokens
        params.n_seq_max, params.embeddings, params.pooling_type = 1, True, pooling
        params.n_threads = params.n_threads_batch = threads
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ModelFileError(f"model file {path.name}: llama.cpp cannot open it for embedding")
        return int(context)

    def tokenise(self, text: str) -> list[int]:
        """Token ids; a literal special token in `text` stays plain characters.

        Raises:
            InputError: half a surrogate pair, which has no UTF-8.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text: {error.reason} at {error.start}; want text that has UTF-8") from error
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, False)
        if count < 0:
            raise InferenceError(f"tokeniser: got {count} for a text of {len(raw)} bytes, want a count")
        return list(ids[:count])

    def pooled(self, tokens: Sequence[int]) -> Floats:
        """(d,) of one sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = self._api.llama_decode(self._context, batch)
        vector = self._api.llama_get_embeddings_seq(self._context, 0)
        if code != 0 or not vector:
            raise InferenceError(f"encoder: llama.cpp returned {code} for {len(tokens)} tokens and no pooled vector")
        return np.array(vector[: self.dimension], dtype=np.float32)
