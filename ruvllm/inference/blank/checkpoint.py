"""A blank LFM2 as a Hugging Face folder, as vLLM and transformers load it; needs neither of them, nor torch.

The safetensors format is a length, a JSON header and the numbers, so it is written here piece by piece.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.inference.blank.tensors import Tensor, numbers, tensors
from ruvllm.inference.blank.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, SPECIAL, Vocabulary, train
from ruvllm.inference.files import disk_errors, publish, writing
from ruvllm.inference.shapes import Shape
from ruvllm.progress import Progress, silent


def _bfloat16(block: NDArray[np.float32]) -> bytes:
    """The upper half of a float32, rounded to even; the numbers are finite."""
    bits = block.view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    return (rounded >> 16).astype("<u2").tobytes()


# Name in config.json, bytes a number, how a block is packed.
_DTYPES: dict[str, tuple[str, int, Callable[[NDArray[np.float32]], bytes]]] = {
    "BF16": ("bfloat16", 2, _bfloat16),
    "F16": ("float16", 2, lambda block: block.astype("<f2").tobytes()),
    "F32": ("float32", 4, lambda block: block.astype("<f4").tobytes()),
}


def write_checkpoint(
    folder: Path,
    shape: Shape,
    seed: int = 0,
    dtype: str = "BF16",
    vocabulary: int | None = None,
    progress: Progress = silent,
) -> Path:
    """A folder with config.json, model.safetensors and tokenizer of an LFM2 of `shape` with random weights.

    The same seed gives the same model as `write_gguf` does, to the rounding of `dtype` (BF16, F16 or F32). `folder`
    must be new or hold such a checkpoint, which is replaced.

    Raises:
        InputError: no such dtype, too small a vocabulary, or `folder` holds something else.
        ModelFileError: the disk refuses.
    """
    if dtype not in _DTYPES:
        raise InputError(f"dtype: got {dtype!r}, want one of {', '.join(_DTYPES)}")
    words = train(vocabulary or shape.vocabulary)
    with disk_errors(folder):
        _prepare(folder)
        _write_all(folder, shape, words, seed, dtype, progress)
    return folder


def _write_all(folder: Path, shape: Shape, words: Vocabulary, seed: int, dtype: str, progress: Progress) -> None:
    _write_weights(folder / "model.safetensors", shape, len(words.tokens), seed, dtype, words.quiet, progress)
    for name, content in (
        ("config.json", _config(shape, len(words.tokens), dtype)),
        ("generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}),
        ("tokenizer.json", words.as_tokenizer_json()),
        ("tokenizer_config.json", _tokenizer_config(shape)),
        ("special_tokens_map.json", _special_tokens()),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        config = folder / "config.json"
        if not config.is_file() or "ruvllm_blank" not in config.read_text(encoding="utf-8"):
            raise InputError(f"folder {folder}: holds something that is no blank checkpoint; name another")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _write_weights(
    path: Path, shape: Shape, vocabulary: int, seed: int, dtype: str, hushed: list[int], progress: Progress
) -> None:
    wanted, (_, width, pack) = tensors(replace(shape, vocabulary=vocabulary)), _DTYPES[dtype]
    total, done = sum(tensor.numbers for tensor in wanted), 0
    with writing(path.with_name(path.name + ".making")) as out:
        _write_header(out, wanted, dtype, width)
        for place, tensor in enumerate(wanted):
            for block in numbers(tensor, seed, place, hushed if place == 0 else ()):
                out.write(pack(block))
                done += block.size
                progress(done, total, path.parent.name)
        publish(out, path)


def _write_header(out: BinaryIO, wanted: list[Tensor], dtype: str, width: int) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt", "ruvllm.blank": "true"}}
    start = 0
    for tensor in wanted:
        end = start + tensor.numbers * width
        header[tensor.checkpoint_name] = {
            "dtype": dtype,
            "shape": tensor.checkpoint_shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)


def _config(shape: Shape, vocabulary: int, dtype: str) -> dict[str, Any]:
    """What transformers' Lfm2Config writes, and below it the keys that vLLM's LFM2 reads besides."""
    name = _DTYPES[dtype][0]
    return {
        "ruvllm_blank": "random weights: it has learned nothing",
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_base,
        "conv_bias": False,
        "conv_L_cache": shape.conv_cache,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,  # the width above is the one that is used
        "layer_types": ["full_attention" if i in shape.attention else "conv" for i in range(shape.layers)],
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "torch_dtype": name,
        "dtype": name,
        "use_cache": True,
        "block_dim": shape.width,
        "block_ff_dim": shape.feed_forward,
        "block_norm_eps": shape.norm_epsilon,
        "block_use_swiglu": True,
        "block_use_xavier_init": True,
        "conv_dim": shape.width,
        "conv_dim_out": shape.width,
        "conv_use_xavier_init": True,
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.context,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        **_special_tokens(),
    }


def _special_tokens() -> dict[str, str]:
    return {"bos_token": SPECIAL[BEGIN], "eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD]}
