"""LFM2 without its weights: files of any shape with random weights, for tests and for measuring speed and memory.

Knows nothing of tiers. No ladder takes such a file for a model: see `ruvllm.inference.tiers.is_blank`.
"""

from ruvllm.inference.blank.checkpoint import write_checkpoint
from ruvllm.inference.blank.gguf_file import QUANTISATIONS, quantise, write_gguf, write_ggufs, write_outline

__all__ = ["QUANTISATIONS", "quantise", "write_checkpoint", "write_gguf", "write_ggufs", "write_outline"]
