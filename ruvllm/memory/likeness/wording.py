"""Do two texts speak of the same thing? Knows words, names and numbers; nothing of vectors or of the database.

Two questions of different meaning may differ in one word and be near in every vector space ("population of Ghana",
"population of Gabon"; "exports of", "imports of"; "2 + 1", "2 - 1"). A merge hides one of two texts, so every doubt
here is answered "not the same": two rows for one fact cost a little room, one row for two facts loses one.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ruvllm.memory.likeness.phrases import (
    CONCEPTS,
    DEEDS,
    FILLER,
    FIRST_WORDS,
    IMPLIED,
    LONGEST,
    NEUTRAL,
    OPENING,
    TELLING,
    TELLING_CONCEPTS,
)

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’]\w+)*|[-+*/%=<>^$€£°#&|~−]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])[\s\"'“‘(\[*#-]*$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\s+")
_SHORTENED = (
    (re.compile(r"\b(?:can['’]t|cannot)\b", re.I), "can not"),
    (re.compile(r"\bwon['’]t\b", re.I), "will not"),
    (re.compile(r"n['’]t\b", re.I), " not"),
)
_COPULAS = frozenset({"is", "are", "was", "were"})
_JOINTS = frozenset("in on at by for from to with and or many much how people was were has that you".split())  # noqa: SIM905
_ASKING = frozenset({"#who", "#when", "#where", "#why", "#count", "#distance", "#age"})
# Answers that many questions share, so that they are no evidence that two questions are one.
_COMMON_ANSWERS = frozenset(
    "yes no true false none nothing unknown never always both neither maybe it depends n/a".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Marks:
    """What sets a text apart from one about another thing: each in the order in which it stands."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]  # and symbols
    telling: tuple[str, ...]
    mixed: tuple[str, ...]  # names and numbers together


@dataclass(frozen=True)
class Wording:
    """The tokens of a text, lower-cased, without possessives; numbers without thousands separators."""

    words: tuple[str, ...]
    capital: tuple[bool, ...]  # written with a capital, or holding a digit or symbol
    opening: tuple[bool, ...]  # of these, first of a sentence: a capital there may be mere grammar

    @functools.cached_property
    def content(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word not in NEUTRAL)

    @functools.cached_property
    def concepts(self) -> tuple[str, ...]:
        """The content, turns of phrase that mean one thing as one concept (#), each concept once."""
        return _concepts(self.words)

    @functools.cached_property
    def bag(self) -> Counter[str]:
        """The concepts, each as often as it stands."""
        return Counter(self.concepts)

    @functools.cached_property
    def plain(self) -> frozenset[str]:
        """Words that this text writes without a capital."""
        return frozenset(word for word, capital in zip(self.words, self.capital, strict=True) if not capital)

    def marks(self, other: Wording) -> Marks:
        """`other` tells which opening words are no names."""
        ordinary = self.plain | other.plain | OPENING
        names, numbers, mixed = [], [], []
        for word, capital, opening in zip(self.words, self.capital, self.opening, strict=True):
            if word in TELLING:
                continue
            if capital and not word.isalpha() and not word[0].isalpha():
                numbers.append(word)
                mixed.append(word)
            elif capital and not (opening and (word in ordinary or (word,) in CONCEPTS)):
                names.append(word)
                mixed.append(word)
        telling = tuple(concept for concept in self.concepts if concept in TELLING_CONCEPTS)
        return Marks(tuple(names), tuple(numbers), telling, tuple(mixed))

    def halves(self) -> tuple[Wording, Wording] | None:
        """Before and behind the one "is" or "was" of a statement; None where there is none or more than one."""
        places = [i for i, word in enumerate(self.words) if word in _COPULAS]
        if len(places) != 1 or not 0 < places[0] < len(self.words) - 1:
            return None
        return self._part(0, places[0]), self._part(places[0] + 1, len(self.words))

    def _part(self, start: int, end: int) -> Wording:
        return Wording(self.words[start:end], self.capital[start:end], self.opening[start:end])


@functools.lru_cache(maxsize=4096)  # one new text is held against many
def wording(text: str) -> Wording:
    plain_text = _THOUSANDS.sub("", text)
    if any(short in text.casefold() for short in ("n't", "n’t", "cannot")):
        for pattern, whole in _SHORTENED:
            plain_text = pattern.sub(whole, plain_text)
    found = [(match.group(), match.start()) for match in _TOKEN.finditer(plain_text)]
    capital = tuple(not token.islower() and (token[0].isupper() or not token.isalpha()) for token, _ in found)
    return Wording(
        tuple(_bare(token) for token, _ in found),
        capital,
        tuple(
            large and _SENTENCE_START.search(plain_text, max(0, at - 8), at) is not None
            for large, (_, at) in zip(capital, found, strict=True)
        ),
    )


def _bare(token: str) -> str:
    lower = token.casefold()
    return lower[:-2] if lower.endswith(("'s", "’s")) else lower


