"""Files with random weights: of the right shape, the same every time, one model in both formats, read by llama.cpp."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from ruvllm.errors import InputError, ModelFileError
from ruvllm.inference.blank import QUANTISATIONS, write_checkpoint, write_gguf, write_outline
from ruvllm.inference.engine import Engine
from ruvllm.inference.gguf_header import read_header
from ruvllm.inference.shapes import ENCODER, SHAPES, TINY, find_shape
from ruvllm.inference.tiers import is_blank

# The parameter counts that LiquidAI's model cards state.
PUBLISHED = {
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-1.2b": 1_170_340_608,
    "lfm2-2.6b": 2_569_272_320,
}
# Layers by kind, from the same cards.
LAYERS = {"lfm2-350m": (10, 6), "lfm2-700m": (10, 6), "lfm2-1.2b": (10, 6), "lfm2-2.6b": (22, 8)}


def test_every_shape_adds_up_to_the_published_parameter_count() -> None:
    assert {name: shape.parameters for name, shape in SHAPES.items()} == PUBLISHED
    assert {name: (len(s.convolution), len(s.attention)) for name, s in SHAPES.items()} == LAYERS
    assert ENCODER.parameters == PUBLISHED["lfm2-350m"]


def test_a_shape_is_found_by_its_short_name() -> None:
    assert find_shape("2.6B") is SHAPES["lfm2-2.6b"]
    assert find_shape("tiny") is TINY
    with pytest.raises(InputError, match="'9b': not known; want one of lfm2-350m"):
        find_shape("9b")


@pytest.fixture(scope="module")
def engine(tiny_lfm2: Path) -> Engine:
    return Engine(tiny_lfm2, 512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", TINY)


def _greedy(engine: Engine, text: str, count: int = 12) -> list[int]:
    engine.clear()
    engine.evaluate([*engine.begin_tokens(), *engine.tokenise(text, special=False)])
    said = []
    for _ in range(count):
        said.append(int(np.argmax(engine.logits())))
        engine.evaluate(said[-1:])
    return said


def test_llama_cpp_reads_it_and_it_answers_each_prompt_otherwise(engine: Engine) -> None:
    one, two = _greedy(engine, "What may be reproduced?"), _greedy(engine, "Who contributed the Work?")
    assert one == _greedy(engine, "What may be reproduced?")
    assert one != two
    assert len(set(one)) > 6  # no model that repeats one token
    assert not any(engine.is_end(token) for token in one + two)  # it goes on until it is stopped


def test_special_tokens_act_where_they_are_trusted_and_digits_are_single_tokens(engine: Engine) -> None:
    assert engine.tokenise("<|im_start|>", special=True) == [6]
    assert engine.is_end(engine.tokenise("<|im_end|>", special=True)[0])
    assert len(engine.tokenise("<|im_end|>", special=False)) > 1
    assert all(len(engine.tokenise(digit, special=False)) == 1 for digit in "12345")


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tiny_lfm2: Path, tmp_path: Path) -> None:
    assert write_gguf(tmp_path / "again.gguf", TINY).read_bytes() == tiny_lfm2.read_bytes()
    assert write_gguf(tmp_path / "other.gguf", TINY, seed=1).read_bytes() != tiny_lfm2.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"again.gguf", "other.gguf"}


@pytest.mark.parametrize("quantisation", QUANTISATIONS[1:])
def test_every_quantisation_is_a_blank_lfm2_that_loads(quantisation: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q.gguf", TINY, quantisation)
    assert [p.name for p in tmp_path.iterdir()] == ["q.gguf"]
    assert is_blank(path)
    header = read_header(path)
    assert (header.architecture, header.name, header.layers, header.width) == ("lfm2", "blank lfm2-tiny", 4, 256)
    engine = Engine(path, 256)
    engine.evaluate([1, 40, 41])
    assert np.isfinite(engine.logits()).all()
    engine.close()


def test_a_large_vocabulary_is_filled_with_words_that_have_text(tmp_path: Path) -> None:
    engine = Engine(write_gguf(tmp_path / "wide.gguf", TINY, vocabulary=5000), 256)
    assert engine.n_vocab == 5000
    assert all(engine.piece(token) for token in range(8, 5000))
    engine.close()


@pytest.mark.parametrize("wrong", [{"quantisation": "Q3_K"}, {"vocabulary": 100}])
def test_what_cannot_be_made_is_named_and_leaves_nothing(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Q3_K|100"):
        write_gguf(tmp_path / "x.gguf", TINY, **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ruvllm.inference.blank.gguf_file.publish", full)
    with pytest.raises(ModelFileError, match="No space left"):
        write_gguf(tmp_path / "x.gguf", TINY, "Q8_0")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for make in (write_gguf, write_outline, write_checkpoint):
        with pytest.raises(ModelFileError, match=r"file/x: (Not a directory|File exists)"):
            make(tmp_path / "file" / "x", TINY)


def test_an_outline_has_the_true_size_on_almost_no_disk(tiny_lfm2: Path, tmp_path: Path) -> None:
    outline = write_outline(tmp_path / "outline.gguf", TINY).stat()
    assert outline.st_size == tiny_lfm2.stat().st_size
    assert outline.st_blocks * 512 < outline.st_size / 10


def test_the_checkpoint_holds_the_same_weights(tiny_lfm2: Path, tmp_path: Path) -> None:
    import gguf

    half = load_file(write_checkpoint(tmp_path / "half", TINY, dtype="F16") / "model.safetensors")
    ours = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_lfm2).tensors}
    assert len(half) == len(ours)
    np.testing.assert_array_equal(half["model.embed_tokens.weight"], ours["token_embd.weight"])
    np.testing.assert_array_equal(half["model.layers.0.feed_forward.w3.weight"], ours["blk.0.ffn_up.weight"])
    np.testing.assert_array_equal(half["model.layers.3.self_attn.k_proj.weight"], ours["blk.3.attn_k.weight"])
    kernel = half["model.layers.2.conv.conv.weight"]
    assert kernel.shape == (256, 1, 3)
    np.testing.assert_allclose(kernel[:, 0], ours["blk.2.shortconv.conv.weight"], rtol=1e-3)


def test_brain_floats_are_rounded_not_cut(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    brain = load_torch(checkpoint / "model.safetensors")
    full = load_torch(write_checkpoint(tmp_path / "full", TINY, dtype="F32") / "model.safetensors")
    for name, tensor in full.items():
        assert torch.equal(tensor.to(torch.bfloat16), brain[name])


def test_the_config_says_the_shape_and_that_it_is_blank(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["Lfm2ForCausalLM"]
    assert config["layer_types"] == ["conv", "full_attention", "conv", "full_attention"]
    assert (config["block_ff_dim"], config["conv_dim"], config["block_norm_eps"]) == (512, 256, 1e-5)  # for vLLM
    assert "random weights" in config["ruvllm_blank"]
    assert json.loads((checkpoint / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_a_folder_with_something_else_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(InputError, match="holds something that is no blank checkpoint"):
        write_checkpoint(tmp_path, TINY)
    assert (tmp_path / "letter.txt").read_text() == "keep me"
    assert write_checkpoint(checkpoint, TINY) == checkpoint  # its own kind it replaces


@given(text=st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_both_formats_split_text_alike(engine: Engine, checkpoint: Path, text: str) -> None:
    """vLLM and llama.cpp must count the same tokens, or a router's token costs would depend on the backend."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ours = tokenizer.encode(text, add_special_tokens=False).ids
    special = any(token < 8 for token in ours)
    assert special or ours == engine.tokenise(text, special=False)
    assert special or b"".join(engine.piece(token) for token in ours).decode() == text


def test_a_true_shape_keeps_its_name_and_size(tmp_path: Path) -> None:
    header = read_header(write_outline(tmp_path / "x.gguf", replace(SHAPES["lfm2-2.6b"], vocabulary=2048)))
    assert (header.name, header.layers, header.width) == ("blank lfm2-2.6b", 30, 2048)
