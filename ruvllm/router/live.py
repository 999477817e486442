"""What a running service knows beyond the question: its users, its record by domain, its memory's size, its machine.

Knows nothing of features. Asked for at every request and never waited for: whoever settles the outbox has it read
Postgres, at most every half minute. What could not be read for ten minutes is unknown again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ruvllm.errors import DatabaseError
from ruvllm.router.layout import DOMAINS
from ruvllm.router.wording import known_domain

if TYPE_CHECKING:
    from ruvllm.database.pool import Database

log = logging.getLogger(__name__)

REFRESH_S = 30.0
STALE_S = 600.0
LEAST_OUTCOMES = 5  # of a domain, below which its mean says nothing yet
UNKNOWN = math.nan


@dataclass(frozen=True)
class Record:
    """What Postgres says; `requests` are of the last day by user, `accuracy` is mean quality in [0, 1] by domain."""

    requests: Mapping[str, int]
    accuracy: tuple[float, ...]  # (16,), nan where fewer than LEAST_OUTCOMES answers were scored
    corpus_size: int


@dataclass(frozen=True)
class Now:
    """The same for one user, with the machine's state; nan: unknown."""

    user_frequency: float = UNKNOWN
    historical_accuracy: tuple[float, ...] = field(default=(UNKNOWN,) * len(DOMAINS))
    corpus_size: float = UNKNOWN
    memory_available_gb: float = UNKNOWN
    battery: float = UNKNOWN


NOTHING_KNOWN = Now()


class InFlight:
    """Counts the requests that are being answered; a block each."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return self._count

    @contextmanager
    def one_more(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1


class Live:
    """One thread refreshes, any number ask; what they share is replaced whole. `clock` is monotonic seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._read: tuple[float, Record] | None = None
        self._machine = (UNKNOWN, UNKNOWN)
        self._asked = -math.inf

    def now(self, user: str) -> Now:
        """What is known at this moment. Reads what was kept, never Postgres."""
        read, (memory, battery) = self._read, self._machine
        if read is None or self._clock() - read[0] > STALE_S:
            return Now(memory_available_gb=memory, battery=battery)
        record = read[1]
        frequency = float(record.requests.get(user, 0)) if user else UNKNOWN
        return Now(frequency, record.accuracy, record.corpus_size, memory, battery)

    def refresh_if_old(self) -> None:
        """Read the machine and Postgres anew where the last time was half a minute ago or more.

        Where Postgres is away, what was read before stays until it is stale.
        """
        if (at := self._clock()) - self._asked < REFRESH_S:
            return
        self._asked = at
        self._machine = _memory_gb(), _battery()
        try:
            self._read = at, read_record(self._database)
        except DatabaseError as error:
            log.warning("routing without users and history: %s", error)


def read_record(database: Database) -> Record:
    """One transaction, three aggregates; the tenant's own rows.

    Raises:
        DatabaseError: Postgres is away.
    """
    with database.transaction() as connection:
        requests = connection.execute(_REQUESTS).fetchall()
        outcomes = connection.execute(_OUTCOMES).fetchall()
        size = connection.execute(_SIZE).fetchone()
    return Record(dict(requests), by_domain(outcomes), int(size[0]) if size else 0)


def by_domain(outcomes: list[tuple[str, float, int]]) -> tuple[float, ...]:
    """(domain as stored, sum of quality, answers) -> (16,) means; names that are not ours join the one they mean."""
    sums, counts = dict.fromkeys(DOMAINS, 0.0), dict.fromkeys(DOMAINS, 0)
    for name, total, count in outcomes:
        place = known_domain(name) if name else "other"
        sums[place] += total
        counts[place] += count
    return tuple(sums[name] / counts[name] if counts[name] >= LEAST_OUTCOMES else UNKNOWN for name in DOMAINS)


def _memory_gb() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / 2**30


def _battery() -> float:
    """Charge in [0, 1], 1 on mains or without a battery; unknown where the system does not say."""
    import psutil

    try:
        found = psutil.sensors_battery()
    except (AttributeError, OSError, ValueError):  # psutil has no such call on some systems
        return UNKNOWN
    return 1.0 if found is None or found.power_plugged else float(found.percent) / 100


_REQUESTS = """
    SELECT writer, count(*)::int FROM serving.interactions
    WHERE asked_at > now() - interval '1 day' AND writer <> '' GROUP BY writer
"""
_OUTCOMES = """
    SELECT domain, sum(quality)::float, count(*)::int FROM serving.interactions
    WHERE asked_at > now() - interval '30 days' AND quality IS NOT NULL GROUP BY domain
"""
_SIZE = "SELECT count(*) FROM memory.nodes WHERE archived_at IS NULL"
