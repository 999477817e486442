"""One GGUF in this process through llama.cpp's C API: tokens in, logits out, state saved and restored.

Knows nothing of prompts, sampling or sockets. Runs in the child only: a C++ exception ends the process it is in.

The C API and not `llama_cpp.Llama`: that class allocates n_batch x n_vocab floats (512 MiB for Gemma's vocabulary) and
reuses a prefix by rolling back, which hybrid models like LFM2 silently get wrong (ggml-org/llama.cpp#26695). Here the
only reuse is: clear, restore a snapshot, append.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InferenceError, ModelFileError
from ruvllm.inference.halt import Halt
from ruvllm.inference.loading import load
from ruvllm.inference.snapshots import Snapshot
from ruvllm.inference.types import Segment

N_BATCH = 512
_ABORTED = 2  # llama_decode's answer when the abort callback said stop
_OPENED = "one sequence, no flash attention, keys and values as halves, the window alone"  # as _open_context does
_ENDLESS = Halt()


class Engine:
    """Not safe for threads: llama.cpp crashes when one context is used by two. `source` is where `path`, which messages
    speak of, is read: an open descriptor of it.

    Raises:
        ModelFileError: the file is not a GGUF that this llama.cpp can load.
    """

    n_outputs = 1  # tokens of one evaluation that have logits: the last

    def __init__(self, path: Path, n_ctx: int, source: Path | None = None) -> None:
        import llama_cpp.llama_cpp as api

        self._api: Any = api
        self.n_ctx = n_ctx
        self._halt = Halt()
        self._model, self._log = load(api, path, source or path)
        self._vocab = api.llama_model_get_vocab(self._model)
        self.n_vocab: int = api.llama_vocab_n_tokens(self._vocab)
        # ctypes keeps no reference to a callback: lose ours and the next prefill calls freed memory.
        self._abort = api.ggml_abort_callback(lambda _: self._halt.passed)
        self._no_abort = api.ggml_abort_callback()  # a null pointer
        self._set_callback = self._no_abort
        self._context = self._open_context(path)
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(N_BATCH, 0, 1)
        self._tokens: list[int] = []
        self._stopped = False

    def _open_context(self, path: Path) -> int:
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.n_ctx, N_BATCH, N_BATCH
        params.n_seq_max = 1
        params.n_outputs_max = self.n_outputs  # only the last token's logits: 22 MiB of buffers, not 515, for Gemma
        # The window alone is kept: a snapshot never goes back within a sequence. True would not make Gemma's restored
        # logits those of a full evaluation behind its 512 tokens: llama.cpp leaves the cells behind the window out of a
        # saved state either way (same bytes, same differences of up to 2.9 in a logit, same best token; 2026-11-23).
        params.swa_full = False
        # Off: llama.cpp's flash attention rounds otherwise for batches under 64 tokens than for longer ones (up to 1.4
        # in a logit), so a restored prompt would not answer as a full one does. Nor is it faster here: SmolLM2 decodes
        # 47 tokens/s without it, 31 with it.
        params.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ModelFileError(f"model file {path}: llama.cpp cannot open a context of {self.n_ctx} tokens")
        return int(context)

    @property
    def context(self) -> str:
        """What a saved state depends on beside the file: the library, and how the context was opened."""
        return f"llama.cpp {version('llama-cpp-python')}, {self.n_ctx} tokens in batches of {N_BATCH}, {_OPENED}"

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the model has evaluated since the last clear."""
        return tuple(self._tokens)

    def set_threads(self, decode: int, prefill: int) -> None:
        self._api.llama_set_n_threads(self._context, decode, prefill)

    def tokenise(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`; a literal `<|im_end|>` becomes the special token only if `special`."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise InferenceError(f"tokeniser: got {count} for a text of {len(raw)} bytes, want a count")
        return list(ids[:count])

    def tokenise_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Each segment on its own, so that a prompt's tokens never depend on what follows."""
        return [token for segment in segments for token in self.tokenise(segment.text, segment.trusted)]

    def begin_tokens(self) -> list[int]:
        """What the model's metadata wants at the very start."""
        wants = self._api.llama_vocab_get_add_bos(self._vocab)
        return [int(self._api.llama_vocab_bos(self._vocab))] if wants else []

    def is_end(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_control(self._vocab, token))

    def piece(self, token: int) -> bytes:
        """The bytes of one token; special tokens have none. A character may span several tokens."""
        buffer = ctypes.create_string_buffer(256)
        size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(size, 0)]

    def clear(self) -> None:
        self._api.llama_memory_clear(self._memory, False)
        self._tokens = []
        self._stopped = False

    def evaluate(self, tokens: Sequence[int], halt: Halt | None = None) -> None:
        """Append `tokens`. Logits are bit by bit the same however a prompt is cut, as long as no piece is below eight
        tokens: those go through other kernels, whose rounding the quantised model amplifies (about 1 in a logit).

        Raises:
            DeadlineError, CancelledError: `halt` said stop. What the model holds then is undefined, so nothing can be
                appended before the next clear or restore.
        """
        if self._stopped:
            raise InferenceError("model state: got tokens after a stop in the middle, want a clear or a restore first")
        self._halt = halt or _ENDLESS
        for chunk in _chunks(tokens):
            self._decode(chunk)

    def _decode(self, chunk: Sequence[int]) -> None:
        # The callback enters Python at every graph node: nothing beside a prefill, 5 % of a single token.
        stoppable = len(chunk) > 1 and self._halt is not _ENDLESS
        callback = self._abort if stoppable else self._no_abort
        if callback is not self._set_callback:
            self._api.llama_set_abort_callback(self._context, callback, ctypes.c_void_p(0))
            self._set_callback = callback
        self._fill(chunk)
        code = self._api.llama_decode(self._context, self._batch)
        self._stopped = code != 0
        if code not in (0, _ABORTED):
            raise InferenceError(f"llama_decode: got {code}, want 0, after {len(self._tokens)} of {self.n_ctx} tokens")
        if not self._stopped:
            self._tokens.extend(chunk)
        self._halt.check(f"token {len(self._tokens)} of its prompt or answer was evaluated")

    def _fill(self, chunk: Sequence[int]) -> None:
        batch, start = self._batch, len(self._tokens)
        batch.n_tokens = len(chunk)
        for i, token in enumerate(chunk):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = int(i == len(chunk) - 1)

    def logits(self) -> NDArray[np.float32]:
        """Of the last evaluated token, shape (n_vocab,): a view that the next evaluation overwrites."""
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    @property
    def state_bytes(self) -> int:
        """Of a snapshot taken now."""
        return int(self._api.llama_state_seq_get_size(self._context, 0))

    def snapshot(self) -> Snapshot:
        size = self.state_bytes
        state = (ctypes.c_uint8 * size)()
        written = self._api.llama_state_seq_get_data(self._context, state, size, 0)
        if written != size:
            raise InferenceError(f"state snapshot: got {written} bytes, want {size}")
        return Snapshot(self.tokens, state)

    def restore(self, snapshot: Snapshot) -> None:
        self.clear()
        if not snapshot.tokens:
            return
        size = len(snapshot.state)
        if self._api.llama_state_seq_set_data(self._context, snapshot.state, size, 0) != size:
            raise InferenceError(f"state snapshot: {size} bytes did not restore")
        self._tokens = list(snapshot.tokens)

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def _chunks(tokens: Sequence[int]) -> list[Sequence[int]]:
    """Even pieces of at most N_BATCH: a last piece of one token would be rounded otherwise."""
    pieces = -(-len(tokens) // N_BATCH)
    size = -(-len(tokens) // max(pieces, 1))
    return [tokens[i * size : (i + 1) * size] for i in range(pieces)]
