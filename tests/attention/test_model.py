"""The file: written and read back, altered and refused; the stage that uses it; the place where it lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ruvllm.attention.arrays import ArraySource
from ruvllm.attention.model import AttentionModel, from_bytes, read, to_bytes
from ruvllm.attention.runtime import AttentionRuntime
from ruvllm.attention.shape import Shape
from ruvllm.attention.stage import Retriever
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import ArtifactError
from tests.attention.made import SMALL, graph, network

EMBEDDER = EmbeddingAdapter(HashingEncoder())
TEXTS = ("Velm\nVelm is a harbour.", "Ida\nIda built Velm.", "Camber\nCamber has clocks.")


def model(shape: Shape = SMALL, **more: object) -> AttentionModel:
    return AttentionModel(shape, network(shape).arrays(), "test-encoder", "1.0", {"gain": 0.1}, **more)  # type: ignore[arg-type]


def test_written_and_read_back() -> None:
    content = to_bytes(model())
    again = from_bytes(content, hashlib.sha256(content).hexdigest())
    assert (again.shape, again.encoder, again.version, again.metrics) == (SMALL, "test-encoder", "1.0", {"gain": 0.1})
    wanted = AttentionRuntime(SMALL, network().arrays()).attend(graph()).scores
    assert again.runtime().attend(graph()).scores.tolist() == wanted.tolist()
    assert to_bytes(again) == content


def test_another_hash_is_refused_before_anything_is_parsed() -> None:
    with pytest.raises(ArtifactError, match="sha256"):
        from_bytes(b"no safetensors at all", "0" * 64)


@pytest.mark.parametrize("place", [0, 7, 20, 400, -1, -500])
def test_no_changed_byte_goes_unnoticed_with_the_hash(place: int) -> None:
    content = to_bytes(model())
    digest, changed = hashlib.sha256(content).hexdigest(), bytearray(content)
    changed[place] ^= 1
    with pytest.raises(ArtifactError):
        from_bytes(bytes(changed), digest)


@pytest.mark.parametrize("cut", [0, 3, 8, 100, 2000])
def test_a_truncated_file_is_refused(cut: int) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(to_bytes(model())[:cut])


@pytest.mark.parametrize(
    ("name", "wanted"), [("kind", "kind"), ("layout", "layout"), ("format", "format"), ("shape", "cannot be read")]
)
def test_another_kind_of_file_is_refused(name: str, wanted: str) -> None:
    content = to_bytes(model())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"][name] = "other"
    text = json.dumps(header).encode()
    with pytest.raises(ArtifactError, match=wanted):
        from_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def test_arrays_that_cannot_be_are_not_written() -> None:
    arrays = network().arrays()
    for wrong in (
        {**arrays, "head": np.full_like(arrays["head"], np.nan)},
        {**arrays, "head": np.zeros(3, np.float32)},
        {**arrays, "node_scale": np.zeros_like(arrays["node_scale"])},
        {name: array for name, array in arrays.items() if name != "prior"},
    ):
        with pytest.raises(ArtifactError, match="attention model"):
            to_bytes(AttentionModel(SMALL, wrong, "test-encoder"))


def test_golden_scores_catch_weights_that_were_swapped() -> None:
    """The same shapes and finite numbers, only not those that were trained."""
    one, other = to_bytes(model()), to_bytes(replace(model(), arrays=network(seed=5).arrays()))
    size = int.from_bytes(one[:8], "little")
    header = json.loads(one[8 : 8 + size])
    start, end = header["golden"]["data_offsets"]
    swapped = bytearray(other)
    swapped[8 + size + start : 8 + size + end] = one[8 + size + start : 8 + size + end]
    with pytest.raises(ArtifactError, match="golden"):
        from_bytes(bytes(swapped))


def test_a_missing_file_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="train it again"):
        read(tmp_path / "none.safetensors")


@pytest.fixture
def source(tmp_path: Path) -> ArraySource:
    return ArraySource(TEXTS, EMBEDDER.embed(TEXTS), ((1, 0, "Cites", 0.9),), tmp_path / "words")


def test_the_stage_ranks_by_the_model(source: ArraySource) -> None:
    used = model(Shape(384, width=16, heads=2))
    ranked = Retriever(source, "test-encoder", used).rank("Who built Velm?", EMBEDDER.embed_one("Who built Velm?"))
    assert ranked.attended is not None
    wanted = used.runtime().attend(ranked.graph)
    assert ranked.ids.tolist() == ranked.graph.ids[wanted.order].tolist()
    assert ranked.scores.tolist() == sorted(ranked.scores.tolist(), reverse=True)
    assert 0 <= ranked.entropy <= 1
    assert ranked.summary is not None
    assert ranked.summary.shape == (16,)
    assert set(ranked.stage_ms) == {"expand", "attend"}


def test_without_a_model_the_order_is_the_one_before(source: ArraySource) -> None:
    vector = EMBEDDER.embed_one("Who built Velm?")
    ranked = Retriever(source, "test-encoder").rank("Who built Velm?", vector)
    assert ranked.attended is None
    assert (ranked.entropy, ranked.summary) == (1.0, None)
    assert ranked.ids.tolist() == ranked.graph.ids.tolist()


def test_a_model_of_another_encoder_is_not_used(source: ArraySource, caplog: pytest.LogCaptureFixture) -> None:
    other = replace(model(Shape(384, width=16, heads=2)), encoder="other-encoder")
    ranked = Retriever(source, "test-encoder", other).rank("Velm", EMBEDDER.embed_one("Velm"))
    assert ranked.attended is None
    assert "other-encoder" in caplog.text
