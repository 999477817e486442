"""What a corpus hands out: passages for memory and questions with gold answers. Knows nothing of their sources."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

TRAIN_SHARE = 0.7


@dataclass(frozen=True)
class Passage:
    """A self-contained piece of text; `key` is stable across runs, `group` never crosses from train to test."""

    key: str  # factbook/gh/geography-1
    title: str
    text: str
    source: str
    domain: str
    tags: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Question:
    """A question and its accepted answers; `gold[0]` is the answer, the others are aliases of it.

    A list answer is one string with its items between semicolons. `history` holds (question, gold answer) of the
    turns before. Questions with the same `fact` ask for the same thing in other words.
    """

    key: str
    text: str
    gold: tuple[str, ...]
    kind: str
    domain: str
    split: Split
    group: str  # a country's code, two of them joined by '+', or a Python module
    gold_passage: str
    fact: str
    also_needs: tuple[str, ...] = ()  # keys of further passages without which the answer cannot be known
    session_id: str | None = None
    turn: int = 1
    history: tuple[tuple[str, str], ...] = ()

    @property
    def gold_passages(self) -> tuple[str, ...]:
        return (self.gold_passage, *self.also_needs)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.group.split("+"))


def share(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on nothing but the two texts: Python's own hash() changes between processes."""
    digest = hashlib.sha256(f"{salt}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(group: str) -> Split:
    """The split that a country or module belongs to, for ever."""
    return "train" if share(group, "split") < TRAIN_SHARE else "test"


def is_traffic(group: str) -> bool:
    """Whether a train group is asked about by simulated users; the oracle asks about the others.

    An answer that traffic wrote back to memory would make the same question easy for the oracle, which it is not for
    a held-out one.
    """
    return split_of(group) == "train" and share(group, "traffic") < 0.5
