"""What a running service knows beyond the question: its users, its record by domain and near-duplicate, its machine.

Knows nothing of features. Asked for at every request and never waited for: whoever settles the outbox has it read
Postgres, at most every half minute, and the table of earlier outcomes at most every five. What could not be read for
ten minutes is unknown again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import DatabaseError
from ruvllm.inference.prompt import PROMPT_VERSION
from ruvllm.router.beliefs import Beliefs
from ruvllm.router.layout import DOMAINS, LAYOUT, N_HISTORY_TIERS
from ruvllm.router.past import LATEST, Past, make_past

if TYPE_CHECKING:
    from ruvllm.database.pool import Database

log = logging.getLogger(__name__)

REFRESH_S = 30.0
PAST_REFRESH_S = 300.0
STALE_S = 600.0
UNKNOWN = math.nan
_LATEST_ANSWERS = 5000  # scored ones of 30 days that the record by domain is made from
_COUNTED = 100_000  # nodes up to which they are counted; beyond, the planner's estimate is as good

Wide = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Record:
    """What Postgres says of the last day's users, requests by user, and of memory."""

    requests: Mapping[str, int]
    corpus_size: int  # the planner's estimate above 100,000


@dataclass(frozen=True)
class Now:
    """The same for one user, with earlier outcomes and the machine's state; nan, None: unknown."""

    user_frequency: float = UNKNOWN
    past: Past | None = None
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
    """One thread refreshes, any number ask; what they share is replaced whole. `clock` is monotonic seconds.

    `tiers` are the ladder's names, smallest first; without them earlier outcomes stay unknown.
    """

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, tiers: Sequence[str] = ()
    ) -> None:
        self._database, self._clock, self._tiers = database, clock, tuple(tiers)
        self.beliefs = Beliefs(database, tiers)  # what Thompson sampling draws from; read with the earlier outcomes
        self._read: tuple[float, Record] | None = None
        self._past: tuple[float, Past] | None = None
        self._machine = (UNKNOWN, UNKNOWN)
        self._asked = self._past_asked = -math.inf

    def now(self, user: str) -> Now:
        """What is known at this moment. Reads what was kept, never Postgres."""
        read, past, (memory, battery) = self._read, self._past, self._machine
        earlier = None if past is None or self._clock() - past[0] > STALE_S else past[1]
        if read is None or self._clock() - read[0] > STALE_S:
            return Now(past=earlier, memory_available_gb=memory, battery=battery)
        record = read[1]
        frequency = float(record.requests.get(user, 0)) if user else UNKNOWN
        return Now(frequency, earlier, record.corpus_size, memory, battery)

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
            self._refresh_past(at)
        except DatabaseError as error:
            log.warning("routing without users and history: %s", error)

    def _refresh_past(self, at: float) -> None:
        if not self._tiers or at - self._past_asked < PAST_REFRESH_S:
            return
        self._past = at, read_past(self._database, self._tiers)
        self.beliefs.refresh()
        self._past_asked = at


def read_record(database: Database) -> Record:
    """One transaction, the tenant's own requests; memory's size is that of all tenants once it is estimated.

    Raises:
        DatabaseError: Postgres is away.
    """
    with database.transaction() as connection:
        requests = connection.execute(_REQUESTS).fetchall()
        size = connection.execute(_SIZE, {"counted": _COUNTED}).fetchone()
    return Record(dict(requests), int(size[0]) if size else 0)


