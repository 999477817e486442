from __future__ import annotations

import ctypes
import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.inference.snapshots import Identity, Snapshot, Snapshots

MB = 2**20


def _snapshot(tokens: str, size: int = 1000) -> Snapshot:
    return Snapshot(tuple(map(ord, tokens)), bytes(size))


def _longest(snapshots: Snapshots, tokens: str) -> str | None:
    found = snapshots.longest(tuple(map(ord, tokens)))
    return None if found is None else "".join(map(chr, found.tokens))


def test_the_longest_beginning_is_found() -> None:
    snapshots = Snapshots(MB)
    for kept in ("sys", "sys one", "sys one two", "sys 1", "other"):
        assert snapshots.keep(_snapshot(kept))
    found = {asked: _longest(snapshots, asked) for asked in ("sys one two three", "sys one tw", "sys", "sy", "")}
    assert found == {
        "sys one two three": "sys one two", "sys one tw": "sys one", "sys": "sys", "sy": None, "": None,
    }  # fmt: skip
    assert (snapshots.hits, snapshots.misses) == (3, 2)
    assert snapshots.reused_tokens == len("sys one two") + len("sys one") + len("sys")


def test_what_was_used_longest_ago_goes_first() -> None:
    snapshots = Snapshots(3 * _snapshot("aa").nbytes)
    for kept in ("aa", "bb", "cc"):
        snapshots.keep(_snapshot(kept))
    assert _longest(snapshots, "aa then") == "aa"
    snapshots.keep(_snapshot("dd"))
    assert [_longest(snapshots, kept) for kept in ("aa", "bb", "cc", "dd")] == ["aa", None, "cc", "dd"]
    assert (snapshots.count, snapshots.evictions) == (3, 1)


def test_a_state_over_the_budget_is_refused_and_costs_no_other_its_place() -> None:
    snapshots = Snapshots(10_000)
    snapshots.keep(_snapshot("small"))
    assert not snapshots.keep(_snapshot("large", 20_000))
    assert not snapshots.fits(20_000)
    assert (snapshots.refused, snapshots.evictions, _longest(snapshots, "small one")) == (1, 0, "small")
    assert not Snapshots(0).keep(_snapshot("x", 0))


def test_a_state_kept_again_counts_once() -> None:
    snapshots = Snapshots(MB)
    for _ in range(3):
        snapshots.keep(_snapshot("same"))
    assert (snapshots.count, snapshots.bytes) == (1, _snapshot("same").nbytes)
    snapshots.clear()
    assert (snapshots.count, snapshots.bytes, _longest(snapshots, "same")) == (0, 0, None)


@pytest.mark.parametrize(
    "another",
    [
        Identity("sha-2", "ctx", "t"),
        Identity("sha-1", "ctx 2", "t"),
        Identity("sha-1", "ctx", "u"),
        Identity("sha-1c", "tx", "t"),  # the same characters, cut elsewhere
        Identity("sha-1", "ctxt", ""),
    ],
)
def test_states_of_another_file_context_or_template_are_not_found(another: Identity) -> None:
    """As when one process opened a second model: the same tokens, another state."""
    one, other = Snapshots(MB, Identity("sha-1", "ctx", "t")), Snapshots(MB, another)
    one.keep(_snapshot("prompt"))
    other._kept.update(one._kept)
    other._lengths.update(one._lengths)
    assert _longest(one, "prompt and more") == "prompt"
    assert _longest(other, "prompt and more") is None


def test_the_bytes_are_those_that_python_allocated() -> None:
    """States as the engine makes them, tokens that are no shared small ints."""
    snapshots = Snapshots(64 * MB)
    gc.collect()
    tracemalloc.start()
    try:
        for i in range(40):
            tokens = tuple(range(1000 + i, 1400 + i))
            snapshots.keep(Snapshot(tokens, (ctypes.c_uint8 * 20_000)()))
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert snapshots.bytes == pytest.approx(allocated, rel=0.03)


@given(
    st.lists(st.tuples(st.text("ab", max_size=6), st.integers(0, 3000), st.booleans()), max_size=30),
    st.integers(0, 12_000),
)
def test_as_a_list_would_do_it(steps: list[tuple[str, int, bool]], budget: int) -> None:
    """The same steps on a list, used last at its end."""
    snapshots, model = Snapshots(budget), list[Snapshot]()
    for tokens, size, keep in steps:
        snapshot = _snapshot(tokens, size)
        if keep:
            kept = bool(tokens) and snapshot.nbytes <= budget
            assert snapshots.keep(snapshot) == kept
            if kept:
                model = [s for s in model if s.tokens != snapshot.tokens]
                while sum(s.nbytes for s in model) + snapshot.nbytes > budget:
                    model.pop(0)
                model.append(snapshot)
        else:
            fitting = [s for s in model if snapshot.tokens[: len(s.tokens)] == s.tokens]
            best = max(fitting, key=lambda s: len(s.tokens), default=None)
            assert snapshots.longest(snapshot.tokens) is best
            if best is not None:
                model.remove(best)
                model.append(best)
        assert snapshots.bytes == sum(s.nbytes for s in model) <= budget
        assert snapshots.count == len(model)
