from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from ruvllm.inference.limits import MAX_FILES, Growth, memory_limit, resident
from ruvllm.inference.tiers import Tier
from ruvllm.settings import Settings

MIB = 2**20


def test_growth_is_counted_from_the_first_answer_and_beyond_what_may_be_kept() -> None:
    growth = Growth(limit=1000, factor=1.5, allowance=50)
    growth.note(400)
    assert growth.worn == ""
    growth.note(100, answered=True)
    growth.note(190, answered=True)
    assert growth.worn == ""
    growth.note(201)
    assert growth.worn.startswith("grew from")
    growth.note(1001)
    assert "over its limit" in growth.worn


def test_the_limit_is_the_setting_or_follows_the_tier_and_its_context(
    tiers: dict[str, Tier], settings: Settings
) -> None:
    assert memory_limit(tiers["chat"], replace(settings, model_memory_mb=300)) == 300 * MIB
    usual = memory_limit(tiers["chat"], settings)
    assert usual > 2 * tiers["chat"].memory_mb * MIB
    assert memory_limit(tiers["chat"], replace(settings, snapshots_mb=settings.snapshots_mb + 64)) == usual + 64 * MIB


def test_resident_is_what_the_system_says() -> None:
    assert resident() == pytest.approx(psutil.Process(os.getpid()).memory_info().rss, rel=0.2)


_LIMITED = """
import resource
from ruvllm.inference.limits import apply
apply(700 * 2**20)
print(resource.getrlimit(resource.RLIMIT_CORE)[1], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
print(open("/proc/self/oom_score_adj").read().strip())
import mmap
with open({big!r}, "rb") as file:
    mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    print("mapped")
try:
    bytearray(800 * 2**20)
except MemoryError:
    print("refused")
"""


def test_mapped_weights_do_not_count_and_data_does(tmp_path: object) -> None:
    big = f"{tmp_path}/weights"
    with open(big, "wb") as file:
        file.truncate(2**30)
    done = subprocess.run([sys.executable, "-c", _LIMITED.format(big=big)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(MAX_FILES), "1000", "mapped", "refused"]
