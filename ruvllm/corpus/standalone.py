"""Questions that stand alone: one fact, two facts of a country compared or added, two countries compared.

Knows nothing of sessions, nights or memory. A pair of countries never leaves its pool (see `pool_of`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from ruvllm.corpus import answers
from ruvllm.corpus.factbook import Country, countries
from ruvllm.corpus.kinds import BY_NAME, KINDS, Kind
from ruvllm.corpus.records import Question, is_traffic, share, split_of


@dataclass(frozen=True)
class TwoFields:
    """A question over two numeric facts of one country; `answer` is None where it would not be fair to ask."""

    name: str
    domain: str
    fields: tuple[str, str]
    answer: Callable[[Decimal, Decimal], tuple[str, ...] | None]
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class TwoCountries:
    """A question over one numeric fact of two countries. `value`: the greater number is wanted, else yes or no."""

    name: str
    of: str  # the kind whose field is compared
    value: bool
    wordings: tuple[str, ...]


def _yes(truth: bool) -> tuple[str, ...]:
    return ("yes",) if truth else ("no",)


def _greater(first: Decimal, second: Decimal) -> tuple[str, ...] | None:
    return None if first == second or min(first, second) <= 0 else _yes(first > second)


def _above_half(share_of: Decimal, _: Decimal) -> tuple[str, ...] | None:
    return _yes(share_of > 50)


def _sum_km(first: Decimal, second: Decimal) -> tuple[str, ...] | None:
    total = f"{first + second:,}"
    return (f"{total} km", total, f"{total} kilometers") if min(first, second) > 0 else None


def _gap_years(men: Decimal, women: Decimal) -> tuple[str, ...] | None:
    return (f"{women - men} years", f"{women - men}") if women > men else None


TWO_FIELDS = (
    TwoFields(
        "coast_or_border",
        "geography",
        ("coastline", "boundary"),
        _greater,
        (
            "Is the coastline of {c} longer than its land boundaries?",
            "Yes or no: does {c} have more coast than land border?",
        ),
    ),
    TwoFields(
        "trade_surplus",
        "economy",
        ("exports", "imports"),
        _greater,
        ("Does {c} export more than it imports?", "Yes or no: are {p} exports greater than its imports?"),
    ),
    TwoFields(
        "more_women",
        "people",
        ("women", "men"),
        _greater,
        ("Does {c} have more women than men?", "Yes or no: is the female population of {c} larger than the male?"),
    ),
    TwoFields(
        "mostly_urban",
        "people",
        ("urban", "urban"),
        _above_half,
        ("Does more than half of {p} population live in cities?", "Yes or no: is most of {p} population urban?"),
    ),
    TwoFields(
        "coast_plus_border",
        "geography",
        ("coastline", "boundary"),
        _sum_km,
        (
            "How long are the coastline and the land boundaries of {c} together?",
            "What do the land boundaries and the coastline of {c} add up to?",
        ),
    ),
    TwoFields(
        "life_gap",
        "people",
        ("life_men", "life_women"),
        _gap_years,
        (
            "By how many years do women outlive men in {c}?",
            "What is the difference between the life expectancy of women and men in {c}?",
        ),
    ),
)

TWO_COUNTRIES = (
    TwoCountries(
        "larger_area",
        "area",
        True,
        ("What is the area of the larger country, {a} or {b}?", "Of {a} and {b}, how large is the larger one?"),
    ),
    TwoCountries(
        "larger_population",
        "population",
        True,
        (
            "What is the population of the more populous country, {a} or {b}?",
            "Of {a} and {b}, how many people live in the one with more inhabitants?",
        ),
    ),
    TwoCountries(
        "longer_coast",
        "coastline",
        True,
        (
            "How long is the longer coastline, that of {a} or that of {b}?",
            "Of {a} and {b}, how long is the coast of the one with more of it?",
        ),
    ),
    TwoCountries(
        "longer_life",
        "life_expectancy",
        True,
        (
            "What is the higher life expectancy, that of {a} or that of {b}?",
            "Of {a} and {b}, what is the life expectancy where people live longer?",
        ),
    ),
    TwoCountries(
        "is_larger", "area", False, ("Is {a} larger in area than {b}?", "Yes or no: does {a} cover more area than {b}?")
    ),
    TwoCountries(
        "is_more_populous",
        "population",
        False,
        ("Does {a} have more inhabitants than {b}?", "Yes or no: is the population of {a} larger than {b}'s?"),
    ),
    TwoCountries(
        "is_richer",
        "gdp_per_capita",
        False,
        (
            "Is the GDP per capita of {a} higher than that of {b}?",
            "Yes or no: does {a} have a greater GDP per capita than {b}?",
        ),
    ),
)


def pool_of(group: str) -> str:
    """test, traffic or oracle: what a group's questions are for."""
    if split_of(group) == "test":
        return "test"
    return "traffic" if is_traffic(group) else "oracle"


