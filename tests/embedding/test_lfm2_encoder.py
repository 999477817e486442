"""LFM2's encoder on a blank bidirectional file: what a vector depends on, whatever the weights; its file, verified."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ruvllm.embedding import open_embedder
from ruvllm.embedding.lfm2 import MEAN, EncoderProcess, Lfm2Encoder, model_file
from ruvllm.embedding.windows import windows
from ruvllm.errors import InputError, ModelFileError, TooLargeError, WorkerDiedError
from ruvllm.inference.blank import write_gguf, write_outline
from ruvllm.inference.connection import Patience
from ruvllm.inference.opened import ModelFile, opened
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


def test_a_text_that_no_message_holds_is_refused_before_anything_is_encoded(encoder: Lfm2Encoder) -> None:
    with pytest.raises(TooLargeError, match="text: got 9000000 bytes"):
        encoder.encode(["short", "x" * 9_000_000])


# -- its process


def _pid(encoder: Lfm2Encoder) -> int:
    assert encoder._process is not None
    return encoder._process.pid


def test_nothing_of_llama_cpp_is_loaded_here(files: dict[bool, Path]) -> None:
    """What the parent holds is vectors: a parser's fault is the child's."""
    code = (
        "import sys; from pathlib import Path; from ruvllm.embedding.lfm2 import Lfm2Encoder; "
        f"print(Lfm2Encoder(Path({str(files[True])!r}), max_tokens={WINDOW}).encode(['one', 'two']).shape); "
        "print(any(name.startswith('llama_cpp') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"(2, {TINY.width})", "False"]


def test_a_killed_process_is_replaced_and_the_vectors_are_the_same(files: dict[bool, Path]) -> None:
    encoder = Lfm2Encoder(files[True], max_tokens=WINDOW)
    before, pid = encoder.encode(["the Work"]), _pid(encoder)
    os.kill(pid, signal.SIGKILL)
    assert_array_equal(encoder.encode(["the Work"]), before)
    assert _pid(encoder) != pid
    encoder.close()


def test_a_process_stopped_in_the_middle_is_ended_and_the_text_encoded_in_the_next(files: dict[bool, Path]) -> None:
    encoder = Lfm2Encoder(files[True], max_tokens=WINDOW, patience=Patience(beat=0.1, silence=4.0))
    before, pid = encoder.encode(["the Work"]), _pid(encoder)
    os.kill(pid, signal.SIGSTOP)
    assert_array_equal(encoder.encode(["the Work"]), before)
    assert not psutil.pid_exists(pid)
    encoder.close()


def test_a_file_that_keeps_killing_its_process_backs_off_with_a_typed_error(files: dict[bool, Path]) -> None:
    """Each death is one error; after two in a row the next start waits, and an answer forgives them."""
    now = [0.0]
    encoder = Lfm2Encoder(files[True], max_tokens=WINDOW, clock=lambda: now[0])
    start, count = encoder._start, itertools.count(1)

    def dying() -> EncoderProcess:
        process = start()
        if next(count) < 3:
            os.kill(process.pid, signal.SIGSTOP)  # so that it is killed with the text in its hands
            threading.Timer(0.0, os.kill, (process.pid, signal.SIGKILL)).start()
        return process

    encoder._start = dying
    encoder.close()
    with pytest.raises(WorkerDiedError, match=r"SIGKILL|next start in 1 s"):
        encoder.encode(["the Work"])
    with pytest.raises(WorkerDiedError, match="2 times in a row; next start in 1 s"):
        encoder.encode(["the Work"])
    now[0] = 1.5
    assert encoder.encode(["the Work"]).shape == (1, TINY.width)
    encoder.close()


def test_an_encoder_that_nobody_holds_leaves_no_process(files: dict[bool, Path]) -> None:
    encoder = Lfm2Encoder(files[True], max_tokens=WINDOW)
    pid = _pid(encoder)
    del encoder
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_a_file_that_is_swapped_while_it_is_verified_is_not_loaded(tmp_path: Path, files: dict[bool, Path]) -> None:
    """What is loaded is the open file, whatever its name means by then."""
    path = tmp_path / "encoder.gguf"
    shutil.copy(files[True], path)

    @contextmanager
    def swapped() -> Iterator[ModelFile]:
        with opened(path) as file:
            path.unlink()
            path.write_bytes(b"GGUF" + bytes(64))
            yield file

    if sys.platform != "linux":
        pytest.skip("an open file has no name here")
    with pytest.raises(ModelFileError, match="changed between its verification and its loading"):
        Lfm2Encoder(path, max_tokens=WINDOW, open_file=swapped)


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
    with pytest.raises(ModelFileError, match="has random weights"), model_file(at_f16):  # of the right shape, but blank
        pytest.fail("it was opened")
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ModelFileError, match=r"sha256 is .*, expected"):
        open_embedder(at_f16)


def test_another_model_in_its_place_is_refused(at_f16: Settings) -> None:
    write_gguf(_place(at_f16), TINY, encoder=True)
    with pytest.raises(ModelFileError, match="is lfm2 with 4 layers of 256, want lfm2 with 16 layers of 1024"):
        open_embedder(at_f16)
