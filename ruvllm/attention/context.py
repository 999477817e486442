"""Ranked texts into the context that a model reads, within a bin of tokens. Knows nothing of models or memory.

By rank, or (as a setting) by maximal marginal relevance. Near-duplicates of what is shown are dropped, long texts cut
to what bears on the question (as a setting), and what does not fit is skipped while shorter ones behind it still may.
Texts of users are fenced for `ruvllm.inference.prompt`, which owns the layout and puts each on one untrusted line: here
special tokens are broken up, what looks like a source number is no longer one, and what nobody vouches for is marked.

With `order` "best-first" the list for a larger bin begins with the list for a smaller one, so that a kept prompt state
is extended, as the oracle's are. The other orders lose that; what they gain stands in docs/attention.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ruvllm.attention.compress import compressed
from ruvllm.attention.diversity import SAME, Alike, marginal
from ruvllm.errors import InputError
from ruvllm.inference.types import BINS
from ruvllm.memory.records import Vector

ORDERS = ("best-first", "best-last", "both-ends")
UNVERIFIED = "(unverified) "  # before a text that nobody but its writer vouches for
CountTokens = Callable[[Sequence[str]], Sequence[int]]

_SPECIAL = re.compile(r"<\s*\|([^|<>]{0,64})\|\s*>|<(/?(?:s|bos|eos|start_of_turn|end_of_turn|unk|pad)\s*/?)>", re.I)
_NUMBER = re.compile(r"\[(\s*\d[\d\s,;–-]*)\]")
_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]")


@dataclass(frozen=True)
class Candidate:
    """A text that may be shown, best first in its list."""

    id: int
    text: str
    score: float = 0.0
    source: str = ""
    trust: str = "system"  # system | corroborated | untrusted


@dataclass(frozen=True)
class Assembly:
    """How a context is put together."""

    order: str = "best-first"
    same: float = SAME  # Jaccard over which the later text is dropped; 1: none is
    balance: float = 1.0  # of maximal marginal relevance; 1: plain order
    sentences: int = 0  # that a text is cut to; 0: none is cut
    most: int = 64  # sources at most: as many as a search may be set to find

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"context order: got {self.order!r}, want one of {', '.join(ORDERS)}")
        if not (0.0 < self.same <= 1.0 and 0.0 <= self.balance <= 1.0 and self.sentences >= 0 and self.most >= 1):
            raise InputError(f"context: got {self}, want shares from 0 to 1, sentences from 0 and sources from 1 on")


@dataclass(frozen=True)
class Shown:
    """A source as it is shown: `number` counts from 1 in the order of the context."""

    number: int
    id: int
    text: str
    source: str
    trust: str


@dataclass(frozen=True)
class Context:
    """What is shown, and why the rest is not: (id, "duplicate" | "size", over the bin | "room", none was left)."""

    shown: tuple[Shown, ...] = ()
    tokens: int = 0
    left_out: tuple[tuple[int, str], ...] = field(default=())

    @property
    def passages(self) -> list[str]:
        """In the order to show them, for `ruvllm.inference.prompt.build`."""
        return [each.text for each in self.shown]

    @property
    def ids(self) -> list[int]:
        return [each.id for each in self.shown]


def assemble(
    candidates: Sequence[Candidate],
    question: str,
    count_tokens: CountTokens,
    bin_tokens: int,
    how: Assembly | None = None,
    vectors: Vector | None = None,
) -> Context:
    """The context for `question` within `bin_tokens`; `candidates` best first.

    Args:
        count_tokens: tokens of each text as it will be shown, what the layout puts around it included.
        vectors: (n, d) of unit length, in the order of `candidates`; needed where `how.balance` is under 1.

    Raises:
        InputError: a bin under 1 token, or vectors are missing.
    """
    how = how or Assembly()
    if bin_tokens < 1:
        raise InputError(f"context bin: got {bin_tokens} tokens, want at least 1")
    ranked = _diverse(candidates, how, vectors)
    texts = [fenced(compressed(each.text, question, how.sentences), each.trust) for each in ranked]
    sizes = [int(size) for size in count_tokens(texts)] if texts else []
    alike = Alike([each.text for each in ranked], how.same)
    chosen = fitting(sizes, bin_tokens, how.most, alike)
    shown = tuple(
        Shown(number, ranked[i].id, texts[i], ranked[i].source, ranked[i].trust)
        for number, i in enumerate(ordered(chosen, how.order), start=1)
    )
    left_out = tuple(
        (each.id, _why(i, sizes[i], bin_tokens, alike)) for i, each in enumerate(ranked) if i not in set(chosen)
    )
    return Context(shown, sum(sizes[i] for i in chosen), left_out)


def _why(place: int, size: int, bin_tokens: int, alike: Alike) -> str:
    if place in alike.dropped:
        return "duplicate"
    return "size" if size > bin_tokens else "room"


def _diverse(candidates: Sequence[Candidate], how: Assembly, vectors: Vector | None) -> list[Candidate]:
    if how.balance == 1.0 or not candidates:
        return list(candidates)
    if vectors is None or len(vectors) != len(candidates):
        raise InputError("context: maximal marginal relevance needs a vector of each candidate")
    scores = np.nan_to_num([each.score for each in candidates])
    return [candidates[i] for i in marginal(scores.tolist(), vectors, how.balance)]


def fitting(sizes: Sequence[int], bin_tokens: int, most: int, alike: Alike) -> list[int]:
    """Places that fit, best first; one that does not fit is skipped, and one that says what a chosen one says.

    A larger bin's list begins with a smaller's.
    """
    chosen: list[int] = []
    for limit in sorted({*(b for b in BINS if b < bin_tokens), bin_tokens}):
        left = limit - sum(sizes[i] for i in chosen)
        for i, size in enumerate(sizes):
            if i not in chosen and size <= left and len(chosen) < most and alike.is_new(i, chosen):
                chosen.append(i)
                left -= size
    return chosen


def ordered(best_first: Sequence[int], order: str) -> list[int]:
    """In the order to show: the best at the end for "best-last", at both ends for "both-ends" (1 3 5 … 6 4 2).

    Both ends because models read the middle worst (Liu et al. 2024, "Lost in the Middle", figure 1).
    """
    if order == "best-last":
        return list(reversed(best_first))
    if order == "both-ends":
        return [*best_first[::2], *reversed(best_first[1::2])]
    return list(best_first)


def fenced(text: str, trust: str = "system") -> str:
    """On one line, without what could act as a special token or as a source number, marked where it is untrusted."""
    safe = " ".join((text if text.isascii() else _INVISIBLE.sub("", text)).split())
    if "<" in safe:
        safe = _SPECIAL.sub(lambda found: f"‹{(found[1] or found[2] or '').strip()}›", safe)
    if "[" in safe:
        safe = _NUMBER.sub(r"(\1)", safe)
    return safe if trust in ("system", "corroborated") else f"{UNVERIFIED}{safe}"
