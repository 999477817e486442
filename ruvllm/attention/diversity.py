"""Which of ranked texts say the same: near-duplicates by MinHash, and maximal marginal relevance by vectors.

Knows nothing of memory or of prompts. MinHash (Broder 1997) of 128 permutations over runs of three words estimates the
Jaccard similarity within about ±0.07 (two deviations at 0.8), so the estimate only picks pairs that are then compared
exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ruvllm.memory.likeness.minhash import shingles
from ruvllm.memory.records import Vector

PERMUTATIONS = 128
SAME = 0.8  # Jaccard over which the later text is dropped
_MARGIN = 0.2  # below the threshold that an estimate still is looked at: five deviations
_SEED = 42


def signature(words: Iterable[str]) -> NDArray[np.uint32]:
    """(128,) by rensa, or by datasketch where rensa has no wheel; compare those of one process only."""
    words = sorted(words)
    try:
        from rensa import RMinHash
    except ImportError:
        from datasketch import MinHash  # type: ignore[import-untyped]

        slow = MinHash(num_perm=PERMUTATIONS, seed=_SEED)
        slow.update_batch([word.encode() for word in words])
        return np.asarray(slow.hashvalues, dtype=np.uint64).astype(np.uint32)
    fast = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
    fast.update(words)
    return np.array(fast.digest(), dtype=np.uint32)


class Alike:
    """Near-duplicates among texts, signed only when they are looked at: a small bin looks at few."""

    def __init__(self, texts: Sequence[str], threshold: float = SAME) -> None:
        self._texts, self._threshold = texts, threshold
        self._shingles: dict[int, frozenset[str]] = {}
        self._signatures: dict[int, NDArray[np.uint32]] = {}
        self.dropped: set[int] = set()

    def is_new(self, place: int, chosen: Sequence[int]) -> bool:
        """Whether text `place` is at most `threshold` alike to each of `chosen`; one that is not stays dropped."""
        if place in self.dropped:
            return False
        if self._threshold < 1.0 and any(self._same(place, other) for other in chosen):
            self.dropped.add(place)
        return place not in self.dropped

    def _same(self, place: int, other: int) -> bool:
        a, b = self._of(place), self._of(other)
        if min(len(a), len(b)) <= self._threshold * max(len(a), len(b)):  # Jaccard is at most this ratio
            return False
        estimate = float((self._signed(place) == self._signed(other)).mean())
        return estimate >= self._threshold - _MARGIN and len(a & b) > self._threshold * len(a | b)

    def _of(self, place: int) -> frozenset[str]:
        if place not in self._shingles:
            self._shingles[place] = shingles(self._texts[place])
        return self._shingles[place]

    def _signed(self, place: int) -> NDArray[np.uint32]:
        if place not in self._signatures:
            self._signatures[place] = signature(self._of(place))
        return self._signatures[place]


def marginal(scores: Sequence[float], vectors: Vector, balance: float) -> list[int]:
    """Places by maximal marginal relevance (Carbonell & Goldstein 1998): each next one has the largest
    balance · relevance - (1 - balance) · its largest cosine with one chosen before.

    `scores` best is largest; they are scaled to [0, 1]. `vectors` (n, d) of unit length; `balance` 1 is plain order.
    """
    relevance = np.asarray(scores, dtype=np.float64)
    spread = np.ptp(relevance) if len(relevance) else 0.0
    relevance = (relevance - relevance.min()) / spread if spread else np.zeros(len(relevance))
    alike, most = vectors @ vectors.T, np.zeros(len(relevance))
    left, chosen = list(range(len(relevance))), []
    while left:
        best = max(left, key=lambda i: (balance * relevance[i] - (1 - balance) * most[i], -i))
        chosen.append(best)
        left.remove(best)
        most = np.maximum(most, alike[best])
    return chosen
