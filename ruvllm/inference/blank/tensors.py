"""Which tensors an LFM2 shape has, by both their names, and random numbers for them; knows nothing of file formats.

The numbers depend on the seed and the tensor's place alone, so the GGUF and the checkpoint of one seed are one model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ruvllm.inference.shapes import Shape

_BLOCK = 4 * 1024 * 1024  # numbers made at once: 16 MiB, whatever the tensor's size
_SPREAD = 3.0  # standard deviation of a logit: neither a uniform guess nor always the same token
_HUSHED = 0.1  # how much of that a token gets that would end the answer


@dataclass(frozen=True)
class Tensor:
    """`shape` is row-major, outermost first; GGUF counts the other way round."""

    gguf_name: str
    checkpoint_name: str
    shape: tuple[int, ...]
    deviation: float  # of the normal distribution; 0: all ones, a norm's gain

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """A checkpoint's depthwise convolution is (channels, 1, taps)."""
        return (self.shape[0], 1, self.shape[1]) if ".conv.conv." in self.checkpoint_name else self.shape

    @property
    def single_precision(self) -> bool:
        """llama.cpp wants norms and the convolution's kernel so."""
        return self.deviation == 0.0 or ".conv.conv." in self.checkpoint_name


def tensors(shape: Shape) -> list[Tensor]:
    """In the order in which they are written."""
    width = shape.width
    found = [
        Tensor("token_embd.weight", "model.embed_tokens.weight", (shape.vocabulary, width), _SPREAD / width**0.5),
        Tensor("token_embd_norm.weight", "model.embedding_norm.weight", (width,), 0.0),
    ]
    for layer in range(shape.layers):
        mixing = _attention(shape, layer) if layer in shape.attention else _convolution(shape, layer)
        found += [*mixing, *_feed_forward(shape, layer)]
    return found


def _in_layer(layer: int, gguf: str, checkpoint: str, *shape: int) -> Tensor:
    """A matrix keeps its input's size: deviation 1 / sqrt(columns). One dimension: a norm."""
    deviation = shape[-1] ** -0.5 if len(shape) > 1 else 0.0
    return Tensor(f"blk.{layer}.{gguf}.weight", f"model.layers.{layer}.{checkpoint}.weight", shape, deviation)


def _attention(shape: Shape, layer: int) -> Sequence[Tensor]:
    width, keys = shape.width, shape.kv_width
    return [
        _in_layer(layer, "attn_norm", "operator_norm", width),
        _in_layer(layer, "attn_q", "self_attn.q_proj", width, width),
        _in_layer(layer, "attn_k", "self_attn.k_proj", keys, width),
        _in_layer(layer, "attn_v", "self_attn.v_proj", keys, width),
        _in_layer(layer, "attn_output", "self_attn.out_proj", width, width),
        _in_layer(layer, "attn_q_norm", "self_attn.q_layernorm", shape.head_width),
        _in_layer(layer, "attn_k_norm", "self_attn.k_layernorm", shape.head_width),
    ]


def _convolution(shape: Shape, layer: int) -> Sequence[Tensor]:
    width = shape.width
    return [
        _in_layer(layer, "attn_norm", "operator_norm", width),
        _in_layer(layer, "shortconv.in_proj", "conv.in_proj", 3 * width, width),
        _in_layer(layer, "shortconv.conv", "conv.conv", width, shape.conv_cache),
        _in_layer(layer, "shortconv.out_proj", "conv.out_proj", width, width),
    ]


def _feed_forward(shape: Shape, layer: int) -> Sequence[Tensor]:
    width, inner = shape.width, shape.feed_forward
    return [
        _in_layer(layer, "ffn_norm", "ffn_norm", width),
        _in_layer(layer, "ffn_gate", "feed_forward.w1", inner, width),
        _in_layer(layer, "ffn_up", "feed_forward.w3", inner, width),
        _in_layer(layer, "ffn_down", "feed_forward.w2", width, inner),
    ]


def numbers(tensor: Tensor, seed: int, place: int, hushed: Sequence[int] = ()) -> Iterator[NDArray[np.float32]]:
    """The tensor's numbers in order, in blocks of whole rows; rows in `hushed` are small (the embedding's only)."""
    if tensor.deviation == 0.0:
        yield np.ones(tensor.shape, dtype=np.float32)
        return
    rng, columns = np.random.default_rng([seed, place]), tensor.shape[-1]
    rows, step = tensor.numbers // columns, max(1, _BLOCK // columns)
    quiet = np.asarray(hushed, dtype=np.int64)
    for start in range(0, rows, step):
        block = rng.standard_normal((min(step, rows - start), columns), dtype=np.float32)
        block *= np.float32(tensor.deviation)
        here = quiet[(quiet >= start) & (quiet < start + len(block))]
        block[here - start] *= np.float32(_HUSHED)
        yield block
