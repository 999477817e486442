"""Where a key lies: the same everywhere and for ever, evenly, and moved as little as can be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import SettingsError
from ruvllm.memory.shards import Shard, ShardSet, route, route_node
from ruvllm.memory.shards.records import ID_BITS, load

DSN = "postgresql:///x"


def shard_set(names: str) -> ShardSet:
    return ShardSet(DSN, tuple(Shard(name, DSN) for name in names))


def test_a_key_lies_where_it_lay() -> None:
    """Written down: a change of the hash would lose every node of every set."""
    assert [route(shard_set("abcd"), key).name for key in ("default", "acme", "日本", "")] == ["d", "b", "a", "a"]
    assert route_node(shard_set("abcd"), "Fact", "the sky is blue").name == "a"


@given(st.text(), st.permutations("abcd"))
def test_the_order_of_the_set_is_no_matter(key: str, order: list[str]) -> None:
    assert route(shard_set("".join(order)), key).name == route(shard_set("abcd"), key).name


@given(st.text())
def test_a_new_shard_takes_keys_and_moves_no_other(key: str) -> None:
    before, after = route(shard_set("abcd"), key).name, route(shard_set("abcde"), key).name
    assert after in (before, "e")


def test_keys_are_spread_evenly() -> None:
    counts = Counter(route(shard_set("abcd"), str(i)).name for i in range(1000))
    assert all(180 < counts[name] < 320 for name in "abcd")  # 5 standard deviations


def test_a_set_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    for names in ("", "aa"):
        with pytest.raises(SettingsError, match="different names"):
            shard_set(names)
    for name in ("A", "a-b", "", "a" * 21, 'a"; --'):
        with pytest.raises(SettingsError, match="a-z"):
            Shard(name, DSN)
    with pytest.raises(SettingsError, match="not in this set"):
        shard_set("ab")["c"]
    with pytest.raises(SettingsError, match="number 2"):
        shard_set("ab").of_id((2 << ID_BITS) + 1)
    with pytest.raises(SettingsError, match=r"shards\.toml"):
        load(tmp_path / "shards.toml")


def test_reads_a_file(tmp_path: Path) -> None:
    file = tmp_path / "shards.toml"
    file.write_text(f'coordinator = "{DSN}"\n[shards]\nb = "{DSN}b"\na = "{DSN}a"\n')
    assert [shard.name for shard in load(file).shards] == ["b", "a"]
