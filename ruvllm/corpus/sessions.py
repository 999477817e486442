"""Sessions of two to five turns about one country, whose follow-ups only make sense after the turn before.

Knows nothing of how a session is answered: the history holds the gold answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from ruvllm.corpus.factbook import Country, countries
from ruvllm.corpus.kinds import KINDS, Kind
from ruvllm.corpus.records import Question
from ruvllm.corpus.standalone import direct, wording_of

PER_COUNTRY = 2
MAX_TURNS = 5
_ENOUGH = 12  # kinds that a country must be able to answer before it is talked about at length
_PULL = 0.7  # how often a turn picks up the answer before it rather than the country


def sessions_of_all(seed: int) -> Iterator[tuple[Question, ...]]:
    """Every session, in the order of the countries."""
    for country in countries():
        known = [kind for kind in KINDS if kind.follow_ups and direct(country, kind, 0)]
        if not country.is_country or len(known) < _ENOUGH:
            continue
        for number in range(PER_COUNTRY):
            yield _session(country, known, number, seed)


def _session(country: Country, known: list[Kind], number: int, seed: int) -> tuple[Question, ...]:
    dice = random.Random(f"{seed}/{country.code}/{number}")  # choices, not secrets
    session_id = f"session/{country.code}/{seed}.{number}"
    openings = [question for kind in known if (question := _opening(country, kind, seed)) is not None]
    turns: list[Question] = []
    for turn, question in enumerate(_turns(country, known, dice.choice(openings), dice), start=1):
        history = tuple((earlier.text, earlier.gold[0]) for earlier in turns)
        key = f"{session_id}/{turn}"
        turns.append(replace(question, key=key, session_id=session_id, turn=turn, history=history))
    return tuple(turns)


def _turns(country: Country, known: list[Kind], opening: Question, dice: random.Random) -> Iterator[Question]:
    """The opening and one to four follow-ups; one that refers to an answer stands right behind that answer."""
    yield opening
    asked = [opening.kind]
    for _ in range(dice.randint(1, MAX_TURNS - 1)):
        picks_up = [kind for kind in known if kind.after == asked[-1] and kind.name not in asked]
        free = [kind for kind in known if not kind.after and kind.name not in asked]
        kind = dice.choice(picks_up if picks_up and dice.random() < _PULL else free)
        asked.append(kind.name)
        question = direct(country, kind, 0)
        if question is not None:
            yield replace(question, text=dice.choice(kind.follow_ups))


def _opening(country: Country, kind: Kind, seed: int) -> Question | None:
    """The first turn, in another wording than the same question standing alone; it names the country."""
    alone = wording_of(f"{country.code}/{kind.name}", kind.wordings, seed)
    return None if kind.after else direct(country, kind, (alone + 1) % len(kind.wordings))
