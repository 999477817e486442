"""The command line and environment of one vLLM server; starts nothing. Every flag stands here with its reason.

`--enforce-eager` makes vLLM 0.32's CPU build use its own rotary embedding kernel, which takes LFM2's queries, shaped
(tokens, heads, head width), for those of a single head: answers are then wrong from the second token on, and say
nothing of it (log-probabilities off by 1 to 3). So that one operation is left to PyTorch on a CPU; then vLLM agrees
with transformers to 1e-5 and with llama.cpp to rounding, cached prefix or not. tests/vllm holds it to that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ruvllm.errors import InputError

QUANTISATIONS = ("auto", "none", "8-bit", "4-bit")
_METHODS = {"8-bit": "fp8", "4-bit": "bitsandbytes"}  # made from 16-bit weights as they are loaded
_LOOPBACK = "127.0.0.1"
_CPU_OPERATIONS = {"custom_ops": ["all", "-rotary_embedding"]}
# What a server needs of our environment; no password of ours is among it.
_PASSED = ("PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_", "NVIDIA_", "OMP_", "VLLM_CPU_")


@dataclass(frozen=True)
class Plan:
    """A server to run. `kv_gib` is for the keys and values of all requests together, on a CPU."""

    name: str  # what it serves the model as: the tier's name
    folder: Path  # a Hugging Face checkpoint
    port: int
    n_ctx: int
    gpu: bool = False
    quantisation: str = "none"  # none | 8-bit | 4-bit
    tensor_parallel: int = 1
    prefix_caching: bool = True
    kv_gib: int = 1
    threads: int = 0  # on a CPU; 0: vLLM's own choice, one for each core, each bound to its core
    dtype: str = "auto"

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.port}"

    def __post_init__(self) -> None:
        if not self.gpu and self.quantisation != "none":
            raise InputError(
                f"quantisation {self.quantisation}: want none on a CPU, where vLLM serves 16-bit weights; "
                "llama.cpp serves quantised ones there"
            )
        if self.tensor_parallel < 1 or self.kv_gib < 1:
            raise InputError(f"got {self.tensor_parallel} parts and {self.kv_gib} GiB, want at least one of each")


def command(plan: Plan, python: Path) -> tuple[str, ...]:
    """The server's command line. The key is not in it: any user of the machine can read those."""
    return (
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(plan.folder), "--served-model-name", plan.name),
        *("--host", _LOOPBACK, "--port", str(plan.port)),  # its own default is every interface
        *("--max-model-len", str(plan.n_ctx), "--dtype", plan.dtype),
        *("--load-format", "safetensors"),  # never a pickle
        *("--generation-config", "vllm"),  # sampling is what a request says, not what the checkpoint's author liked
        *("--tensor-parallel-size", str(plan.tensor_parallel)),
        "--enable-prefix-caching" if plan.prefix_caching else "--no-enable-prefix-caching",
        *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),  # cached tokens and seconds in answers
        "--enable-tokenizer-info-endpoint",  # names the special tokens that users' text must not become
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--no-enable-log-requests"),
        *_device(plan),
    )


def _device(plan: Plan) -> tuple[str, ...]:
    if plan.gpu:
        return ("--quantization", _METHODS[plan.quantisation]) if plan.quantisation != "none" else ()
    # Compiling takes minutes on a CPU and gains little for models of this size.
    return ("--enforce-eager", "--compilation-config", json.dumps(_CPU_OPERATIONS, separators=(",", ":")))


def environment(plan: Plan, key: str, cache: Path, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The whole environment of the server: it reaches no hub and reports to nobody."""
    made = {k: v for k, v in ours.items() if k.startswith(_PASSED)} | {
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(cache),
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }
    if not plan.gpu:
        made |= {"VLLM_CPU_KVCACHE_SPACE": str(plan.kv_gib)}
        if plan.threads:
            made |= {"OMP_NUM_THREADS": str(plan.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return made
