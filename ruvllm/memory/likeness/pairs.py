"""Made pairs of facts, some one fact in two wordings, some two facts nearly alike. Knows nothing of encoders.

What thresholds are calibrated on: no data of anyone's is needed, and every pair's truth is known because it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Pair:
    """Two (question, answer); `how` says what was done to the first to get the second."""

    first: tuple[str, str]
    second: tuple[str, str]
    same: bool
    how: str  # wording | entity | number | negation | relation


_PLACES = ("Ghana", "Gabon", "Peru", "Norway", "Vietnam", "Kenya", "Chile", "Latvia")
_YEARS = (1998, 2007, 2015, 2022)

# Three wordings of each question, the same words in none of them but the place and the year.
_WORDINGS = (
    ("What is the population of {place}?", "How many people live in {place}?",
     "How many inhabitants does {place} have?"),
    ("What is the currency of {place}?", "Which money is used in {place}?", "What do people in {place} pay with?"),
    ("When did {place} become independent?", "In what year did {place} gain independence?",
     "What is the year of {place}'s independence?"),
    ("Who is the president of {place}?", "Who is {place}'s head of state?", "Who holds the presidency of {place}?"),
    ("What is the highest mountain of {place}?", "Which mountain is the highest in {place}?",
     "What is the name of {place}'s highest peak?"),
    ("What was the inflation rate of {place} in {year}?", "How high was inflation in {place} in {year}?",
     "By how much did prices go up in {place} during {year}?"),
    ("Which languages are spoken in {place}?", "What languages do people speak in {place}?",
     "What are the languages of {place}?"),
)  # fmt: skip

# Of one template, what is put for what: two facts.
_CHANGES = (
    ("relation", "What does {place} export most?", "What does {place} import most?"),
    ("relation", "Who founded the national bank of {place}?", "Who runs the national bank of {place}?"),
    ("relation", "What is the largest city of {place}?", "What is the oldest city of {place}?"),
    ("relation", "Who is the president of {place}?", "Who commands the army of {place}?"),
    ("relation", "What is the capital of {place}?", "Which city of {place} has the busiest harbour?"),
    ("relation", "When did {place} become independent?", "When was {place}'s constitution adopted?"),
    ("relation", "How many people live in {place}?", "How many voters are registered in {place}?"),
    ("relation", "How much gold does {place} export?", "How much of its cocoa does {place} sell abroad?"),
    ("relation", "Who wrote the anthem of {place}?", "Who composed the music of {place}'s anthem?"),
    ("relation", "Who founded the national bank of {place}?", "Who is head of {place}'s central bank?"),
    ("relation", "What is the highest mountain of {place}?", "Which mountain of {place} is most often climbed?"),
    ("relation", "Which languages are spoken in {place}?", "Which languages do schools in {place} teach?"),
    ("negation", "Which goods are taxed in {place}?", "Which goods are not taxed in {place}?"),
    ("negation", "Which parties sat in {place}'s parliament?", "Which parties never sat in {place}'s parliament?"),
    ("negation", "Which animals may be hunted in {place}?", "Which animals can't be hunted in {place}?"),
)  # fmt: skip
_NUMBERED = (
    "What was the inflation rate of {place} in {year}?",
    "How many tourists visited {place} in {year}?",
    "Who won the election of {year} in {place}?",
)

# A passage, and what is put for what in it: other words for the same, or another fact.
_PASSAGE = (
    "Travellers who arrive in {place} by ship land at a harbour that most guide books leave out, though it repays a"
    " visit on foot. It was built in {year} and handles most of the cargo of the country. The old town lies 30"
    " kilometres east of it and was widened twice since then; its market is open every morning and sells fish, cloth"
    " and spices."
)
_SAME_PASSAGE = (
    ("was built", "was constructed"), ("handles", "deals with"), ("on foot", "on your own feet"), ("sells", "offers"),
    ("though", "although"), ("leave out", "omit"), ("every morning", "each morning"), ("then;", "then, and"),
)  # fmt: skip
_OTHER_PASSAGE = (("30", "40"), ("east", "west"), ("was widened", "was never widened"), ("built in", "built before"))


def passages() -> list[tuple[str, str, bool]]:
    """(first, second, whether both say the same) of passages of 60 words: what MinHash is for."""
    made = []
    for place, year in zip(_PLACES, _YEARS * 2, strict=True):
        text = _PASSAGE.format(place=place, year=year)
        for count in range(1, len(_SAME_PASSAGE) + 1):
            made.append((text, _changed_text(text, _SAME_PASSAGE[:count]), True))
        made += [(text, _changed_text(text, [change]), False) for change in _OTHER_PASSAGE]
        made += [(text, text.replace(str(year), str(year + 1)), False), (text, text.replace(place, "Borneo"), False)]
    return made


def _changed_text(text: str, changes: Sequence[tuple[str, str]]) -> str:
    for old, new in changes:
        text = text.replace(old, new)
    return text


def pairs() -> list[Pair]:
    """All of them; equal answers throughout, so that only the questions can tell the conflicting ones apart."""
    return [*_equivalent(), *_changed(), *_of_entities(), *_of_numbers()]


def _equivalent() -> Iterator[Pair]:
    for wordings in _WORDINGS:
        for place, year in zip(_PLACES, _YEARS * 2, strict=True):
            for one, other in combinations(wordings, 2):
                yield _pair(one, other, place, year, place, year, same=True, how="wording")


def _changed() -> Iterator[Pair]:
    for how, one, other in _CHANGES:
        for place in _PLACES:
            yield _pair(one, other, place, 0, place, 0, same=False, how=how)


def _of_entities() -> Iterator[Pair]:
    """Another place, in the same wording and in another."""
    for wordings in _WORDINGS:
        for place, next_one in zip(_PLACES, _PLACES[1:] + _PLACES[:1], strict=True):
            for other in wordings[:2]:
                yield _pair(wordings[0], other, place, 2015, next_one, 2015, same=False, how="entity")


def _of_numbers() -> Iterator[Pair]:
    for question in _NUMBERED:
        for place, year in zip(_PLACES, _YEARS * 2, strict=True):
            yield _pair(question, question, place, year, place, year + 1, same=False, how="number")


def _pair(one: str, other: str, place: str, year: int, other_place: str, other_year: int, same: bool, how: str) -> Pair:
    answer = f"the answer about {place}"
    first, second = one.format(place=place, year=year), other.format(place=other_place, year=other_year)
    return Pair((first, answer), (second, answer), same, how)
