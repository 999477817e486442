"""Four servers of their own and a coordinator, as `ruvllm memory shards simulate` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ruvllm.errors import InputError
from ruvllm.memory.shards import simulate


def test_four_servers_answer_as_one(open_dir: Path) -> None:
    report = simulate(open_dir / "simulation", nodes=800, dimension=32, queries=30)
    assert (report.shards, report.nodes, report.pushed) == (4, 800, True)
    assert report.exact_equal == 1.0
    assert report.recall > 0.95
    assert len(report.bytes) == 4
    assert all(report.bytes)


def test_refuses_less_than_it_can_measure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ten nodes a shard"):
        simulate(tmp_path, nodes=20)
