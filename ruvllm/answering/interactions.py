"""Stored requests: the interaction, its outbox row, feedback, and what follows an answer (scoring, write-back).

Knows nothing of models or HTTP. An interaction and its outbox row are one transaction; so are a write-back and the mark
that it was done, so a crash in between repeats nothing and loses nothing. A row that fails by itself is tried again
later, ever more rarely, and in the end given up; the others do not wait for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, OperationalError
from psycopg.rows import dict_row

from ruvllm.answering.privacy import MARK
from ruvllm.answering.recall import CACHE
from ruvllm.database.pool import Database
from ruvllm.errors import DatabaseError, InputError, NotFoundError
from ruvllm.evaluation.qa import score_answer
from ruvllm.learning.experience import keep_experience
from ruvllm.memory.records import WriteBack
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import decay
from ruvllm.memory.writing.writes import KEY_LIMIT
from ruvllm.router.layout import LAYOUT
from ruvllm.text import clean_text, is_clean, whole_question

if TYPE_CHECKING:
    from ruvllm.answering.asking import Answer, Ask

log = logging.getLogger(__name__)

ATTEMPTS = 6  # of an outbox row before it is given up: over half an hour
_RETRY_S = 5.0  # before the second attempt; each further wait is four times the one before

_COLUMNS = (
    "request_id", "tenant", "cycle_id", "session_id", "turn", "question", "history", "answer", "gold", "domain", "tier",
    "context_bin", "temperature", "top_p", "decided_by", "confidence", "propensity", "router_version", "ladder",
    "layout_hash", "features", "retrieved", "similarities", "used", "writer", "prompt_tokens", "cached_tokens",
    "completion_tokens", "cost", "stage_ms", "total_ms", "degraded", "asked_at",
)  # fmt: skip


@dataclass(frozen=True)
class OutboxState:
    """What waits to be settled, for metrics: `retrying` of `depth` failed at least once; `failed` were given up.

    `replay` is how many settled answers the replay reservoir holds.
    """

    depth: int
    oldest_s: float
    retrying: int
    failed: int
    replay: int


@dataclass(frozen=True)
class Interaction:
    """A row of serving.interactions, column by column, without the tenant."""

    values: dict[str, object]

    @classmethod
    def of(
        cls, ask: Ask, answer: Answer, features: NDArray[np.float32], ladder: str, degraded: tuple[str, ...]
    ) -> Interaction:
        """The row of one answered question."""
        decision, generation = answer.decision, answer.generation
        return cls(
            {
                "request_id": answer.request_id,
                "cycle_id": ask.cycle_id,
                "session_id": ask.session_id,
                "turn": ask.turn,
                "question": ask.question,
                "history": json.dumps(ask.history),
                "answer": answer.text,
                "gold": list(ask.gold) if ask.gold else None,
                "domain": ask.domain or (answer.hits[0].node.domain if answer.hits else ""),
                "tier": answer.tier,
                "context_bin": answer.context_bin,
                "temperature": decision.temperature,
                "top_p": decision.top_p,
                "decided_by": decision.decided_by,
                "confidence": decision.confidence,
                "propensity": decision.propensity,
                "router_version": decision.router_version,
                "ladder": ladder,
                "layout_hash": LAYOUT.hash,
                "features": features.tolist(),
                "retrieved": [hit.node.id for hit in answer.hits],
                "similarities": [hit.similarity for hit in answer.hits],
                "used": list(answer.used),
                "writer": ask.writer,
                "prompt_tokens": generation.prompt_tokens,
                "cached_tokens": generation.cached_tokens,
                "completion_tokens": generation.completion_tokens,
                "cost": answer.cost,
                "stage_ms": json.dumps({name: round(ms, 3) for name, ms in answer.stage_ms.items()}),
                "total_ms": answer.total_ms,
                "degraded": list(degraded),
                "asked_at": _now(),  # one that is stored late is dated by its asking
            }
        )


class Interactions:
    """The requests of one tenant. `on_quality` hears the quality in [0, 1] of each answer that gets one."""

    def __init__(self, database: Database, on_quality: Callable[[float], object] = lambda quality: None) -> None:
        self.database, self.on_quality = database, on_quality

    def record(self, row: Interaction) -> None:
        """Store the interaction and its outbox row; a request id that is there already is left as it is."""
        values = {"asked_at": _now(), **row.values, "tenant": self.database.tenant}
        values["key"] = _outbox_key(self.database.tenant, f"answer:{row.values['request_id']}")
        self.database.write(lambda connection: connection.execute(_RECORD, values))

    def feedback(
        self, request_id: str, rating: int | None, correction: str | None, task_success: bool | None, writer: str
    ) -> None:
        """Store feedback and queue the answer for scoring.

        Raises:
            NotFoundError: no such request.
            InputError: nothing was said, or the rating or correction is unacceptable.
        """
        if rating is None and correction is None and task_success is None:
            raise InputError("feedback: got nothing, want a rating from 1 to 5, a correction or task_success")
        if rating is not None and not 1 <= rating <= 5:
            raise InputError(f"rating: got {rating}, want a number from 1 to 5")
        text = clean_text(correction, "correction") if correction is not None else None
        with self.database.transaction() as connection:
            found = connection.execute(
                "SELECT id FROM serving.interactions WHERE request_id = %s AND tenant = %s",
                (request_id, self.database.tenant),
            ).fetchone()
            if found is None:
                raise NotFoundError(f"request {request_id!r}: no such interaction; use the x-request-id of an answer")
            connection.execute(
                "INSERT INTO serving.feedback (tenant, interaction, rating, correction, task_success, writer)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (self.database.tenant, found[0], rating, text, task_success, writer),
            )
            _enqueue(connection, found[0], self.database.tenant, f"feedback:{uuid.uuid4()}")

    def settle(self, memory: Memory, limit: int = 100) -> int:
        """Score and write back up to `limit` queued answers, each in a transaction of its own; returns how many.

        A row that fails is put off and counted in `outbox().retrying`.

        Raises:
            DatabaseError: Postgres is away, or memory is another encoder's: no row is to blame, and all wait.
        """
        done = taken = 0
        while taken < limit and (settled := self._settle_next(memory)) is not None:
            done, taken = done + settled, taken + 1
        return done

    def outbox(self) -> OutboxState:
        """What waits, how long the oldest has waited, what was given up, and what is kept to learn from."""
        with self.database.transaction() as connection:
            depth, oldest, retrying = connection.execute(_OPEN).fetchone() or (0, 0, 0)
            failed, replay = connection.execute(_ENDED).fetchone() or (0, 0)
        return OutboxState(int(depth), float(oldest), int(retrying), int(failed), int(replay))

    def _settle_next(self, memory: Memory) -> bool | None:
        """Whether the next row was settled (False: it failed and was put off); None where none is due."""
        outbox: int | None = None
        try:
            with self.database.transaction() as connection:
                row = connection.cursor(row_factory=dict_row).execute(_NEXT).fetchone()
                if row is None:
                    return None
                outbox = row["outbox"]
                quality = _settle_row(memory, connection, row)
        except Exception as error:  # whatever one row does, the others come next; what is not its fault is raised again
            if outbox is None or _nobodys_fault(error):
                raise
            self._put_off(outbox, error)
            return False
        if quality is not None:
            self.on_quality(quality)
        return True

    def _put_off(self, outbox: int, error: Exception) -> None:
        values = {"outbox": outbox, "error": f"{type(error).__name__}: {error}"[:_ERROR_LIMIT].replace("\x00", ""),
                  "attempts": ATTEMPTS, "retry_s": _RETRY_S}  # fmt: skip
        with self.database.transaction() as connection:
            given_up = connection.execute(_PUT_OFF, values).fetchone()
        log.warning("outbox row %s %s: %s", outbox, "was given up" if given_up == (True,) else "is put off", error)


def _settle_row(memory: Memory, connection: Connection, row: dict[str, object]) -> float | None:
    """The answer's quality, where there is one."""
    given = _feedback(connection, row)
    quality, source = _score(connection, row, given)
    result = _kept(memory, connection, row, quality, source)
    if quality is not None:
        decay.reinforce(connection, row["used"], quality)  # type: ignore[arg-type]  # bigint[]
        connection.execute(
            "UPDATE serving.interactions SET quality = %s, quality_source = %s WHERE id = %s",
            (quality, source, row["interaction"]),
        )
        if row["decided_by"] != CACHE:  # no tier is to be praised or blamed
            keep_experience(connection, int(str(row["interaction"])))
    connection.execute(
        "UPDATE serving.outbox SET outcome = %s, node = %s, done_at = now(), attempts = attempts + 1,"
        " last_error = NULL WHERE id = %s",
        (result.outcome, result.node, row["outbox"]),
    )
    return quality


