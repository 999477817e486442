"""The arithmetic of memory against what llama.cpp says of files of every shape (outlines: no weights on disk)."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ruvllm.inference.blank import write_gguf, write_outline
from ruvllm.inference.engine import Engine
from ruvllm.inference.machine import repacks
from ruvllm.inference.shapes import SHAPES, TINY, Shape
from ruvllm.inference.sizing import compute_bytes, kv_bytes, size, snapshot_bytes, state_bytes, weight_bytes

MIB = 2**20
ROUNDED = 0.03  # llama.cpp prints two decimals, and adds a few kB of small tensors to the buffers
FTYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17}


@pytest.fixture(scope="module", params=[TINY, *SHAPES.values()], ids=lambda shape: shape.name)
def outline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    shape: Shape = request.param
    return shape, write_outline(tmp_path_factory.mktemp("outline") / f"{shape.name}.gguf", shape)


@pytest.fixture(scope="module", params=[TINY, *SHAPES.values()], ids=lambda shape: shape.name)
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    """The first six layers: opening a file fills the page cache with all of it, and buffers do not add up by layer."""
    whole: Shape = request.param
    attention = tuple(layer for layer in whole.attention if layer < 6)
    shape = replace(whole, layers=min(6, whole.layers), attention=attention, vocabulary=1024)
    return shape, write_outline(tmp_path_factory.mktemp("short") / f"{shape.name}.gguf", shape)


@contextmanager
def _llama_says() -> Iterator[list[str]]:
    import llama_cpp.llama_cpp as api

    lines: list[str] = []
    callback = api.llama_log_callback(lambda level, text, _: lines.append(text.decode(errors="replace")))
    api.llama_log_set(callback, ctypes.c_void_p(0))
    yield lines
    api.llama_log_set(api.llama_log_callback(), ctypes.c_void_p(0))


def _buffers(path: Path, n_ctx: int) -> dict[str, float]:
    """MiB by kind, as printed while the file is opened as the worker's engine opens it."""
    import llama_cpp.llama_cpp as api

    with _llama_says() as lines:
        params = api.llama_model_default_params()
        params.use_extra_bufts = False
        model = api.llama_model_load_from_file(str(path).encode(), params)
        context = api.llama_init_from_model(model, _context_params(api, n_ctx))
        api.llama_free(context)
        api.llama_model_free(model)
    found = re.findall(r"CPU(?:_Mapped)?\s+(\w+) buffer size =\s+([\d.]+) MiB", "".join(lines))
    return {kind: float(mib) for kind, mib in found}


def _context_params(api: object, n_ctx: int) -> object:
    params = api.llama_context_default_params()  # type: ignore[attr-defined]
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 512, 512
    params.n_seq_max = params.n_outputs_max = 1
    params.flash_attn_type = 0
    return params


@pytest.mark.parametrize("n_ctx", [300, 2048, 8192])
def test_buffers_are_those_that_llama_cpp_allocates(short: tuple[Shape, Path], n_ctx: int) -> None:
    shape, path = short
    said = _buffers(path, n_ctx)
    assert said["model"] == pytest.approx(weight_bytes(shape, "F16") / MIB, abs=ROUNDED)
    assert said["KV"] == pytest.approx(kv_bytes(shape, n_ctx) / MIB, abs=ROUNDED)
    assert said["RS"] == pytest.approx(state_bytes(shape) / MIB, abs=ROUNDED)
    assert said["compute"] == pytest.approx(compute_bytes(shape, n_ctx) / MIB, abs=ROUNDED)


@pytest.mark.parametrize("quantisation", FTYPES)
def test_weights_are_those_that_llama_cpp_would_write(outline: tuple[Shape, Path], quantisation: str) -> None:
    import llama_cpp.llama_cpp as api

    shape, path = outline
    params = api.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = FTYPES[quantisation], True, 1
    with _llama_says() as lines:
        api.llama_model_quantize(str(path).encode(), str(path.with_suffix(".never")).encode(), ctypes.byref(params))
    said = re.search(r"quant size\s*=\s*([\d.]+) MiB", "".join(lines))
    assert said is not None
    assert float(said[1]) == pytest.approx(weight_bytes(shape, quantisation) / MIB, abs=ROUNDED)


def test_a_snapshot_takes_what_it_says(tiny_lfm2: Path) -> None:
    engine = Engine(tiny_lfm2, 512)
    engine.evaluate(list(range(8, 208)))
    assert len(engine.snapshot().state) == pytest.approx(snapshot_bytes(TINY, 200), abs=4096)
    engine.close()


_RESIDENT = """
import json, sys
from pathlib import Path
from ruvllm.inference.engine import Engine
engine = Engine(Path(sys.argv[1]), 2048)
engine.evaluate([8 + i % 900 for i in range(2040)])
print(json.dumps(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmRSS"].split()[0]))
"""


def test_the_sum_is_what_a_process_grows_to_with_a_full_context(tmp_path: Path) -> None:
    """A wide vocabulary, so that its share counts (its merges are few: 4 % too much); the file itself is small."""
    path = write_gguf(tmp_path / "wide.gguf", TINY, vocabulary=32_768)
    done = subprocess.run([sys.executable, "-c", _RESIDENT, str(path)], capture_output=True, text=True, check=True)
    expected = size(replace(TINY, vocabulary=32_768), "F16", 2048, repacks()).resident
    assert int(json.loads(done.stdout)) * 1024 == pytest.approx(expected, rel=0.08)


def test_the_arithmetic_of_the_350m_written_out() -> None:
    """6 layers x (keys + values) x 8 heads x 64 x 2 bytes = 12 KiB a token; 10 layers x 2 x 1024 x 4 = 80 KiB."""
    shape = SHAPES["lfm2-350m"]
    assert kv_bytes(shape, 2048) == 2048 * 12 * 1024
    assert state_bytes(shape) == 80 * 1024
    assert kv_bytes(shape, 2049) == (2048 + 256) * 12 * 1024
    whole = size(shape, "Q4_K_M", 2048, repacked="4-bit")
    assert whole.resident == whole.weights + whole.private
    assert 0 < whole.repacked < whole.weights
    assert size(shape, "Q8_0", 2048, repacked="4-bit").repacked == 0


def test_the_copy_that_amx_keeps() -> None:
    """Measured on 2026-11-23 as what a process grew by when AMX was turned on; F16 is the size of its buffer."""
    shape = SHAPES["lfm2-350m"]
    for quantisation, grown in (("Q4_0", 205), ("Q4_K_M", 216), ("Q8_0", 397), ("F16", 676)):
        assert size(shape, quantisation, 2048, repacked="all").repacked / 2**20 == pytest.approx(grown, rel=0.03)
