"""Encoder -> projection -> LayerNorm -> unit norm."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ruvllm.embedding import EmbeddingAdapter, Projection, open_embedder
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.embedding.files import PackagedFile, locate, verify
from ruvllm.embedding.windows import windows
from ruvllm.errors import ArtifactError, InferenceError, ModelFileError
from ruvllm.settings import load_settings


class Fixed:
    """Gives the rows that it was made with and counts its calls."""

    id = "fixed"

    def __init__(self, *rows: Sequence[float]) -> None:
        self.rows, self.dimension, self.calls = np.array(rows, dtype=np.float32), len(rows[0]), 0

    def encode(self, texts: Sequence[str], role: str = "document") -> np.ndarray:
        self.calls += 1
        return self.rows[: len(texts)]


def test_layer_norm_then_unit_norm() -> None:
    row = [1.0, 2.0, 3.0, 10.0]
    [vector] = EmbeddingAdapter(Fixed(row)).embed(["a"])
    centred = [x - 4.0 for x in row]  # mean 4
    length = sum(x * x for x in centred) ** 0.5  # the standard deviation cancels in the unit norm
    assert vector.dtype == np.float32
    assert_allclose(vector, [x / length for x in centred], rtol=1e-5)


def test_a_projection_changes_vectors_dimension_and_id() -> None:
    projection = Projection(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float32), "p7")
    adapter = EmbeddingAdapter(Fixed([1, 2, 99, 3]), projection)
    assert (adapter.id, adapter.dimension) == ("fixed+p7", 3)
    assert_allclose(adapter.embed(["a"]), [[-(2**-0.5), 0, 2**-0.5]], atol=1e-5)
    with pytest.raises(ArtifactError, match=r"projection p7: takes 4 dimensions, encoder fixed gives 2"):
        EmbeddingAdapter(Fixed([1, 2]), projection)


@pytest.mark.parametrize(
    ("row", "said"), [([1, float("nan")], "not finite"), ([1, float("inf")], "not finite"), ([3, 3], "no direction")]
)
def test_a_broken_vector_is_an_error_that_names_the_text(row: list[float], said: str) -> None:
    with pytest.raises(InferenceError, match=f"encoder fixed: the vector of 'second' .*{said}"):
        EmbeddingAdapter(Fixed([1, 2], row)).embed(["first", "second"])


def test_a_wrong_number_of_vectors_is_an_error() -> None:
    with pytest.raises(InferenceError, match=r"shape \(1, 2\), want \(2, 2\)"):
        EmbeddingAdapter(Fixed([1, 2])).embed(["a", "b"])


def test_questions_are_remembered_and_cannot_be_altered() -> None:
    encoder = Fixed([1, 2])
    adapter = EmbeddingAdapter(encoder)
    first = adapter.embed_one("a")
    assert adapter.embed_one("a") is first
    assert encoder.calls == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    adapter.embed_one("a", "document")  # an asymmetric encoder tells roles apart
    for i in range(1100):
        adapter.embed_one(str(i))
    calls = encoder.calls
    adapter.embed_one("a")
    assert encoder.calls == calls + 1  # bounded: the oldest was let go


def test_the_hashing_encoder_is_a_bag_of_words() -> None:
    adapter = EmbeddingAdapter(HashingEncoder())
    a, b, c = adapter.embed(["what is the capital of Ghana", "Ghana: the capital!", "rivers flow north"])
    assert a @ b > 0.6 > 0.3 > abs(a @ c)
    assert_allclose(np.linalg.norm([a, b, c], axis=1), 1, rtol=1e-5)
    assert adapter.embed([]).shape == (0, 384)
    assert adapter.embed(["?!"]).shape == (1, 384)


@pytest.mark.parametrize(("n", "longest", "sizes"), [(0, 4, [0]), (4, 4, [4]), (5, 4, [2, 3]), (9, 4, [3, 3, 3])])
def test_windows_are_even_and_lose_nothing(n: int, longest: int, sizes: list[int]) -> None:
    cut = windows(range(n), longest)
    assert [len(part) for part in cut] == sizes
    assert [token for part in cut for token in part] == list(range(n))


def test_a_model_file_must_be_there_and_be_the_pinned_one(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    verify(path, hashlib.sha256(b"weights").hexdigest(), "")
    path.write_bytes(b"altered")
    with pytest.raises(ModelFileError, match=r'model.onnx: sha256 is .*expected .*run "x"'):
        verify(path, "0" * 64, 'run "x"')
    with pytest.raises(ModelFileError, match=r"gone.onnx: cannot be read"):
        verify(tmp_path / "gone.onnx", "0" * 64, "")
    with pytest.raises(ModelFileError, match=r"package no_such is not installed; run .pip install .*no-such==1"):
        locate(PackagedFile("no_such", "a", "0" * 64, "no-such==1"))


def test_the_lfm2_encoder_without_its_file_says_where_to_put_it(tmp_path) -> None:
    settings = load_settings({}, encoder="lfm2", cache_dir=tmp_path, quantisation="Q4_K_M")
    with pytest.raises(ModelFileError, match=r"LFM2.5-Embedding-350M-Q4_K_M.gguf: not there; .*RUVLLM_ENCODER=minilm"):
        open_embedder(settings)
