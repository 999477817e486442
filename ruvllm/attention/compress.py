"""Long texts cut to the sentences that bear on a question, extracted and never rewritten. Knows nothing of prompts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ruvllm.memory.retrieval.words import tokens

_SENTENCE = re.compile(r"(?<=[.!?…؟।。！？])[\"'”’)\]]*\s+")
GAP = " … "  # stands where sentences were left out


def compressed(text: str, question: str, keep: int) -> str:
    """At most `keep` sentences of `text`, in its order: the first, which says what it is about, and the best others.

    A sentence is worth the rarity (within the text) of the question's words that it holds and no better sentence does;
    where no sentence holds one, the first `keep` stay. `keep` 0 or a short text: all of it.
    """
    if keep < 1:
        return text
    parts = [part for part in _SENTENCE.split(text.strip()) if part]
    if len(parts) <= keep:
        return text
    return _joined(parts, sorted(_chosen([frozenset(tokens(part)) for part in parts], question, keep)))


def _chosen(held: Sequence[frozenset[str]], question: str, keep: int) -> list[int]:
    counts = Counter(word for each in held for word in each)
    wanted = {word: math.log1p(len(held) / counts[word]) for word in set(tokens(question)) if word in counts}
    chosen, missing = [0], set(wanted) - held[0]
    while len(chosen) < keep:
        left = [place for place in range(len(held)) if place not in chosen]
        best = max(left, key=lambda place: (sum(wanted[word] for word in sorted(missing & held[place])), -place))
        chosen.append(best)
        missing -= held[best]
    return chosen


def _joined(parts: Sequence[str], places: Sequence[int]) -> str:
    text = parts[places[0]]
    for before, place in pairwise(places):
        text += (" " if place == before + 1 else GAP) + parts[place]
    return text + (GAP.rstrip() if places[-1] < len(parts) - 1 else "")
