"""Which quantisation a machine should run, and why, in a sentence. Knows nothing of files; tiers.py does.

A token costs the reading of every weight, so fewer bits are faster; below four they answer worse. How far to go up
depends on how many cores share the work. Measured on the 350M's shape on one core, in CPU seconds and beside other work
(2026-11-22, two runs of N = 5; tests/benchmarks/inference/test_quantisation.py), relative to F16:

              Q4_0       Q4_K_M     Q5_K_M     Q8_0
    decode     1.4, 1.8   1.7, 2.1   1.4, 1.8   1.4, 1.5
    prompt     1.0, 1.0   2.1, 2.2   2.0, 2.0   1.0, 1.1

That was without llama.cpp's rearranging of weights. With it and AMX (see engine.py's table) Q4_0 decodes half as fast
again as Q4_K_M and reads a prompt as fast; Q4_K_M stays first for what it answers: what a quantisation costs in quality
needs the real weights, and Q4_0 saves 2 % of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ruvllm.errors import InputError
from ruvllm.inference.machine import Machine
from ruvllm.inference.shapes import Shape
from ruvllm.inference.sizing import QUANTISATIONS, kv_bytes, size, weight_bytes

AUTO = "auto"
SHARE = 0.5  # of free memory for models; the rest is for Postgres, the gateway and the file cache
_GPU_SHARE = 0.9  # vLLM's own default
_GPU_SEQUENCES = 8  # full contexts that must fit beside the weights


@dataclass(frozen=True)
class CpuClass:
    """`order`: what to try, best first."""

    most_cores: int
    order: tuple[str, ...]


CPU_CLASSES = (
    CpuClass(4, ("Q4_K_M", "Q4_0")),
    CpuClass(16, ("Q5_K_M", "Q4_K_M", "Q4_0")),
    CpuClass(1_000_000, ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0")),
)
# Weight-only through vLLM: bits of a matrix's weight with its scales; embedding and norms stay at 16. Halving the bytes
# that a token reads comes first, 4 bits only where 8 do not fit.
GPU_BITS = {"8-bit": 8.0, "4-bit": 4.5}


@dataclass(frozen=True)
class Selection:
    """`order`: all quantisations, the chosen one first; a file that is there at a later one is used all the same."""

    quantisation: str
    reason: str
    order: tuple[str, ...]


def select(shapes: Sequence[Shape], machine: Machine, n_ctx: int) -> Selection:
    """For a CPU: the best of its class with which models of all these shapes fit in half the free memory, else Q4_0."""
    order, room = _order(machine.cores), int(machine.free * SHARE)
    needs = {q: sum(size(s, q, min(n_ctx, s.context), machine.repacks).resident for s in shapes) for q in order}
    chosen = next((q for q in order if needs[q] <= room), order[-1])
    fits = "within" if needs[chosen] <= room else "more than"
    models = f"{len(shapes)} model{'' if len(shapes) == 1 else 's'}"
    reason = (
        f"{chosen}: {machine.device}; {_gib(needs[chosen])} for {models} at {n_ctx} tokens, {fits} the {_gib(room)}"
        " that are half of what is free"
    )
    return Selection(chosen, reason, _ranked(chosen, order))


def _order(cores: int) -> tuple[str, ...]:
    return next(row.order for row in CPU_CLASSES if cores <= row.most_cores)


def _ranked(chosen: str, order: Sequence[str]) -> tuple[str, ...]:
    """The chosen one, then what fits as well, then the rest with the fewest bits first."""
    after = order[order.index(chosen) :]
    return tuple(dict.fromkeys([*after, *QUANTISATIONS]))


def select_gpu(shape: Shape, machine: Machine, n_ctx: int) -> Selection:
    """For vLLM on the first card: `8-bit`, or `4-bit` where 8 bits do not fit beside eight full contexts.

    Raises:
        InputError: the machine has no card.
    """
    if not machine.gpus:
        raise InputError(f"graphics card: got none on {machine.device}, want one that nvidia-smi lists")
    room = int(machine.gpus[0].free * _GPU_SHARE)
    needs = {name: _gpu_bytes(shape, bits, n_ctx) for name, bits in GPU_BITS.items()}
    chosen = next((name for name, need in needs.items() if need <= room), "4-bit")
    fits = "within" if needs[chosen] <= room else "more than"
    reason = (
        f"{chosen} weights: {machine.device}; {_gib(needs[chosen])} for {shape.name} and {_GPU_SEQUENCES} contexts of"
        f" {n_ctx} tokens, {fits} the {_gib(room)} that vLLM may take"
    )
    return Selection(chosen, reason, tuple(dict.fromkeys([chosen, *GPU_BITS])))


def _gpu_bytes(shape: Shape, bits: float, n_ctx: int) -> int:
    kept = shape.vocabulary * shape.width
    weights = weight_bytes(shape, "F16") - int((shape.parameters - kept) * (16 - bits) / 8)
    return weights + _GPU_SEQUENCES * kv_bytes(shape, n_ctx)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