def direct_answers(country: Country, kind: Kind) -> tuple[str, ...]:
    """The answer of `kind` for a country, or () where the Factbook has none that is short and exact."""
    return kind.read(country.facts[kind.field]) if kind.field in country.facts else ()


def direct(country: Country, kind: Kind, wording: int) -> Question | None:
    """The question of `kind` about a country in one of its wordings, or None where it cannot be asked."""
    gold = direct_answers(country, kind)
    text = kind.wordings[wording].format(c=country.in_text, p=country.possessive)
    if not gold or given_away(gold, text):
        return None
    return _question(country.code, kind.name, wording, text, gold, kind.domain, (country.told_in[kind.field],))


def rephrased(question: Question, by: int = 1) -> Question | None:
    """The same fact in another wording; None for questions that are not about one fact of one country."""
    kind = BY_NAME.get(question.kind)
    if kind is None or question.session_id is not None:
        return None
    country = next(country for country in countries() if country.code == question.group)
    return direct(country, kind, (int(question.key[-1]) + by) % len(kind.wordings))


def given_away(gold: tuple[str, ...], text: str) -> bool:
    """Whether the question says its own answer."""
    return re.search(rf"(?<!\w){re.escape(gold[0])}(?!\w)", text, re.IGNORECASE) is not None


def questions_alone(seed: int) -> Iterator[Question]:
    """Every fact, comparison and sum once; the seed chooses the wordings and the pairs of countries."""
    asked = [country for country in countries() if country.is_country]
    for country in asked:
        for kind in KINDS:
            question = direct(country, kind, wording_of(f"{country.code}/{kind.name}", kind.wordings, seed))
            if question is not None:
                yield question
    for field_kind in TWO_FIELDS:
        yield from _balanced([q for c in asked if (q := _two_fields(c, field_kind, seed)) is not None])
    for pair_kind in TWO_COUNTRIES:
        yield from _pairs(asked, pair_kind, seed)


def wording_of(fact: str, wordings: tuple[str, ...], seed: int) -> int:
    return int(share(fact, f"wording-{seed}") * len(wordings))


def _two_fields(country: Country, kind: TwoFields, seed: int) -> Question | None:
    values = [answers.number(country.facts.get(field, "")) for field in kind.fields]
    if values[0] is None or values[1] is None:
        return None
    gold = kind.answer(values[0], values[1])
    if gold is None:
        return None
    wording = wording_of(f"{country.code}/{kind.name}", kind.wordings, seed)
    text = kind.wordings[wording].format(c=country.in_text, p=country.possessive)
    needs = tuple(dict.fromkeys(country.told_in[field] for field in kind.fields))
    return _question(country.code, kind.name, wording, text, gold, kind.domain, needs)


def _balanced(questions: list[Question]) -> Iterator[Question]:
    """At most as many of each answer as of the rarest, where the answer is yes or no; of others, half."""
    by_answer: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda q: share(q.fact, "balance")):
        by_answer[question.split, question.gold[0] if question.gold[0] in ("yes", "no") else ""].append(question)
    for (split, answer), found in by_answer.items():
        other = by_answer.get((split, "no" if answer == "yes" else "yes"), [])
        yield from found[: min(len(found), len(other)) if answer else len(found) // 2]


def _pairs(asked: list[Country], kind: TwoCountries, seed: int) -> Iterator[Question]:
    of = BY_NAME[kind.of]
    pools: dict[str, list[Country]] = defaultdict(list)
    for country in sorted(asked, key=lambda c: share(c.code, f"{kind.name}-{seed}")):
        if (answers.number(country.facts.get(of.field, "")) or 0) > 0:
            pools[pool_of(country.code)].append(country)
    for pool in pools.values():
        for first, second in zip(pool[::2], pool[1::2], strict=False):  # an odd one is left out
            yield from _pair(first, second, kind, of, seed)


def _pair(first: Country, second: Country, kind: TwoCountries, of: Kind, seed: int) -> Iterator[Question]:
    values = [answers.number(country.facts[of.field]) for country in (first, second)]
    winner = first if (values[0] or 0) > (values[1] or 0) else second
    gold = direct_answers(winner, of) if kind.value else _yes(winner is first)
    if values[0] == values[1] or not gold:
        return
    loser = second if winner is first else first
    group = f"{first.code}+{second.code}"
    wording = wording_of(f"{group}/{kind.name}", kind.wordings, seed)
    text = kind.wordings[wording].format(a=first.in_text, b=second.in_text)
    needs = (winner.told_in[of.field], loser.told_in[of.field])
    yield _question(group, kind.name, wording, text, gold, of.domain, needs)


def _question(
    group: str, kind: str, wording: int, text: str, gold: tuple[str, ...], domain: str, needs: tuple[str, ...]
) -> Question:
    fact = f"factbook/{group}/{kind}"
    split = split_of(group.split("+")[0])
    return Question(f"{fact}/{wording}", text, gold, kind, domain, split, group, needs[0], fact, also_needs=needs[1:])
