"""LFM2's encoder on a blank bidirectional file: what a vector depends on, whatever the weights; its file, verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ruvllm.embedding import open_embedder
from ruvllm.embedding.lfm2 import MEAN, Lfm2Encoder, model_path
from ruvllm.embedding.windows import windows
from ruvllm.errors import InputError, ModelFileError
from ruvllm.inference.blank import write_gguf, write_outline
from ruvllm.inference.shapes import ENCODER, TINY
from ruvllm.settings import Settings

WINDOW = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether the model attends both ways."""
    folder = tmp_path_factory.mktemp("encoder")
    return {both: write_gguf(folder / f"blank-{both}.gguf", TINY, encoder=both) for both in (True, False)}


@pytest.fixture(scope="module")
def encoder(files: dict[bool, Path]) -> Lfm2Encoder:
    return Lfm2Encoder(files[True], max_tokens=WINDOW)


def test_the_first_tokens_vector_knows_what_comes_after(encoder: Lfm2Encoder, files: dict[bool, Path]) -> None:
    """Bidirectional: the first token sees the last. The control, the same weights read causally, does not."""
    texts = ["the Work of the author", "the Work of the owner"]
    one, two = encoder.encode(texts)
    assert np.abs(one - two).max() > 0.01
    causal = Lfm2Encoder(files[False], max_tokens=WINDOW).encode(texts)
    assert_array_equal(causal[0], causal[1])


def test_the_pooling_asked_for_is_the_one_that_is_done(encoder: Lfm2Encoder, files: dict[bool, Path]) -> None:
    mean = Lfm2Encoder(files[True], pooling=MEAN, max_tokens=WINDOW)
    assert not np.allclose(mean.encode(["the Work"]), encoder.encode(["the Work"]), atol=1e-2)


def test_many_at_once_equal_one_by_one_to_the_bit(encoder: Lfm2Encoder) -> None:
    texts = [f"{'long ' * (i * 13 % 90)}text number {i}" for i in range(12)]
    assert_array_equal(encoder.encode(texts), np.concatenate([encoder.encode([text]) for text in texts]))


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_the_last_word_of_any_length_counts(encoder: Lfm2Encoder, length: int) -> None:
    text = "contribution " * length
    plain, changed = encoder.encode([text + "granted", text + "refused"])
    assert np.abs(plain - changed).max() > 1e-4


def test_no_text_nothing_in_a_text_and_very_much_text(encoder: Lfm2Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimension)
    assert np.isfinite(encoder.encode(["", " ", "\n", "<|im_end|>", "\x00", "🙂" * 500])).all()
    huge = encoder.encode(["patent licence " * 2_000])
    assert huge.shape == (1, encoder.dimension)
    assert np.isfinite(huge).all()


def test_half_a_surrogate_pair_is_refused(encoder: Lfm2Encoder) -> None:
    with pytest.raises(InputError, match="surrogates not allowed at 3"):
        encoder.encode(["abc\ud800"])
    assert np.isfinite(encoder.encode(["abc"])).all()  # and the next is answered


@given(count=st.integers(0, 5000), longest=st.integers(1, 600))
@hypothesis_settings(max_examples=200, deadline=None)
def test_windows_leave_nothing_out_and_are_even(count: int, longest: int) -> None:
    parts = windows(range(count), longest)
    assert [token for part in parts for token in part] == list(range(count))
    sizes = {len(part) for part in parts}
    assert max(sizes) <= longest
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def at_f16(settings: Settings) -> Settings:
    return replace(settings, encoder="lfm2", quantisation="F16")


def _place(settings: Settings) -> Path:
    return settings.models_dir / "LFM2.5-Embedding-350M-F16.gguf"


def test_without_its_file_the_way_out_is_named(at_f16: Settings) -> None:
    with pytest.raises(ModelFileError, match=r"models pull lfm2\.5-embedding-350m.*RUVLLM_ENCODER=minilm"):
        open_embedder(at_f16)


def test_its_file_is_verified_before_it_is_parsed(at_f16: Settings) -> None:
    path = write_outline(_place(at_f16), replace(ENCODER, feed_forward=64, vocabulary=1024), encoder=True)
    with pytest.raises(ModelFileError, match="has random weights"):  # hashed, recorded, of the right shape; but blank
        model_path(at_f16)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ModelFileError, match=r"sha256 is .*, expected"):
        open_embedder(at_f16)


def test_another_model_in_its_place_is_refused(at_f16: Settings) -> None:
    write_gguf(_place(at_f16), TINY, encoder=True)
    with pytest.raises(ModelFileError, match="is lfm2 with 4 layers of 256, want lfm2 with 16 layers of 1024"):
        open_embedder(at_f16)
