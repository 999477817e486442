"""Which quantisation which machine gets, and that the reason says the figures it was decided by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import InputError
from ruvllm.inference.machine import (
    AMX_MARK,
    Gpu,
    Machine,
    amx_is_whole,
    free_memory,
    parse_gpus,
    repacks,
    this_machine,
)
from ruvllm.inference.quantisation import SHARE, select, select_gpu
from ruvllm.inference.shapes import SHAPES
from ruvllm.inference.sizing import QUANTISATIONS, size, weight_bytes
from ruvllm.settings import PROJECT_ROOT

GIB = 2**30
ALL = list(SHAPES.values())


@pytest.mark.parametrize(
    ("cores", "free", "chosen"),
    [
        (2, 12, "Q4_K_M"),
        (2, 1000, "Q4_K_M"),  # memory alone does not make two cores read more bytes a token
        (8, 12, "Q5_K_M"),
        (8, 8, "Q4_K_M"),
        (64, 64, "Q8_0"),
        (64, 10, "Q5_K_M"),
        (64, 3, "Q4_0"),
    ],
)
def test_more_cores_and_more_memory_take_more_bits(cores: int, free: int, chosen: str) -> None:
    assert select(ALL, Machine(cores, free * GIB), 2048).quantisation == chosen


def test_the_reason_says_when_not_even_the_last_resort_fits() -> None:
    selection = select(ALL, Machine(1, GIB), 2048)
    assert selection.quantisation == "Q4_0"
    assert selection.reason.startswith("Q4_0: 1 CPU core; 3.7 GiB for 4 models at 2048 tokens, more than the 0.5 GiB")


def test_a_longer_context_and_rearranged_weights_cost_bits() -> None:
    machine = Machine(64, 16 * GIB)
    assert select(ALL, machine, 2048).quantisation == "Q8_0"
    assert select(ALL, machine, 16_384).quantisation == "Q4_0"
    half = Machine(2, 8 * GIB)
    assert select(ALL, half, 2048).quantisation == "Q4_K_M"
    assert select(ALL, Machine(2, 8 * GIB, repacks="4-bit"), 2048).quantisation == "Q4_0"


@given(cores=st.integers(1, 256), free=st.integers(0, 512), n_ctx=st.integers(512, 32_768))
def test_what_is_chosen_fits_or_is_the_last_resort(cores: int, free: int, n_ctx: int) -> None:
    machine = Machine(cores, free * GIB)
    selection = select(ALL, machine, n_ctx)
    needed = sum(size(shape, selection.quantisation, n_ctx).resident for shape in ALL)
    assert needed <= machine.free * SHARE or selection.quantisation == "Q4_0"
    assert sorted(selection.order) == sorted(QUANTISATIONS)
    assert selection.order[0] == selection.quantisation


def test_a_card_gets_eight_bits_and_four_where_eight_do_not_fit() -> None:
    big = SHAPES["lfm2-2.6b"]
    roomy, tight = (Machine(16, 64 * GIB, (Gpu("Card", free),)) for free in (24 * GIB, 3 * GIB))
    assert select_gpu(big, roomy, 4096).quantisation == "8-bit"
    assert select_gpu(big, tight, 4096).quantisation == "4-bit"
    assert select_gpu(big, roomy, 4096).reason.startswith(
        "8-bit weights: 1 × Card; 3.0 GiB for lfm2-2.6b and 8 contexts"
    )


def test_without_a_card_that_is_said() -> None:
    with pytest.raises(InputError, match="got none on 2 CPU cores"):
        select_gpu(ALL[0], Machine(2, GIB), 2048)


def test_fewer_bits_are_fewer_bytes_for_every_shape() -> None:
    for shape in ALL:
        weights = [weight_bytes(shape, quantisation) for quantisation in QUANTISATIONS]
        assert weights == sorted(weights)


def _cgroup(folder: Path, limit: str, used: int, inactive: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")
    return folder


def test_a_containers_limit_counts_and_its_file_cache_does_not(tmp_path: Path) -> None:
    assert free_memory(_cgroup(tmp_path, str(1000 * 2**20), 700 * 2**20, 200 * 2**20)) == 500 * 2**20
    assert free_memory(_cgroup(tmp_path, str(100 * 2**20), 700 * 2**20, 0)) == 0


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    assert free_memory(_cgroup(tmp_path, "max", 1, 0)) > 100 * 2**20
    assert free_memory(tmp_path / "nowhere") > 100 * 2**20


def test_cards_are_read_from_the_drivers_list() -> None:
    said = "NVIDIA H200, 143000\nTesla T4, 15000\nBroken, [N/A]\n\n"
    assert parse_gpus(said) == (Gpu("NVIDIA H200", 143_000 * 2**20), Gpu("Tesla T4", 15_000 * 2**20))


@pytest.mark.parametrize(
    ("flags", "mark", "rearranged"),
    [
        ("fpu avx2 fma", b"", "4-bit"),
        ("fpu avx2 amx_int8", b"", "none"),  # a library that GCC 12 broke: the engine leaves its buffers off
        ("fpu avx2 amx_int8", AMX_MARK, "all"),
        ("fpu sse4_2", AMX_MARK, "none"),
    ],
)
def test_what_is_rearranged_follows_the_processor_and_the_library(
    tmp_path: Path, flags: str, mark: bytes, rearranged: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libggml-cpu.so").write_bytes(b"\x7fELF..." + mark + b"...")
    assert repacks(tmp_path / "cpuinfo", tmp_path) == rearranged
    assert repacks(tmp_path / "missing", tmp_path) == "none"


def test_a_library_that_is_not_there_has_no_amx(tmp_path: Path) -> None:
    assert not amx_is_whole(tmp_path)


def test_the_header_that_setup_builds_with_carries_the_mark() -> None:
    """Else a mended library would be taken for a broken one."""
    assert AMX_MARK.decode() in (PROJECT_ROOT / "infra" / "llama" / "ruvllm_amx.h").read_text(encoding="utf-8")
    assert "-include ruvllm_amx.h" in (PROJECT_ROOT / "infra" / "setup.sh").read_text(encoding="utf-8")


def test_this_machine_can_be_described() -> None:
    machine = this_machine(with_gpus=True)
    assert machine.cores >= 1
    assert machine.free > 0
    assert machine.device
