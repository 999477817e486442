"""A blank LFM2 as GGUF: written piece by piece, quantised by llama.cpp in this process. Knows no catalogue."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ruvllm.errors import InputError, ModelFileError
from ruvllm.inference.blank.tensors import Tensor, numbers, tensors
from ruvllm.inference.blank.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, SPECIAL, Vocabulary, train
from ruvllm.inference.files import disk_errors, publish, writing
from ruvllm.inference.shapes import ENCODER, Shape
from ruvllm.inference.tiers import BLANK_MARK
from ruvllm.progress import Progress, silent

_ALIGNMENT = 32
_FTYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17}  # LLAMA_FTYPE_MOSTLY_* of llama.h
QUANTISATIONS = tuple(_FTYPES)
_NORMAL, _CONTROL = 1, 3  # kinds of tokens


def write_gguf(
    path: Path,
    shape: Shape,
    quantisation: str = "F16",
    seed: int = 0,
    vocabulary: int | None = None,
    encoder: bool = False,
    progress: Progress = silent,
) -> Path:
    """An LFM2 of `shape` with random weights at `path`, which appears whole or not at all.

    It speaks nonsense until it is stopped, as fast as the real model and in as much memory: neither depends on the
    weights' values. `vocabulary` overrides the shape's; `encoder` makes it bidirectional with CLS pooling, as
    LFM2.5-Embedding is. The same arguments give the same bytes. Takes 2 bytes of disk a weight while it works.

    Raises:
        InputError: no such quantisation, or too small a vocabulary.
        ModelFileError: the disk refuses, or llama.cpp cannot quantise it.
    """
    _check(quantisation)
    if quantisation == "F16":
        return _write_f16(path, shape, seed, vocabulary, encoder, progress)
    plain = _write_f16(path.with_name(path.name + ".f16"), shape, seed, vocabulary, encoder, progress)
    try:
        return quantise(plain, path, quantisation)
    finally:
        plain.unlink()


def write_ggufs(
    folder: Path, shape: Shape, quantisations: Sequence[str], seed: int = 0, progress: Progress = silent
) -> list[Path]:
    """`blank-<shape>-<quantisation>.gguf` for each, from one F16 file, which stays only if it is asked for.

    Raises:
        As `write_gguf` does.
    """
    for quantisation in quantisations:
        _check(quantisation)
    paths = {q: folder / f"blank-{shape.name}-{q}.gguf" for q in quantisations}
    plain = paths.get("F16", folder / f"blank-{shape.name}.f16")
    _write_f16(plain, shape, seed, None, shape == ENCODER, progress)
    try:
        return [plain if q == "F16" else quantise(plain, path, q) for q, path in paths.items()]
    finally:
        if "F16" not in paths:
            plain.unlink()


def _check(quantisation: str) -> None:
    if quantisation not in _FTYPES:
        raise InputError(f"quantisation: got {quantisation!r}, want one of {', '.join(_FTYPES)}")


def _write_f16(path: Path, shape: Shape, seed: int, vocabulary: int | None, encoder: bool, progress: Progress) -> Path:
    words = train(vocabulary or shape.vocabulary)
    shape = replace(shape, vocabulary=len(words.tokens))
    wanted = tensors(shape)
    unfinished = path.with_name(path.name + ".making")
    with disk_errors(path), _removed(unfinished):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_header(unfinished, shape, words, wanted, encoder)
        with writing(unfinished, "ab", keep=True) as out:
            _pad(out)
            _write_numbers(out, wanted, seed, words, progress, path.name)
            publish(out, path)
    return path


def write_outline(path: Path, shape: Shape, encoder: bool = False) -> Path:
    """An F16 file of `shape` whose weights are a hole: of the true size, on almost no disk, and all zeros.

    llama.cpp opens it and says what memory it takes; its answers are worth nothing.

    Raises:
        ModelFileError: the disk refuses.
    """
    words, wanted = train(shape.vocabulary), tensors(shape)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_header(path, shape, words, wanted, encoder)
        weights = sum(_aligned(tensor.numbers * _dtype(tensor).itemsize) for tensor in wanted)
        os.truncate(path, _aligned(path.stat().st_size) + weights)
    return path


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype("<f4" if tensor.single_precision else "<f2")


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    """What is left of a file on its way to another name, however the block ends."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _write_header(path: Path, shape: Shape, words: Vocabulary, wanted: list[Tensor], encoder: bool) -> None:
    import gguf

    writer: Any = gguf.GGUFWriter(path, "lfm2")
    _add_metadata(writer, shape, encoder)
    _add_tokenizer(writer, words)
    for tensor in wanted:
        kind = _dtype(tensor)
        writer.add_tensor_info(tensor.gguf_name, tensor.shape, kind, tensor.numbers * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _add_metadata(writer: Any, shape: Shape, encoder: bool) -> None:
    writer.add_bool(BLANK_MARK, True)  # first, where tiers.is_blank looks for it
    writer.add_name(f"blank {shape.name}")
    writer.add_description("Random weights, for measurements and tests: it has learned nothing and answers nonsense.")
    writer.add_file_type(_FTYPES["F16"])
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    # llama.cpp takes a layer without keys for a convolution
    writer.add_head_count_kv([shape.kv_heads if i in shape.attention else 0 for i in range(shape.layers)])
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_shortconv_l_cache(shape.conv_cache)
    writer.add_vocab_size(shape.vocabulary)
    if encoder:
        import gguf

        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.CLS)


def _add_tokenizer(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("lfm2")
    writer.add_token_list(words.tokens)
    writer.add_token_types([_CONTROL if i < len(SPECIAL) else _NORMAL for i in range(len(words.tokens))])
    writer.add_token_merges([f"{a} {b}" for a, b in words.merges])
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_numbers(out: Any, wanted: list[Tensor], seed: int, words: Vocabulary, progress: Progress, name: str) -> None:
    total, done = sum(tensor.numbers for tensor in wanted), 0
    for place, tensor in enumerate(wanted):
        hushed = words.quiet if place == 0 else ()
        for block in numbers(tensor, seed, place, hushed):
            out.write(block.astype(_dtype(tensor)).tobytes())
            done += block.size
            progress(done, total, name)
        _pad(out)


def _pad(out: BinaryIO) -> None:
    out.seek(0, 2)
    out.write(bytes(_aligned(out.tell()) - out.tell()))


def quantise(source: Path, path: Path, quantisation: str, threads: int = 0) -> Path:
    """The GGUF `source` at another quantisation, at `path`; `threads` 0 takes every core.

    Raises:
        InputError: no such quantisation.
        ModelFileError: llama.cpp cannot, or has no room.
    """
    _check(quantisation)
    import llama_cpp.llama_cpp as api

    quiet = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = _FTYPES[quantisation], threads
    params.max_buf_size = 512 * 1024 * 1024  # 8 GiB by default
    unfinished = path.with_name(path.name + ".making")
    with _removed(unfinished):
        code = api.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params))
        if code != 0 or not unfinished.is_file():
            raise ModelFileError(
                f"model file {source}: llama.cpp cannot make {quantisation} of it; is there room in {path.parent}?"
            )
        unfinished.replace(path)
    return path
