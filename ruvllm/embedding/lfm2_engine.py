"""One GGUF encoder in this process: text in, one pooled vector out. Knows nothing of files' hashes, sockets or memory.

Runs in the child only (see lfm2_worker.py): a fault of llama.cpp ends the process it is in. The C API and not
`Llama.embed`, which cuts text at its batch size, silently.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ruvllm.embedding.adapter import Floats, Role
from ruvllm.embedding.windows import windows
from ruvllm.errors import InferenceError, InputError, ModelFileError
from ruvllm.inference.halt import Halt
from ruvllm.inference.loading import load

PROMPTS: dict[Role, str] = {"query": "query: ", "document": "document: "}


class EncoderEngine:
    """Not safe for threads. `source` is where `path`, which messages speak of, is read.

    Raises:
        ModelFileError: the file is not a GGUF that this llama.cpp can open for embedding.
    """

    def __init__(self, path: Path, threads: int, pooling: int, max_tokens: int, source: Path | None = None) -> None:
        import llama_cpp.llama_cpp as api

        self._api: Any = api
        self._max_tokens = max_tokens
        self._model, self._log = load(api, path, source or path)
        self._vocab = api.llama_model_get_vocab(self._model)
        self._context = self._open(path, threads, pooling)
        self._batch = api.llama_batch_init(max_tokens, 0, 1)
        self.dimension = int(api.llama_model_n_embd(self._model))
        self._begin = [int(api.llama_vocab_bos(self._vocab))] if api.llama_vocab_get_add_bos(self._vocab) else []

    def _open(self, path: Path, threads: int, pooling: int) -> int:
        params = self._api.llama_context_default_params()
        # a bidirectional sequence is evaluated in one piece: context >= batch >= ubatch >= sequence
        params.n_ctx = params.n_batch = params.n_ubatch = self._max_tokens
        params.n_seq_max, params.embeddings, params.pooling_type = 1, True, pooling
        params.n_threads = params.n_threads_batch = threads
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ModelFileError(f"model file {path.name}: llama.cpp cannot open it for embedding")
        return int(context)

    def encode(self, texts: Sequence[str], role: Role, halt: Halt) -> Floats:
        """(n, d) float32; long text is the mean of its windows, each behind the prompt.

        Raises:
            DeadlineError, CancelledError: `halt` said stop, asked between two windows.
        """
        head = [*self._begin, *self._tokenise(PROMPTS[role])]
        rows = [self._mean_of_windows(head, self._tokenise(text), halt) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dimension)

    def _mean_of_windows(self, head: list[int], body: list[int], halt: Halt) -> Floats:
        vectors = []
        for part in windows(body, self._max_tokens - len(head)):
            halt.check("texts were encoded")
            vectors.append(self._pooled([*head, *part]))
        mean: Floats = np.mean(vectors, axis=0, dtype=np.float32)
        return mean

    def _tokenise(self, text: str) -> list[int]:
        """Token ids; a literal special token in `text` stays plain characters."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, False)
        if count < 0:
            raise InferenceError(f"tokeniser: got {count} for a text of {len(raw)} bytes, want a count")
        return list(ids[:count])

    def _pooled(self, tokens: Sequence[int]) -> Floats:
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


def check_text(text: str) -> None:
    """
    Raises:
        InputError: half a surrogate pair, which has no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text: {error.reason} at {error.start}; want text that has UTF-8") from error
