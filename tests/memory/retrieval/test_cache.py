"""The cache of searches: what it hands out, what it forgets, and that a write is never missed."""

from __future__ import annotations

import pytest

from ruvllm.memory.retrieval.cache import CacheState, SearchCache


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_least_recently_used_goes_first(clock: Clock) -> None:
    cache: SearchCache[int] = SearchCache(entries=2, clock=clock)
    for key in "ab":
        cache.put(key, ord(key))
    assert cache.get("a") == 97
    cache.put("c", 99)
    assert [cache.get(key) for key in "abc"] == [97, None, 99]
    assert cache.state == CacheState(entries=2, hits=3, misses=1)


def test_what_is_too_old_is_forgotten(clock: Clock) -> None:
    cache: SearchCache[int] = SearchCache(ttl_s=10, clock=clock)
    cache.put("a", 1)
    clock.now = 10.0
    assert cache.get("a") == 1  # reading does not prolong it
    clock.now = 10.1
    assert cache.get("a") is None
    assert cache.state.entries == 0
    cache.put("a", 2)
    cache.clear()
    assert cache.get("a") is None