def _nobodys_fault(error: Exception) -> bool:
    """Postgres went away or memory cannot be used; else the server itself said what is wrong with this row's work."""
    if not isinstance(error, DatabaseError):
        return False
    cause = error.__cause__
    return not isinstance(cause, OperationalError) or (cause.sqlstate or "57")[:2] in _AWAY


_VALUES = ", ".join(f"%({column})s" for column in _COLUMNS)
_INSERT = (
    f"INSERT INTO serving.interactions ({', '.join(_COLUMNS)}) VALUES ({_VALUES})"  # noqa: S608  # names above, no values
    " ON CONFLICT (tenant, request_id) DO NOTHING RETURNING id"
)
# Both rows by one statement, so that they are one transaction and one round trip; repeated, it does nothing.
_RECORD = (
    f"WITH stored AS ({_INSERT})"  # noqa: S608  # as above
    " INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key)"
    " SELECT %(tenant)s, 'score', id, %(key)s FROM stored ON CONFLICT (idempotency_key) DO NOTHING RETURNING id"
)

_ERROR_LIMIT = 1000  # characters of an error that are kept
_AWAY = ("08", "53", "57", "58")  # connection lost, resources short, shutdown, the disk

# The due row that has waited longest; one that another process works on is left to it.
_NEXT = """
    SELECT o.id AS outbox, i.id AS interaction, i.question, i.history, i.answer, i.gold, i.domain, i.used, i.writer,
           i.session_id, i.turn, i.degraded, i.decided_by, o.idempotency_key AS key
    FROM serving.outbox o JOIN serving.interactions i ON i.id = o.interaction
    WHERE o.done_at IS NULL AND (o.attempts = 0 OR o.retry_at <= now())
    ORDER BY o.id LIMIT 1 FOR UPDATE OF o SKIP LOCKED
"""

