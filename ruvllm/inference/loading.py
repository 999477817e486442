"""A GGUF's weights into this process through llama.cpp's C API, for answering and for embedding alike.

Knows nothing of contexts, tokens or hashes. Runs in a child only: a C++ exception ends the process it is in.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ruvllm.errors import ModelFileError
from ruvllm.inference.machine import amx_is_whole

_DEBUG = 1
_GGUF_MAGIC = b"GGUF"


class Loaded(NamedTuple):
    """`model` is llama.cpp's pointer. `log` is kept for as long as the model: ctypes holds no reference to it."""

    model: int
    log: object


def load(api: Any, path: Path, source: Path) -> Loaded:
    """`source` is where `path`, which messages speak of, is read: an open descriptor of it.

    Raises:
        ModelFileError: the file is not a GGUF that this llama.cpp can load.
    """
    _check_magic(path, source)
    log = _log_to_stderr(api)
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.use_extra_bufts = extra_buffers(api)
    model = api.llama_model_load_from_file(str(source).encode(), params)
    if not model:
        raise ModelFileError(
            f"model file {path}: llama.cpp cannot load it, its log says why; put an intact one in its place"
        )
    return Loaded(int(model), log)


def _check_magic(path: Path, source: Path) -> None:
    with source.open("rb") as file:
        magic = file.read(4)
    if magic != _GGUF_MAGIC:
        raise ModelFileError(
            f'model file {path}: begins with {magic!r}, want {_GGUF_MAGIC!r}; run "ruvllm models pull"'
        )


def _log_to_stderr(api: Any) -> object:
    callback = api.llama_log_callback(_log)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _log(level: int, text: bytes, _: object) -> None:
    """llama.cpp's words go to stderr, which is the worker's log file, without its chatter at debug level."""
    if level > _DEBUG:
        sys.stderr.write(text.decode(errors="replace"))


def extra_buffers(api: Any) -> bool:
    """Whether llama.cpp may rearrange weights for the processor.

    GCC 12 drops the tile configuration that ggml's AMX code writes, so a library built by it with AMX dies at the first
    matrix product; infra/setup.sh builds one that does not. AMX is one of the extra buffer types. What rearranging is
    worth stands in docs/latency.md, "Weights as in the file, and rearranged for this processor".
    """
    return b"AMX_INT8 = 1" not in api.llama_print_system_info() or amx_is_whole(Path(api.__file__).parent)
