"""Answers from memory: a question close enough to one that was answered well, and is so still, gets that answer.

Knows nothing of HTTP, and searches nothing: it looks at what was found for the question anyway, so it sees what the
asker may see and nothing that was archived or superseded. From which similarity on is calibrated to a stated share of
false hits (ruvllm/serving/calibration.py); without a calibration of this encoder it has none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from ruvllm.memory.likeness.wording import same_names
from ruvllm.memory.records import Hit, Node
from ruvllm.memory.writing.writeback import QA

if TYPE_CHECKING:
    from ruvllm.database.pool import Database

log = logging.getLogger(__name__)

LEAST_QUALITY = 0.9  # of an answer that is given again
MAX_AGE = timedelta(days=30)  # since it was last borne out
_REFRESH_S = 30.0  # between two looks at the calibration and at what was said of answers
_NOTHING_TOLD = -2.0  # no threshold is that


@dataclass(frozen=True)
class Cached:
    """An answer that memory holds; `question` is the one that it was given to."""

    node: int
    question: str
    text: str
    similarity: float
    quality: float


@dataclass(frozen=True)
class Calibration:
    """Up from `threshold` at most `target` of the hits are false, at `confidence`; None: no threshold holds that."""

    encoder_id: str
    data_digest: str
    target: float
    confidence: float
    threshold: float | None
    questions: int
    hits: int
    false_hits: int
    bound: float  # upper limit of the share of false hits


class AnswerCache:
    """For one encoder. `threshold` None: it never hits."""

    def __init__(
        self,
        threshold: float | None,
        least_quality: float = LEAST_QUALITY,
        max_age: timedelta = MAX_AGE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.threshold, self._least, self._max_age, self._clock = threshold, least_quality, max_age, clock

    def look(self, question: str, hits: Sequence[Hit]) -> Cached | None:
        """The answer to give again; None where the question has to be answered.

        Args:
            question: as it was embedded; a follow-up, whose meaning is in its history, is not for this cache.
            hits: what memory found for it and the asker may see, the nearest first.
        """
        if self.threshold is None:
            return None
        found = nearest(question, ((hit, question_of(hit.node)) for hit in hits if self._is_good(hit.node)))
        if found is None or found[0].similarity < self.threshold:
            return None
        hit, held = found
        return Cached(hit.node.id, held, str(hit.node.metadata["answer"]), hit.similarity, hit.node.confidence)

    def _is_good(self, node: Node) -> bool:
        if node.kind != "Fact" or node.source != QA or node.confidence < self._least:
            return False
        return bool(node.metadata.get("answer")) and bool(question_of(node)) and self._is_fresh(node)

    def _is_fresh(self, node: Node) -> bool:
        try:
            at = datetime.fromisoformat(str(node.metadata.get("at")))
        except ValueError:  # of unknown age
            return False
        return at.tzinfo is not None and self._clock() - at <= self._max_age


class FollowedCache:
    """The cache of a tenant, as its newest calibration and what was said of its answers make it. Empty until read."""

    def __init__(self, database: Database, encoder_id: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._encoder_id, self._clock = database, encoder_id, clock
        self._cache, self._refused = AnswerCache(None), frozenset[int]()
        self._read_at: float | None = None
        self._told: float | None = _NOTHING_TOLD

    @property
    def threshold(self) -> float | None:
        """None: nothing is answered from memory."""
        return self._cache.threshold

    def look(self, question: str, hits: Sequence[Hit]) -> Cached | None:
        """As `AnswerCache.look`; what was called wrong after it had been given again is not looked at."""
        refused = self._refused
        return self._cache.look(question, [hit for hit in hits if hit.node.id not in refused])

    def refresh_if_old(self) -> None:
        """
        Raises:
            DatabaseError: Postgres is away; what was read before goes on counting.
        """
        now = self._clock()
        if self._read_at is not None and now - self._read_at < _REFRESH_S:
            return
        cache = open_cache(self._database, self._encoder_id, on=True)
        self._refused = _called_wrong(self._database)
        self._cache, self._read_at = cache, now
        self._tell()

    def _tell(self) -> None:
        """Once for every change."""
        if self.threshold == self._told:
            return
        self._told = self.threshold
        whose = f"encoder {self._encoder_id}, tenant {self._database.tenant}"
        if self.threshold is None:
            log.warning('answer cache: never hits without a threshold (%s); run "ruvllm cache calibrate"', whose)
        else:
            log.info("answer cache: from similarity %.3f on (%s)", self.threshold, whose)


def _called_wrong(database: Database) -> frozenset[int]:
    """Nodes whose answer was given again and found bad since: they answer nobody any more."""
    with database.transaction() as connection:
        return frozenset(int(row[0]) for row in connection.execute(_WRONG).fetchall())


def nearest(question: str, held: Iterable[tuple[Hit, str]]) -> tuple[Hit, str] | None:
    """The first of `held` that asks of the same names and numbers: in no vector space is Ghana far from Gabon."""
    return next((each for each in held if same_names(each[1], question)), None)


def question_of(node: Node) -> str:
    return str(node.metadata.get("question", ""))


def keep_calibration(database: Database, made: Calibration) -> None:
    """From now on it counts for its encoder and the database's tenant."""
    with database.transaction() as connection:
        connection.execute(_KEEP, {**vars(made), "tenant": database.tenant})


def newest_calibration(database: Database, encoder_id: str) -> Calibration | None:
    """None where there never was one."""
    with database.transaction() as connection:
        return connection.cursor(row_factory=class_row(Calibration)).execute(_NEWEST, (encoder_id,)).fetchone()


def open_cache(database: Database, encoder_id: str, on: bool) -> AnswerCache:
    """The cache as the settings and the newest calibration make it.

    Raises:
        DatabaseError: Postgres is away.
    """
    found = newest_calibration(database, encoder_id) if on else None
    return AnswerCache(found.threshold if found else None)


_COLUMNS = "encoder_id, data_digest, target, confidence, threshold, questions, hits, false_hits, bound"
_KEEP = f"""
    INSERT INTO serving.cache_calibrations (tenant, {_COLUMNS})
    VALUES (%(tenant)s, %(encoder_id)s, %(data_digest)s, %(target)s, %(confidence)s, %(threshold)s, %(questions)s,
            %(hits)s, %(false_hits)s, %(bound)s)
"""  # noqa: S608  # names are ours, values are parameters
_WRONG = """
    SELECT DISTINCT unnest(used) FROM serving.interactions
    WHERE decided_by = 'cache' AND quality < 0.5 AND asked_at > now() - interval '60 days'
"""
_NEWEST = f"SELECT {_COLUMNS} FROM serving.cache_calibrations WHERE encoder_id = %s ORDER BY id DESC LIMIT 1"  # noqa: S608