_PUT_OFF = """
    UPDATE serving.outbox SET attempts = attempts + 1, last_error = %(error)s,
        retry_at = now() + make_interval(secs => %(retry_s)s * power(4, attempts)),
        done_at = CASE WHEN attempts + 1 >= %(attempts)s THEN now() END,
        outcome = CASE WHEN attempts + 1 >= %(attempts)s THEN 'failed' END
    WHERE id = %(outbox)s AND done_at IS NULL RETURNING done_at IS NOT NULL
"""

_OPEN = """
    SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0), count(*) FILTER (WHERE attempts > 0)
    FROM serving.outbox WHERE done_at IS NULL
"""
_ENDED = """
    SELECT (SELECT count(*) FROM serving.outbox WHERE outcome = 'failed'), (SELECT count(*) FROM learning.experience)
"""


def _enqueue(connection: Connection, interaction: int, tenant: str, key: str) -> None:
    connection.execute(
        "INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key) VALUES (%s, 'score', %s, %s)"
        " ON CONFLICT (idempotency_key) DO NOTHING",
        (tenant, interaction, _outbox_key(tenant, key)),
    )


def _outbox_key(tenant: str, key: str) -> str:
    return f"{tenant}:{key}"


@dataclass(frozen=True)
class _Feedback:
    """The latest that was said of an answer."""

    rating: int | None
    task_success: bool | None
    corrected: bool

    @property
    def quality(self) -> float:
        """A rating counts first, then task success; an answer that was only corrected was wrong."""
        if self.rating is not None:
            return (self.rating - 1) / 4
        if self.task_success is not None:
            return float(self.task_success)
        return 0.0 if self.corrected else 1.0


