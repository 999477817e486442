"""What follows an answer that nobody scored: a judge is asked, off the request path; its word goes the outbox's way.

Knows nothing of HTTP or of models. An answer to judge is leased for a while, so that no lock is held while the judge
thinks and two gateways do not judge the same; a lease whose holder died ends by itself. The verdict and the outbox row
that scores and writes back are one transaction, so a kill at any point repeats a judgement at most, and loses nothing.
A gateway calls `judge_some` while nobody asks it (ruvllm/serving/idle.py).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.inference.judge.labels import LabelSource
from ruvllm.inference.judge.records import Item, Judged
from ruvllm.text import whole_question

log = logging.getLogger(__name__)

LEASE_S = 300.0  # longer than a judge takes for a batch
ATTEMPTS = 3  # leases of one answer, before it is left alone: a judge may die of it
_UNCLEAN = "its texts cannot be judged"


class Judges(Protocol):
    """What is needed of a judge; `ruvllm.inference.judge.judging.Judging` is one."""

    def score(self, items: Sequence[Item]) -> list[Judged]: ...

    def source(self) -> LabelSource: ...


@dataclass(frozen=True)
class JudgeReport:
    """`scored` got a quality, `unscored` a reason why not; `lost` were taken over by another meanwhile."""

    scored: int = 0
    unscored: int = 0
    lost: int = 0
    refused: str = ""  # why this judge may not label: then nothing was taken up

    @property
    def taken(self) -> int:
        return self.scored + self.unscored + self.lost


def judge_some(database: Database, judges: Judges, limit: int = 4, lease_s: float = LEASE_S) -> JudgeReport:
    """Judge up to `limit` answers of the tenant that have neither gold nor feedback, the oldest first.

    Raises:
        DatabaseError: Postgres is away. What was judged until then is judged again.
        InferenceError: the model failed; the leases end by themselves.
    """
    source = judges.source()
    if not source.accepted:
        return JudgeReport(refused=source.reason)
    lease = str(uuid.uuid4())
    rows = _lease(database, lease, limit, lease_s)
    items = {row["id"]: item for row in rows if (item := _item(row)) is not None}
    judged = dict(zip(items, judges.score(list(items.values())) if items else [], strict=True))
    found = {row["id"]: _said(judged.get(row["id"]), source) for row in rows}
    return _finish(database, lease, source.judge, found)


def _lease(database: Database, lease: str, limit: int, lease_s: float) -> list[dict[str, Any]]:
    values = {"lease": lease, "limit": limit, "lease_s": lease_s, "attempts": ATTEMPTS}
    with database.transaction() as connection:
        leased = [row[0] for row in connection.execute(_LEASE, values).fetchall()]
        return connection.cursor(row_factory=dict_row).execute(_TEXTS, {"ids": leased}).fetchall()


def _item(row: Mapping[str, Any]) -> Item | None:
    try:
        return Item(whole_question(row["question"], row["history"]), row["answer"], tuple(row["passages"] or ()))
    except InputError:
        return None


def _said(judged: Judged | None, source: LabelSource) -> tuple[float | None, str]:
    """(quality, why there is none)."""
    if judged is None:
        return None, _UNCLEAN
    return source.quality(judged.verdict), judged.verdict.reason


def _finish(database: Database, lease: str, judge: str, found: Mapping[int, tuple[float | None, str]]) -> JudgeReport:
    scored = unscored = 0
    for interaction, (quality, reason) in sorted(found.items()):
        values = {"interaction": interaction, "lease": lease, "judge": judge, "quality": quality, "reason": reason}
        with database.transaction() as connection:
            if connection.execute(_FINISH, values).rowcount == 0:
                continue  # the lease ran out, and another has it
            if quality is None:
                unscored += 1
                continue
            connection.execute(_ENQUEUE, values)
            scored += 1
    return JudgeReport(scored, unscored, len(found) - scored - unscored)


# Settled by the outbox without a score, and neither judged nor being judged; feedback that is there has been settled.
_LEASE = """
    WITH open AS (
        SELECT i.id, i.tenant FROM serving.interactions i
        WHERE i.quality IS NULL AND i.gold IS NULL AND i.answer <> '' AND i.decided_by <> 'cache'
          AND NOT EXISTS (SELECT FROM serving.outbox o WHERE o.interaction = i.id AND o.done_at IS NULL)
          AND NOT EXISTS (SELECT FROM serving.feedback f WHERE f.interaction = i.id)
          AND NOT EXISTS (SELECT FROM serving.judgements j WHERE j.interaction = i.id
                          AND (j.done_at IS NOT NULL OR j.leased_until > now() OR j.attempts >= %(attempts)s))
        ORDER BY i.id LIMIT %(limit)s FOR UPDATE OF i SKIP LOCKED
    )
    INSERT INTO serving.judgements AS j (interaction, tenant, lease, leased_until)
    SELECT id, tenant, %(lease)s::uuid, now() + make_interval(secs => %(lease_s)s) FROM open
    ON CONFLICT (interaction) DO UPDATE SET lease = EXCLUDED.lease, leased_until = EXCLUDED.leased_until,
        attempts = j.attempts + 1 WHERE j.done_at IS NULL AND j.leased_until <= now()
    RETURNING interaction
"""
# passages as they stand in memory now, in the order of the prompt
_TEXTS = """
    SELECT i.id, i.question, i.history, i.answer,
           (SELECT array_agg(t.text ORDER BY u.place) FROM unnest(i.used) WITH ORDINALITY AS u (node, place)
            JOIN memory.node_texts t ON t.node = u.node) AS passages
    FROM serving.interactions i WHERE i.id = ANY(%(ids)s) ORDER BY i.id
"""
_FINISH = """
    UPDATE serving.judgements SET judge = %(judge)s, quality = %(quality)s, reason = %(reason)s, done_at = now()
    WHERE interaction = %(interaction)s AND lease = %(lease)s::uuid AND done_at IS NULL
"""
_ENQUEUE = """
    INSERT INTO serving.outbox (tenant, kind, interaction, idempotency_key)
    SELECT i.tenant, 'score', i.id, i.tenant || ':judge:' || i.request_id FROM serving.interactions i
    WHERE i.id = %(interaction)s
    ON CONFLICT (idempotency_key) DO NOTHING
"""
