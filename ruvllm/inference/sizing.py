"""How much memory an LFM2 needs at a quantisation and a context, by arithmetic. Knows nothing of files.

Every part is checked against llama.cpp: tests/inference/test_sizing.py compares weights, keys and values, state and
buffers with what it reports for blank files of all five shapes, and the sum with a process's resident set.
"""

from __future__ import annotations

from dataclasses import dataclass

from ruvllm.inference.machine import Repacked
from ruvllm.inference.shapes import Shape

QUANTISATIONS = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16")  # fewest bits first
N_BATCH = 512  # tokens evaluated at once, as in engine.py
_KV_BYTES, _FLOAT = 2, 4  # keys and values are halves; state and buffers are floats
_CONTEXT_STEP = 256  # llama.cpp rounds a context up to this

# Bits a weight: a block's bytes by its weights (ggml's block layouts).
_BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "Q8_0": 34 * 8 / 32,
    "Q6_K": 210 * 8 / 256,
    "Q5_K": 176 * 8 / 256,
    "Q4_K": 144 * 8 / 256,
    "Q4_0": 18 * 8 / 32,
}
# What a quantisation makes of most matrices, of the embedding (which is the output layer too), and of those in which
# a mixture spends more: values and the feed-forward's way down in some layers.
_MIXES = {
    "Q4_0": ("Q4_0", "Q6_K", "Q4_0"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K", "Q6_K"),
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "F16": ("F16", "F16", "F16"),
}

# Measured on 2026-11-22: a process with numpy and llama.cpp and a loaded model's small parts takes 46 MiB; a vocabulary
# of 65,536 tokens and as many merges 17 MiB more than one of 1,024, and 2.3 MiB of the file.
_PROCESS = 46 * 2**20
_TOKEN = 306


@dataclass(frozen=True)
class Size:
    """Bytes. `weights` are mapped from the file and shared by processes; all else is each process's own."""

    weights: int
    repacked: int  # the copy that llama.cpp rearranges for the processor
    kv: int  # keys and values at the full context
    state: int  # of the short convolutions, whatever the context
    compute: int  # llama.cpp's buffers for a batch
    work: int  # and ggml's beside them, which no log mentions
    process: int

    @property
    def resident(self) -> int:
        """What the process's resident set grows to."""
        return self.weights + self.private

    @property
    def private(self) -> int:
        return self.repacked + self.kv + self.state + self.compute + self.work + self.process


def size(shape: Shape, quantisation: str, n_ctx: int, repacked: Repacked = "none") -> Size:
    """What one process with this model needs; `repacked` where llama.cpp rearranges weights (see `machine.repacks`)."""
    return Size(
        weights=weight_bytes(shape, quantisation),
        repacked=_repacked_bytes(shape, quantisation, repacked),
        kv=kv_bytes(shape, n_ctx),
        state=state_bytes(shape),
        compute=compute_bytes(shape, n_ctx),
        work=work_bytes(shape, n_ctx),
        process=_PROCESS + shape.vocabulary * _TOKEN,
    )


def weight_bytes(shape: Shape, quantisation: str) -> int:
    """Of all tensors; a GGUF of it is 1 to 3 MB larger, the vocabulary."""
    plain, embedding, _ = _MIXES[quantisation]
    matrices = _matrix_weights(shape)
    bits = (
        shape.vocabulary * shape.width * _BITS[embedding]
        + matrices * _BITS[plain]
        + _favoured(shape, quantisation)
        + _single_precision(shape) * _BITS["F32"]
    )
    return int(bits / 8)


def _matrix_weights(shape: Shape) -> int:
    return shape.parameters - shape.vocabulary * shape.width - _single_precision(shape)


def _single_precision(shape: Shape) -> int:
    """Norms and the convolutions' kernels."""
    norms = (2 * shape.layers + 1) * shape.width + 2 * len(shape.attention) * shape.head_width
    return norms + len(shape.convolution) * shape.conv_cache * shape.width


def _favoured(shape: Shape, quantisation: str) -> float:
    """Bits that a mixture spends beyond its plain type."""
    plain, _, better = _MIXES[quantisation]
    values = _more(len(shape.attention)) * shape.kv_width * shape.width
    down = _more(shape.layers) * shape.feed_forward * shape.width
    return (values + down) * (_BITS[better] - _BITS[plain])


def _more(count: int) -> int:
    """How many of `count` layers llama.cpp favours: the first and last eighth and every third between them."""
    eighth = count // 8
    return sum(i < eighth or i >= 7 * count // 8 or (i - eighth) % 3 == 2 for i in range(count))


def _repacked_bytes(shape: Shape, quantisation: str, which: Repacked) -> int:
    """AVX2: 4-bit blocks of matrices, the embedding stays. AMX: every matrix, the output layer and half precision too,
    and eight bits with a sum of 4 bytes a block."""
    plain = _MIXES[quantisation][0]
    if which == "4-bit":
        return int(_matrix_weights(shape) * _BITS[plain] / 8) if plain in ("Q4_0", "Q4_K") else 0
    if which == "none":
        return 0
    return int(weight_bytes(shape, quantisation) * (38 / 34 if plain == "Q8_0" else 1))


def kv_bytes(shape: Shape, n_ctx: int) -> int:
    """Keys and values of `n_ctx` tokens in the layers that attend (12 KiB a token for the 350M)."""
    return len(shape.attention) * 2 * shape.kv_width * _KV_BYTES * _rounded(n_ctx)


def state_bytes(shape: Shape) -> int:
    """What the short convolutions remember: conv_cache - 1 inputs a layer (80 KiB for the 350M)."""
    return len(shape.convolution) * (shape.conv_cache - 1) * shape.width * _FLOAT


def snapshot_bytes(shape: Shape, tokens: int) -> int:
    """A saved state after `tokens`, to within a few hundred bytes: what a prefix costs to keep."""
    return len(shape.attention) * 2 * shape.kv_width * _KV_BYTES * tokens + state_bytes(shape)


def held_bytes(shape: Shape, n_ctx: int, budget: int) -> int:
    """Saved states at the most: those kept, within `budget`, and the two that a nested question holds at once."""
    return budget + 2 * snapshot_bytes(shape, n_ctx)


def compute_bytes(shape: Shape, n_ctx: int, n_batch: int = N_BATCH) -> int:
    """llama.cpp's buffer without flash attention: the larger of attention's and the feed-forward block's moment.

    Attention holds its scores (heads x context), the input, query, keys and values of a batch; the feed-forward block
    its three products. The mask (context) is there throughout.
    """
    context, keys = _rounded(n_ctx), 2 * shape.kv_width
    attention = shape.heads * context + 5 * shape.width + keys
    feed_forward = 3 * shape.feed_forward + 3 * shape.width + keys
    return _FLOAT * min(n_batch, n_ctx) * (max(attention, feed_forward) + context)


def work_bytes(shape: Shape, n_ctx: int, n_batch: int = N_BATCH) -> int:
    """ggml's: the input of a matrix product in the type of its matrix. The largest is attention's scores as halves."""
    return 2 * min(n_batch, n_ctx) * max(shape.heads * _rounded(n_ctx), shape.feed_forward)


def _rounded(n_ctx: int) -> int:
    return -(-n_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