def read_past(database: Database, tiers: Sequence[str]) -> Past:
    """Outcomes of the latest 2,048 oracle questions and, by domain, of the latest 5,000 scored answers.

    A question's quality on a tier is the mean over its context bins, of the tier's newest model only. Questions and
    answers whose features are of another layout are left out: their domain is by other classifiers.

    Raises:
        DatabaseError: Postgres is away.
    """
    domain = LAYOUT["domain_encoding"]
    given = {
        "layout": LAYOUT.hash, "first": domain.start + 1, "last": domain.stop, "tiers": list(tiers),
        "version": PROMPT_VERSION, "most": LATEST, "answers": _LATEST_ANSWERS,
    }  # fmt: skip
    with database.transaction() as connection:
        cursor = connection.cursor(binary=True)
        questions = cursor.execute(_QUESTIONS, given).fetchall()
        runs = cursor.execute(_RUNS, {**given, "keys": [row[0] for row in questions]}).fetchall()
        answers = cursor.execute(_ANSWERS, given).fetchall()
    vectors = [row[1] for row in questions]
    return make_past(
        np.array(vectors, dtype=np.float32) if vectors else np.zeros((0, 0), dtype=np.float32),
        _by_question([row[0] for row in questions], runs, tiers),
        _domains([row[2] for row in questions]),
        _by_domain(answers, tiers),
    )


def _by_question(keys: Sequence[str], runs: Sequence[tuple[str, str, float]], tiers: Sequence[str]) -> Wide:
    """(n, 4), nan where a tier was not run."""
    place = {key: row for row, key in enumerate(keys)}
    quality = np.full((len(keys), N_HISTORY_TIERS), np.nan)
    for key, tier, mean in runs:
        quality[place[key], tiers.index(tier)] = mean
    return quality


def _by_domain(answers: Sequence[tuple[str, float, list[float]]], tiers: Sequence[str]) -> tuple[Wide, Wide]:
    """Sum of quality and number of answers, (16, 4) each."""
    sums, counts = (np.zeros((len(DOMAINS), N_HISTORY_TIERS)) for _ in range(2))
    domains = _domains([row[2] for row in answers])
    for (tier, quality, _), domain in zip(answers, domains, strict=True):
        if domain >= 0:
            sums[domain, tiers.index(tier)] += quality
            counts[domain, tiers.index(tier)] += 1
    return sums, counts


def _domains(shares: Sequence[list[float]]) -> Ints:
    """(n,) the most likely domain, -1 where it is unknown."""
    table = np.array(shares, dtype=np.float64).reshape(len(shares), len(DOMAINS))
    found: Ints = np.where(table.any(axis=1), table.argmax(axis=1), -1)
    return found


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
# Below the bound the rows are counted, at most twice the bound of them: a table never analysed has no estimate.
_SIZE = """
    SELECT CASE WHEN c.reltuples >= %(counted)s THEN c.reltuples::bigint
           ELSE (SELECT count(*) FROM (SELECT FROM memory.nodes WHERE archived_at IS NULL LIMIT 2 * %(counted)s) AS n)
           END
    FROM pg_class c WHERE c.oid = 'memory.nodes'::regclass
"""
_QUESTIONS = """
    SELECT key, embedding, shares FROM (
        SELECT key, embedding, features[%(first)s:%(last)s] AS shares, created_at FROM learning.oracle_queries
        WHERE layout_hash = %(layout)s ORDER BY created_at DESC, key DESC LIMIT %(most)s
    ) AS latest ORDER BY created_at, key
"""
_RUNS = """
    WITH newest AS (
        SELECT DISTINCT ON (tier) tier, model_sha256 FROM learning.oracle_runs
        WHERE tier = ANY(%(tiers)s) AND prompt_version = %(version)s ORDER BY tier, id DESC
    )
    SELECT r.query, r.tier, avg(r.quality)::float8 FROM learning.oracle_runs r
    JOIN newest n ON n.tier = r.tier AND n.model_sha256 = r.model_sha256
    WHERE r.query = ANY(%(keys)s) AND r.prompt_version = %(version)s GROUP BY r.query, r.tier
"""
_ANSWERS = """
    SELECT tier, quality, features[%(first)s:%(last)s] FROM serving.interactions
    WHERE asked_at > now() - interval '30 days' AND quality IS NOT NULL AND tier = ANY(%(tiers)s)
      AND layout_hash = %(layout)s
    ORDER BY asked_at DESC LIMIT %(answers)s
"""
