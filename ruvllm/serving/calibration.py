"""From which similarity on an answer may be given again, so that few hits are false. Knows nothing of the gateway.

Learn then test (Angelopoulos et al. 2021, arXiv 2110.01052, section 3) with a fixed sequence: thresholds from the
strictest down, each tested by the exact binomial tail, until one fails. The last that passed holds the target with the
stated confidence, though many were looked at. It is a promise for questions like the calibration's, and for no others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import InputError, LearningError
from ruvllm.evaluation.qa import score_answer
from ruvllm.memory.likeness.wording import same_names
from ruvllm.memory.writing.writeback import Answered
from ruvllm.serving.cache import Calibration

STEPS = 40  # thresholds that are tried
_NEAREST = 32  # stored answers that a lookup sees, as in the gateway's search
_RIGHT = 0.75  # score from which a stored answer answers another question


@dataclass(frozen=True)
class Known:
    """A question with its accepted answers; the first is what memory would hold."""

    question: str
    gold: tuple[str, ...]


@dataclass(frozen=True)
class Lookup:
    """What a lookup found nearest: its similarity in [-1, 1], and whether its answer was right."""

    similarity: float
    right: bool


def lookups(embedder: EmbeddingAdapter, stored: Sequence[Known], asked: Sequence[Known]) -> list[Lookup]:
    """What each of `asked` finds among `stored`, by the cache's own rule; nothing for one that finds none.

    Raises:
        InputError: there is nothing stored or asked.
    """
    if not stored or not asked:
        raise InputError(f"calibration: got {len(stored)} stored and {len(asked)} asked questions, want some of each")
    texts = [Answered(each.question, each.gold[0], 1.0, "gold").text for each in stored]
    held = embedder.embed(texts)  # (n, d)
    similarities = embedder.embed([each.question for each in asked], role="query") @ held.T  # (m, n)
    return [found for each, row in zip(asked, similarities, strict=True) if (found := _found(each, row, stored))]


def calibrate(
    found: Sequence[Lookup], questions: int, encoder_id: str, digest: str, target: float, confidence: float
) -> Calibration:
    """The lowest threshold that holds `target`, a share in (0, 1) of the hits, with `confidence`.

    Raises:
        InputError: target or confidence is outside (0, 1).
        LearningError: too few lookups found anything to say so of any threshold.
    """
    for name, value in (("target", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name}: got {value}, want a share between 0 and 1")
    needed = math.ceil(math.log(1 - confidence) / math.log(1 - target))  # hits without a false one that suffice
    if len(found) < needed:
        raise LearningError(
            f"calibration: {len(found)} lookups found an answer, want {needed} or more for a target of {target:g} at"
            f" {confidence:.0%}"
        )
    threshold, hits, false = _lowest(found, needed, target, confidence)
    bound = upper_limit(false, hits, confidence) if hits else 1.0
    return Calibration(encoder_id, digest, target, confidence, threshold, questions, hits, false, bound)


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Bin(n, p): how likely so few false hits were, did the threshold miss the target."""
    log_p, log_q = math.log(p), math.log1p(-p)
    whole = math.lgamma(n + 1)
    terms = (
        math.exp(whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k + 1)
    )
    return min(1.0, math.fsum(terms))


def upper_limit(k: int, n: int, confidence: float) -> float:
    """Clopper and Pearson's (1934) one-sided upper limit of a share, by bisection."""
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(k, n, middle) > 1 - confidence else (low, middle)
    return high


def digest_of(stored: Sequence[Known], asked: Sequence[Known]) -> str:
    """Sha256 of the data, for the record."""
    lines = (f"{kind}\t{each.question}\t{each.gold}" for kind, of in (("s", stored), ("a", asked)) for each in of)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _found(asked: Known, similarities: NDArray[np.float32], stored: Sequence[Known]) -> Lookup | None:
    nearest = np.argsort(-similarities, kind="stable")[:_NEAREST]
    for place in nearest.tolist():
        if same_names(stored[place].question, asked.question):
            right = score_answer(stored[place].gold[0], asked.gold) >= _RIGHT
            return Lookup(float(similarities[place]), right)
    return None


def _lowest(found: Sequence[Lookup], needed: int, target: float, confidence: float) -> tuple[float | None, int, int]:
    """The last threshold that passed, with its hits and false hits; None where the first one failed."""
    best: tuple[float | None, int, int] = (None, 0, 0)
    for tried in _sequence(found, needed):
        if binomial_tail(tried[2], tried[1], target) > 1 - confidence:
            break
        best = tried
    return best


def _sequence(found: Sequence[Lookup], needed: int) -> Iterator[tuple[float, int, int]]:
    """(threshold, hits, false hits), ever more hits. The places are set by similarities alone, never by what is right.

    It begins where one false hit could be borne: a sequence stops at its first failure.
    """
    ordered = sorted(found, key=lambda each: -each.similarity)
    false = np.cumsum([not each.right for each in ordered])
    first = min(2 * needed, len(ordered))
    for count in sorted(set(np.linspace(first, len(ordered), STEPS).round().astype(int).tolist())):
        yield ordered[count - 1].similarity, count, int(false[count - 1])
