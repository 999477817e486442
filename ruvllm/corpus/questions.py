"""All questions in a balanced order, and what a simulated day asks and the oracle samples. No memory, no models.

Train countries and modules fall in two pools: simulated users ask about the one (`day`), the oracle samples the other
(`oracle_sample`), because answers to the day's questions are written back to memory and would be found again.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, zip_longest

from ruvllm.corpus import pydocs
from ruvllm.corpus.records import Question, share
from ruvllm.corpus.sessions import sessions_of_all
from ruvllm.corpus.standalone import pool_of, questions_alone, rephrased
from ruvllm.errors import InputError

Unit = tuple[Question, ...]  # a question that stands alone, or a whole session

LOTS = 24  # nights until a pool's lots are used a second time, further down
REPEAT_SHARE = 0.125  # of a day: what was asked on an earlier day, in other words
_REMEMBERED = 3  # nights back


def questions(seed: int = 0) -> list[Question]:
    """Every question once, two of train to one of test, kinds taking turns; a session's turns stand together.

    Raises:
        SettingsError: the Factbook's package is not installed.
    """
    return list(_ordered(seed))


@lru_cache(maxsize=2)
def _ordered(seed: int) -> tuple[Question, ...]:
    units = _units(seed)
    train = _interleaved([unit for unit in units if unit[0].split == "train"], f"train-{seed}")
    test = _interleaved([unit for unit in units if unit[0].split == "test"], f"test-{seed}")
    return tuple(_two_to_one(train, test))


def sessions(seed: int = 0) -> list[tuple[Question, ...]]:
    """Every session as its turns, two to five of them."""
    return list(sessions_of_all(seed))


def day(night: int, n: int) -> list[Question]:
    """The `n` questions that users ask on the day before `night` (1 is the first), of train countries only.

    An eighth of them was asked on one of the three days before in other words. The others are new for `LOTS` nights
    as long as `n` is within a lot (some 200 questions).

    Raises:
        InputError: night or n is below zero.
    """
    _not_negative(night=night, n=n)
    repeats = _repeats(night, n)
    units = [*_fresh(night, n - len(repeats)), *repeats]
    random.Random(f"day-{night}").shuffle(units)  # an order, not a secret
    return list(chain.from_iterable(units))


def oracle_sample(night: int, n: int) -> list[Question]:
    """`n` questions for the oracle, two of train to one of test; nights are disjoint as for `day`.

    Raises:
        InputError: night or n is below zero.
    """
    _not_negative(night=night, n=n)
    test = _take(_lots("test"), night, n // 3)
    train = _take(_lots("oracle"), night, n - sum(map(len, test)))
    return list(_two_to_one(train, test))


def _not_negative(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise InputError(f"{name}: got {value}, want 0 or more")


def _units(seed: int) -> list[Unit]:
    alone = [*questions_alone(seed), *pydocs.questions(seed)]
    return [*((question,) for question in alone), *sessions_of_all(seed)]


def _stratum(unit: Unit) -> str:
    return f"session of {len(unit)}" if len(unit) > 1 else unit[0].kind


def _strata(units: Iterable[Unit], salt: str) -> list[list[Unit]]:
    """Units by kind, shuffled within it and the kinds among themselves."""
    strata: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: share(unit[0].key, salt)):
        strata[_stratum(unit)].append(unit)
    return [strata[name] for name in sorted(strata, key=lambda name: share(name, salt))]


def _interleaved(units: Iterable[Unit], salt: str) -> list[Unit]:
    """Kinds take turns, so that every beginning of the list is balanced until a kind runs out."""
    rounds = zip_longest(*_strata(units, salt))
    return [unit for turn in rounds for unit in turn if unit is not None]


def _two_to_one(train: Sequence[Unit], test: Sequence[Unit]) -> Iterator[Question]:
    """Questions of both, two to one by number of questions; a unit is never torn apart."""
    left, right = list(reversed(train)), list(reversed(test))
    of_train = of_test = 0
    while left or right:
        from_train = bool(left) and (of_train <= 2 * of_test or not right)
        unit = (left if from_train else right).pop()
        of_train, of_test = of_train + len(unit) * from_train, of_test + len(unit) * (not from_train)
        yield from unit


@lru_cache(maxsize=3)
def _lots(pool: str) -> tuple[tuple[Unit, ...], ...]:
    """The pool's units dealt to `LOTS` nights, every kind evenly, each lot in a balanced order."""
    lots: list[list[Unit]] = [[] for _ in range(LOTS)]
    units = [unit for unit in _units(0) if pool_of(unit[0].groups[0]) == pool]
    for stratum in _strata(units, pool):
        first = int(share(_stratum(stratum[0]), pool) * LOTS)
        for number, unit in enumerate(stratum, start=first):
            lots[number % LOTS].append(unit)
    return tuple(tuple(_interleaved(lot, f"{pool}-{number}")) for number, lot in enumerate(lots))


def _take(lots: Sequence[Sequence[Unit]], night: int, n: int) -> list[Unit]:
    """Units of the night's lot with `n` questions together; a session that does not fit is passed over.

    Nights beyond `LOTS` begin further down; what a lot lacks comes from the far ends of the lots before it.
    """
    lap, own = divmod(night, len(lots))
    others = chain.from_iterable(reversed(lots[(own - back) % len(lots)]) for back in range(1, len(lots)))
    seen: set[str] = set()
    taken: list[Unit] = []
    for unit in chain(lots[own][lap * n :], others, lots[own]):
        if len(unit) <= n and unit[0].key not in seen:
            seen.add(unit[0].key)
            taken.append(unit)
            n -= len(unit)
        if not n:
            break
    return taken


def _fresh(night: int, n: int) -> list[Unit]:
    return _take(_lots("traffic"), night, n)


def _repeats(night: int, n: int) -> list[Unit]:
    """Questions of the last days in other words, each on one later day; nobody remembers a day before night 1."""
    again: list[Question] = []
    for earlier in range(max(1, night - _REMEMBERED), night):
        for unit in _fresh(earlier, n - _repeat_count(n)):
            other = rephrased(unit[0]) if _comes_back(unit[0]) == night - earlier else None
            again += [other] if other is not None else []
    again.sort(key=lambda question: share(question.key, f"repeat-{night}"))
    return [(question,) for question in again[: _repeat_count(n)]]


def _comes_back(question: Question) -> int:
    """After how many days a question is asked again, if it is."""
    return 1 + int(share(question.fact, "comes back") * _REMEMBERED)


def _repeat_count(n: int) -> int:
    return round(n * REPEAT_SHARE)
