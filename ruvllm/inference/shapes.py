"""The shapes of the LFM2 family as data: layers, widths, heads, vocabulary. Knows nothing of files or of memory.

Where the numbers come from:

- Layers and their kinds, vocabulary and the exact parameter counts: the table of LiquidAI's model cards (LFM2-350M,
  -700M, -1.2B, -2.6B). `parameters` adds them up from the shape, and a test holds the sums to the cards' counts, so
  that a wrong width or layer kind cannot stay unnoticed.
- Widths, heads and which layers attend: `config.json` of those repositories (`hidden_size`, `num_attention_heads`,
  `num_key_value_heads`, `layer_types` or `full_attn_idxs`, `conv_L_cache`, `rope_theta`, `norm_eps`).
- Feed-forward: `block_ff_dim` 6656, 10240 and 12288, of which the model takes two thirds rounded up to 256
  (`block_auto_adjust_ff_dim`), hence 4608, 6912 and 8192; the 2.6B takes its 10752 as it is. llama.cpp's loader
  (src/models/lfm2.cpp) tells the sizes apart by the same four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from ruvllm.errors import UnknownTierError

ARCHITECTURE = "lfm2"  # what llama.cpp calls it
_SMALL_ATTENTION = (2, 5, 8, 10, 12, 14)


@dataclass(frozen=True)
class Shape:
    """A hybrid of short convolutions and grouped-query attention; every layer ends in a SwiGLU feed-forward block."""

    name: str
    layers: int
    attention: tuple[int, ...]  # indices of the layers that attend; the others convolve
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int = 65_536
    conv_cache: int = 3  # taps of the short convolution; its state is one less
    context: int = 32_768
    rope_base: float = 1_000_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Numbers of one token's keys (or values) in one layer."""
        return self.kv_heads * self.head_width

    @property
    def convolution(self) -> tuple[int, ...]:
        """Indices of the layers that convolve."""
        return tuple(layer for layer in range(self.layers) if layer not in self.attention)

    @property
    def parameters(self) -> int:
        """Weights of all kinds; the output layer is the embedding's transpose and counts once."""
        width = self.width
        attention = 2 * width * width + 2 * width * self.kv_width + 2 * self.head_width
        convolution = 4 * width * width + self.conv_cache * width
        block = 3 * width * self.feed_forward + 2 * width
        mixing = len(self.attention) * attention + len(self.convolution) * convolution
        return mixing + self.layers * block + self.vocabulary * width + width


# For tests: head width 64, which vLLM's attention on a CPU can do; rows of 256, which k-quantisation needs.
TINY = Shape(
    "lfm2-tiny",
    layers=4,
    attention=(1, 3),
    width=256,
    feed_forward=512,
    heads=4,
    kv_heads=2,
    vocabulary=1024,
)

SHAPES = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Shape("lfm2-350m", 16, _SMALL_ATTENTION, width=1024, feed_forward=4608, heads=16, kv_heads=8),
            Shape("lfm2-700m", 16, _SMALL_ATTENTION, width=1536, feed_forward=6912, heads=24, kv_heads=8),
            Shape("lfm2-1.2b", 16, _SMALL_ATTENTION, width=2048, feed_forward=8192, heads=32, kv_heads=8),
            Shape("lfm2-2.6b", 30, (2, 5, 9, 13, 17, 21, 24, 27), width=2048, feed_forward=10752, heads=32, kv_heads=8),
        )
    }
)


# LFM2.5-Embedding-350M: the 350M's blocks (its model card counts as many parameters), attending and convolving both
# ways; trained for 512 tokens.
ENCODER = replace(SHAPES["lfm2-350m"], name="lfm2.5-embedding-350m", context=512)


def find_shape(name: str) -> Shape:
    """The shape `lfm2-350m`, or `350m` for short; `tiny` and `embedding-350m` are known too.

    Raises:
        UnknownTierError: no shape has that name.
    """
    known = [*SHAPES.values(), ENCODER, TINY]
    for shape in known:
        if name.lower() in (shape.name, shape.name.partition("-")[2]):
            return shape
    raise UnknownTierError(f"shape {name!r}: not known; want one of {', '.join(shape.name for shape in known)}")
