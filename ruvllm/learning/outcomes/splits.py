"""Who trains and who is tested: official splits, grouped folds, repeated queries. Knows nothing of scores or models.

Queries that say the same thing are never on both sides: they share a group. Two queries do so if their words are the
same, or if the sets of their word triples overlap by `SIMILAR` or more (Broder 1997), found through rare triples.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import LearningError
from ruvllm.learning.outcomes.records import TEST, TRAIN, OutcomeSet, Rows

SIMILAR = 0.8  # share of common word triples from which two queries count as one
FOLDS = 5
_COMMON = 25  # a triple of more queries than this is boilerplate: it finds no candidates, it only counts in the share
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Split:
    """One division of a set into rows to train on and rows to test on."""

    name: str
    train: Rows
    test: Rows


def groups_of(queries: Sequence[str]) -> NDArray[np.int64]:
    """(n,): the same number for queries that say the same; the number is that of the group's first row."""
    leader = list(range(len(queries)))
    triples = [_triples(query) for query in queries]
    for one, other in _candidates(triples):
        if _overlap(triples[one], triples[other]) >= SIMILAR:
            _join(leader, one, other)
    return np.array([_find(leader, row) for row in range(len(queries))], dtype=np.int64)


def without_repeats(outcomes: OutcomeSet, groups: NDArray[np.int64] | None = None) -> OutcomeSet:
    """The set without test queries that also stand in train, exactly or nearly; a note says how many went."""
    groups = groups_of(outcomes.queries) if groups is None else groups
    seen = np.isin(groups, groups[outcomes.split == TRAIN])
    repeated = (outcomes.split == TEST) & seen
    kept = outcomes.rows(np.flatnonzero(~repeated))
    if not repeated.any():
        return kept
    exact = _exact(outcomes, repeated)
    note = f"{int(repeated.sum())} test queries left out, they stand in train too ({exact} word for word)"
    return _noted(kept, note)


def without_queries_of(outcomes: OutcomeSet, others: Sequence[str]) -> OutcomeSet:
    """The set without queries that say what one of `others` says: what transfer to those may train on."""
    groups = groups_of([*others, *outcomes.queries])
    known = np.isin(groups[len(others) :], groups[: len(others)])
    return _noted(outcomes.rows(np.flatnonzero(~known)), f"{int(known.sum())} queries of the target set left out")


def splits_of(outcomes: OutcomeSet, seed: int, folds: int = FOLDS) -> list[Split]:
    """The official split where every row has one, else `folds` grouped folds.

    Raises:
        LearningError: a side would be empty, a query is on both sides, or there are fewer groups than folds.
    """
    groups = groups_of(outcomes.queries)
    return [_official(outcomes, groups)] if outcomes.has_split else _folds(outcomes, groups, seed, folds)


def _official(outcomes: OutcomeSet, groups: NDArray[np.int64]) -> Split:
    train, test = (np.flatnonzero(outcomes.split == side) for side in (TRAIN, TEST))
    if not len(train) or not len(test):
        raise LearningError(f"{outcomes.name}: {len(train)} rows to train on, {len(test)} to test, want some of both")
    shared = np.isin(groups[test], groups[train])
    if shared.any():
        row = int(test[int(np.argmax(shared))])
        raise LearningError(f"{outcomes.name}: query {outcomes.ids[row]} is in both splits; use without_repeats first")
    return Split("official", train, test)


def _folds(outcomes: OutcomeSet, groups: NDArray[np.int64], seed: int, folds: int) -> list[Split]:
    """Whole groups, dealt out domain by domain so that every fold sees each domain's share."""
    leaders, first = np.unique(groups, return_index=True)
    if len(leaders) < folds or folds < 2:
        raise LearningError(f"{outcomes.name}: {len(leaders)} different queries for {folds} folds, want 2 folds or more"
                            " and a query for each")  # fmt: skip
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(leaders))
    order = order[np.argsort(outcomes.domain[first[order]], kind="stable")]
    fold_of = np.empty(len(leaders), dtype=np.int64)
    fold_of[order] = np.arange(len(leaders)) % folds
    row_fold = fold_of[np.searchsorted(leaders, groups)]
    return [
        Split(f"fold {k + 1} of {folds}", np.flatnonzero(row_fold != k), np.flatnonzero(row_fold == k))
        for k in range(folds)
    ]


def _triples(query: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(query.lower())
    if len(words) < 3:
        return frozenset([tuple(words) or (query.strip(),)])  # a query of signs only is itself
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def _candidates(triples: Sequence[frozenset[tuple[str, ...]]]) -> Iterator[tuple[int, int]]:
    """Pairs that share a rare triple, and rows of equal triples however common those are."""
    holders: dict[object, list[int]] = defaultdict(list)
    for row, found in enumerate(triples):
        holders[found].append(row)
        for triple in found:
            holders[triple].append(row)
    pairs: set[tuple[int, int]] = set()
    for what, rows in holders.items():
        if isinstance(what, frozenset):
            pairs.update((rows[0], row) for row in rows[1:])
        elif len(rows) <= _COMMON:
            pairs.update((a, b) for place, a in enumerate(rows) for b in rows[place + 1 :])
    yield from sorted(pairs)


def _overlap(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


def _find(leader: list[int], row: int) -> int:
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row


def _join(leader: list[int], one: int, other: int) -> None:
    low, high = sorted((_find(leader, one), _find(leader, other)))
    leader[high] = low


def _exact(outcomes: OutcomeSet, repeated: NDArray[np.bool_]) -> int:
    train = {query for query, side in zip(outcomes.queries, outcomes.split, strict=True) if side == TRAIN}
    return sum(outcomes.queries[row] in train for row in np.flatnonzero(repeated).tolist())


def _noted(outcomes: OutcomeSet, note: str) -> OutcomeSet:
    return replace(outcomes, notes=(*outcomes.notes, note))
