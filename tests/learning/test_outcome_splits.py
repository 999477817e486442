"""No query is ever on both sides, whoever wrote it twice and however alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.records import OutcomeSet
from ruvllm.learning.outcomes.splits import groups_of, splits_of, without_queries_of, without_repeats

LONG = "How many apples does Anna have after she gave three of her twelve apples to each of her two younger brothers"


def made(queries: list[str], split: list[str] | None = None, domain: list[str] | None = None) -> OutcomeSet:
    n = len(queries)
    return OutcomeSet(
        "made", ("small", "big"), tuple(str(i) for i in range(n)), tuple(queries), np.array(domain or ["d"] * n),
        np.full((n, 2), 0.5), np.ones((n, 2)), np.array(split or [""] * n),
    )  # fmt: skip


def test_the_same_words_are_one_group() -> None:
    alike = [LONG, LONG.upper() + "?", f"{LONG} today", "Something else entirely, about the height of mountains", "1+1"]
    assert groups_of(alike).tolist() == [0, 0, 0, 3, 4]


def test_common_beginnings_are_not_the_same_query() -> None:
    queries = [f"Write a python function to {word} the {word}s of a list" for word in ("count", "sort", "hash")]
    assert len(set(groups_of(queries).tolist())) == 3


def test_signs_only_are_told_apart() -> None:
    assert groups_of(["???", "!!!", "???"]).tolist() == [0, 1, 0]


def test_many_equal_queries_are_found_though_their_words_are_common() -> None:
    assert set(groups_of([LONG] * 40).tolist()) == {0}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=12, max_size=60), st.integers(0, 5))
def test_folds_share_no_query_and_cover_every_row_once(letters: list[str], seed: int) -> None:
    outcomes = made([letter * 3 for letter in letters])
    if len(set(letters)) < 3:
        with pytest.raises(LearningError, match="different queries for 3 folds"):
            splits_of(outcomes, seed, 3)
        return
    splits = splits_of(outcomes, seed, 3)
    assert sorted(np.concatenate([split.test for split in splits]).tolist()) == list(range(len(letters)))
    for split in splits:
        assert {letters[i] for i in split.train}.isdisjoint(letters[i] for i in split.test)
        assert len(split.train) + len(split.test) == len(letters)


def test_every_fold_sees_every_domain_and_seeds_differ() -> None:
    queries = [f"q{i}" for i in range(100)]
    outcomes = made(queries, domain=["rare" if i < 10 else "common" for i in range(100)])
    splits = splits_of(outcomes, 0)
    assert [int((outcomes.domain[split.test] == "rare").sum()) for split in splits] == [2] * 5
    again, other = splits_of(outcomes, 0), splits_of(outcomes, 1)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(splits, again, strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(splits, other, strict=True))


def test_test_queries_that_stand_in_train_are_removed_and_counted() -> None:
    outcomes = made([LONG, "b", LONG + " now", LONG, "c"], ["train", "train", "test", "test", "test"])
    with pytest.raises(LearningError, match="query 2 is in both splits"):
        splits_of(outcomes, 0)
    kept = without_repeats(outcomes)
    assert kept.ids == ("0", "1", "4")
    assert kept.notes == ("2 test queries left out, they stand in train too (1 word for word)",)
    (split,) = splits_of(kept, 0)
    assert (split.train.tolist(), split.test.tolist()) == ([0, 1], [2])


def test_transfer_may_not_see_the_target() -> None:
    kept = without_queries_of(made(["a b c d", LONG, "e f g h"]), [LONG + " please", "x"])
    assert kept.ids == ("0", "2")
    assert kept.notes == ("1 queries of the target set left out",)


def test_one_sided_split_is_refused() -> None:
    with pytest.raises(LearningError, match="0 to test"):
        splits_of(made(["a", "b"], ["train", "train"]), 0)