def _concepts(words: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(words):
        length, said = _phrase(words, at)
        if said[:1] == ("#people",) and at and _counts(words[at - 1]):
            said = ("#count", *said)  # "33 million people" is how many there are
        found += said
        at += length
    implied = {word for concept in found for word in IMPLIED.get(concept, ())}
    once = dict.fromkeys((word, 0 if word[0] == "#" and len(word) > 1 else i) for i, word in enumerate(found))
    return tuple(word for word, _ in once if word not in FILLER and word not in implied)


def _counts(word: str) -> bool:
    return word[0].isdigit() or word in ("hundred", "thousand", "million", "billion")


def _phrase(words: Sequence[str], at: int) -> tuple[int, tuple[str, ...]]:
    """How many words the longest known phrase at `at` takes, and what it says."""
    if words[at] not in FIRST_WORDS:
        return 1, (words[at],)
    for length in range(min(LONGEST, len(words) - at), 0, -1):
        if (said := CONCEPTS.get(tuple(words[at : at + length]))) is not None:
            return length, said
    return 1, (words[at],)


def same_names(first: str, second: str) -> bool:
    """Whether both texts hold the same names, numbers and telling words, each as often."""
    a, b = wording(first), wording(second)
    mine, other = a.marks(b), b.marks(a)
    return Counter(mine.mixed) == Counter(other.mixed) and Counter(mine.telling) == Counter(other.telling)


def same_question(first: str, second: str) -> bool:
    """Whether the texts differ in neutral words, case, punctuation and turns of phrase only.

    Another order of the words is let pass where there are names and these keep theirs: "Ghana's population" is "the
    population of Ghana", but "did Germany beat Brazil" is not "did Brazil beat Germany". So is "A is B" for "B is A".
    """
    a, b = wording(first), wording(second)
    if not a.content or not b.content:
        return normal(first) == normal(second)
    if a.content == b.content or a.concepts == b.concepts != ():
        return True
    if a.bag != b.bag:
        return False
    mine, other = a.marks(b), b.marks(a)
    return bool(mine.mixed) and (_in_order(mine, other) or _turned(a, b))


def _in_order(mine: Marks, other: Marks) -> bool:
    """Names keep their order among names, numbers among numbers; between them only where one of both is single."""
    if (mine.names, mine.numbers, mine.telling) != (other.names, other.numbers, other.telling):
        return False
    return mine.mixed == other.mixed or len(mine.names) <= 1 or len(mine.numbers) <= 1


def _turned(a: Wording, b: Wording) -> bool:
    """Whether one statement is the other with what stands before and behind its "is" exchanged."""
    mine, other = a.halves(), b.halves()
    if mine is None or other is None or Counter(a.words)["was"] != Counter(b.words)["was"]:
        return False
    return all(
        bool(half.concepts)
        and Counter(half.concepts) == Counter(its.concepts)
        and _in_order(half.marks(b), its.marks(a))
        for half, its in zip(mine, reversed(other), strict=True)
    )


def reworded(first: str, second: str) -> bool:
    """Whether the texts may be two wordings of one thing; nearness has to bear it out.

    The same names, numbers and telling words, and more than a word between them: one word put for another, or one
    added, is how two facts differ ("founded", "owns"); a fact said twice is said otherwise as a whole. Text without any
    name or number is never taken for a rewording, for what it is about cannot be seen in it.
    """
    a, b = wording(first), wording(second)
    mine, other = a.marks(b), b.marks(a)
    if not mine.mixed or not _in_order(mine, other):
        return False
    if any(_differ(kind & set(a.concepts), kind & set(b.concepts)) for kind in (_ASKING, DEEDS)):
        return False
    if {*(a.bag - b.bag), *(b.bag - a.bag)} <= {"in"}:
        return True  # the longest river of Ghana is that in Ghana
    only_mine, only_other = _beyond(a, b), _beyond(b, a)
    return min(only_mine, only_other) > 0 and only_mine + only_other > 2


def _differ(mine: frozenset[str], other: frozenset[str]) -> bool:
    return bool(mine) and bool(other) and mine != other


def _beyond(a: Wording, b: Wording) -> int:
    """Words of `a`, joints left out, that `b` has not."""
    return sum(number for word, number in (a.bag - b.bag).items() if word not in _JOINTS)


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are one but for case, spacing, a leading article, a closing full stop."""
    return _plain_answer(first) == _plain_answer(second)


def telling_answer(answer: str) -> bool:
    """Whether that two questions share this answer says something of them: "yes" and "3" do not."""
    words = _TOKEN.findall(_plain_answer(answer))
    return len("".join(words)) > 2 and not set(words) <= _COMMON_ANSWERS


def normal(text: str) -> str:
    """`text` with each run of white space as one space: equal normal forms are exact duplicates."""
    return _SPACE.sub(" ", text).strip()


def _plain_answer(text: str) -> str:
    bare = normal(_THOUSANDS.sub("", text)).casefold().rstrip(".!")
    return re.sub(r"^(?:the|a|an) ", "", bare)
