"""What a GGUF states of itself, and that no bytes at all make the reader do worse than raise its error."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_gguf import beginning, text

from ruvllm.errors import ModelFileError
from ruvllm.inference.gguf_header import read_header

anywhere = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _header(folder: Path, content: bytes) -> tuple[str, int, int]:
    path = folder / "x.gguf"
    path.write_bytes(content)
    header = read_header(path)
    return header.architecture, header.layers, header.width


def test_architecture_layers_and_width_are_read(tmp_path: Path) -> None:
    assert _header(tmp_path, beginning("lfm2", 16, 1024)) == ("lfm2", 16, 1024)
    assert _header(tmp_path, beginning("llama", 30, 576, version=2)) == ("llama", 30, 576)


def test_a_packaged_model_is_read(paths: dict[str, Path]) -> None:
    assert read_header(paths["chat"]).architecture == "llama"
    assert read_header(paths["few-shot"]).architecture == "gemma3"


def _with_key(kind: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a.key") + kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        beginning(version=1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1),  # a key of 16 exabytes
        _with_key(struct.pack("<IIQ", 9, 4, 2**62)),  # a list of as many numbers
        _with_key(struct.pack("<IIQ", 9, 9, 1) * 50_000),  # lists in lists in lists
        _with_key(struct.pack("<I", 77)),
    ],
)
def test_a_lie_about_a_length_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelFileError, match="header cannot be read"):
        _header(tmp_path, content)


@given(content=st.binary(max_size=300), keep=st.integers(0, 200))
@anywhere
def test_any_bytes_give_a_header_or_its_error(tmp_path: Path, content: bytes, keep: int) -> None:
    with suppress(ModelFileError):
        _header(tmp_path, beginning()[:keep] + content)