@dataclass(frozen=True)
class _Correction:
    """The latest text that was given in place of an answer."""

    feedback: int
    text: str
    writer: str


def _feedback(connection: Connection, row: dict[str, object]) -> _Feedback | None:
    given = connection.execute(
        "SELECT rating, task_success, correction IS NOT NULL FROM serving.feedback"
        " WHERE interaction = %s ORDER BY id DESC LIMIT 1",
        (row["interaction"],),
    ).fetchone()
    return None if given is None else _Feedback(*given)


def _correction(connection: Connection, row: dict[str, object]) -> _Correction | None:
    given = connection.execute(
        "SELECT id, correction, writer FROM serving.feedback"
        " WHERE interaction = %s AND correction IS NOT NULL ORDER BY id DESC LIMIT 1",
        (row["interaction"],),
    ).fetchone()
    return None if given is None else _Correction(*given)


def _score(connection: Connection, row: dict[str, object], given: _Feedback | None) -> tuple[float | None, str | None]:
    """Quality in [0, 1] and where it comes from. Feedback outranks gold, and gold a judge; else there is no score."""
    if given is not None:
        return given.quality, "feedback"
    if row["gold"]:
        return score_answer(str(row["answer"]), list(row["gold"])), "gold"  # type: ignore[call-overload]  # text[]
    judged = connection.execute(
        "SELECT quality FROM serving.judgements WHERE interaction = %s AND quality IS NOT NULL", (row["interaction"],)
    ).fetchone()
    return (float(judged[0]), "judge") if judged is not None else (None, None)


def _kept(
    memory: Memory, connection: Connection, row: dict[str, object], quality: float | None, source: str | None
) -> WriteBack:
    """What becomes memory: the user's correction where there is one, else the answer if it is good enough."""
    if marks := [mark for mark in row["degraded"] if mark.startswith(MARK)]:  # type: ignore[attr-defined]  # text[]
        return WriteBack("skipped", None, f"{marks[0]}: nothing of it becomes memory")
    if (given := _correction(connection, row)) is not None:
        return _write_correction(memory, connection, row, given)
    if row["decided_by"] == CACHE:
        return WriteBack("skipped", None, "it came from memory, where it is already")
    return _write_back(memory, connection, row, quality, source)


def _write_correction(memory: Memory, connection: Connection, row: dict[str, object], given: _Correction) -> WriteBack:
    """A Fact of the corrector's own: untrusted, so found by them alone until it is corroborated; better than the rest.

    It comes from what they know and not from the passages that were shown, so it is derived from none.
    """
    return memory.write_back(
        question=whole_question(str(row["question"]), row["history"]),  # type: ignore[arg-type]  # jsonb
        answer=given.text,
        quality=1.0,
        quality_source="feedback",
        writer=given.writer,
        domain=str(row["domain"]),
        connection=connection,
        key=f"correction:{given.feedback}",
    )


def _write_back(
    memory: Memory, connection: Connection, row: dict[str, object], quality: float | None, source: str | None
) -> WriteBack:
    if quality is None or source is None:
        return WriteBack("unscored", None, "no gold answer and no feedback")
    return memory.write_back(
        question=whole_question(str(row["question"]), row["history"]),  # type: ignore[arg-type]  # jsonb
        answer=str(row["answer"]),
        quality=quality,
        quality_source=source,
        writer=str(row["writer"]),
        domain=str(row["domain"]),
        derived_from=tuple(row["used"]),  # type: ignore[arg-type]  # bigint[]
        connection=connection,
        key=_key(str(row["key"])),
        session=_key(str(row["session_id"])) if row["session_id"] else "",
        turn=int(str(row["turn"])),
    )


def _key(name: str) -> str:
    """A name that memory can keep: a client's own may be of any length and hold what a key may not."""
    if len(name) <= KEY_LIMIT and is_clean(name):
        return name
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def _now() -> str:
    """ISO 8601, so that a row can wait on disk as JSON."""
    return datetime.now(UTC).isoformat()
