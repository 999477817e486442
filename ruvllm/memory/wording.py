"""Do two texts speak of the same thing? Knows words, names and numbers; nothing of vectors or of the database.

Two questions of different meaning may differ in one word and be near in every vector space ("population of Ghana",
"population of Gabon"; "exports of", "imports of"; "2 + 1", "2 - 1"). A merge hides one of two texts, so every doubt
here is answered "not the same": two rows for one fact cost a little room, one row for two facts loses one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:['’]\w+)*|[-+*/%=<>^$€£°#&|~−]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n])[\s\"'“‘(\[*#-]*$")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACE = re.compile(r"\s+")

# Words that say nothing of what is asked. No "who", "when", "how", "not", "to" or "from": those do.
_NEUTRAL = frozenset(("a an the is are of what which do does please tell me give").split())  # noqa: SIM905
# Lower-case words that turn a statement's meaning as a number would.
_TELLING = frozenset(
    (  # noqa: SIM905
        "not no never without nor neither none hundred thousand million billion trillion more less before after"
        " north south east west northern southern eastern western import imports export exports minimum maximum"
        " highest lowest largest smallest male female birth death births deaths"
    ).split()
)


@dataclass(frozen=True)
class Wording:
    """The tokens of a text, lower-cased, without possessives; numbers without thousands separators."""

    words: tuple[str, ...]
    capital: tuple[bool, ...]  # written with a capital, or holding a digit or symbol
    opening: tuple[bool, ...]  # first of a sentence: a capital there may be mere grammar

    @property
    def content(self) -> tuple[str, ...]:
        return tuple(word for word in self.words if word not in _NEUTRAL)

    @property
    def plain(self) -> frozenset[str]:
        """Words that this text writes without a capital."""
        return frozenset(word for word, capital in zip(self.words, self.capital, strict=True) if not capital)

    def names(self, other: Wording) -> tuple[str, ...]:
        """Names, numbers and telling words in order; `other` tells which opening words are no names."""
        ordinary = self.plain | other.plain | _NEUTRAL
        marked = zip(self.words, self.capital, self.opening, strict=True)
        return tuple(
            word
            for word, capital, opening in marked
            if word in _TELLING or (capital and not (opening and word in ordinary))
        )


def wording(text: str) -> Wording:
    found = [(match.group(), match.start()) for match in _TOKEN.finditer(_THOUSANDS.sub("", text))]
    plain_text = _THOUSANDS.sub("", text)
    return Wording(
        tuple(_bare(token) for token, _ in found),
        tuple(not token.islower() and (token[0].isupper() or not token.isalpha()) for token, _ in found),
        tuple(_SENTENCE_START.search(plain_text, max(0, at - 8), at) is not None for _, at in found),
    )


def _bare(token: str) -> str:
    return re.sub(r"['’]s$", "", token.casefold())


def same_names(first: str, second: str) -> bool:
    """Whether both texts hold the same names, numbers and telling words, each as often."""
    a, b = wording(first), wording(second)
    return Counter(a.names(b)) == Counter(b.names(a))


def same_question(first: str, second: str) -> bool:
    """Whether the questions differ in neutral words, case and punctuation only.

    Another order of the words is let pass where there are names and these keep theirs: "Ghana's population" is "the
    population of Ghana", but "did Germany beat Brazil" is not "did Brazil beat Germany".
    """
    a, b = wording(first), wording(second)
    if not a.content or not b.content:
        return normal(first) == normal(second)
    if a.content == b.content:
        return True
    names = a.names(b)
    return bool(names) and Counter(a.content) == Counter(b.content) and names == b.names(a)


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are one but for case, spacing, a leading article, a closing full stop."""
    return _plain_answer(first) == _plain_answer(second)


def normal(text: str) -> str:
    """`text` with each run of white space as one space: equal normal forms are exact duplicates."""
    return _SPACE.sub(" ", text).strip()


def _plain_answer(text: str) -> str:
    bare = normal(_THOUSANDS.sub("", text)).casefold().rstrip(".!")
    return re.sub(r"^(?:the|a|an) ", "", bare)
