"""Quality for answered requests that have neither gold nor feedback, from an accepted judge. Never while a user waits.

Knows nothing of who answered. What is labelled counts as the judge's word (`quality_source` "judge"); it is not written
back to memory, and feedback that comes later outranks it (ruvllm/answering/interactions.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from ruvllm.database.pool import Database
from ruvllm.errors import InputError
from ruvllm.inference.judge.judging import Judging
from ruvllm.inference.judge.records import Item
from ruvllm.progress import Progress, silent
from ruvllm.text import whole_question

NO_JUDGE = "no accepted judge"
NOTHING_SAID = "no answer to judge"


@dataclass(frozen=True)
class RequestReport:
    """`reason` says who may label, and why or why not."""

    labelled: int
    skipped: Mapping[str, int]
    reason: str


def label_requests(judging: Judging, progress: Progress = silent) -> RequestReport:
    """Judge every request of the tenant that waits for a quality; a refused judge is not asked.

    Raises:
        InferenceError: the model failed; what it scored until then is stored, and the next call goes on from there.
    """
    source, waiting = judging.source(), _waiting(judging.database)
    if not source.accepted:
        return RequestReport(0, {NO_JUDGE: len(waiting)} if waiting else {}, source.reason)
    items = {row["id"]: item for row in waiting if (item := _item(row)) is not None}
    judged = dict(zip(items, judging.score(list(items.values()), progress), strict=True))
    found = {id: source.quality(each.verdict) for id, each in judged.items()}
    labels = {id: quality for id, quality in found.items() if quality is not None}
    skipped = Counter(each.verdict.reason for id, each in judged.items() if found[id] is None)
    skipped[NOTHING_SAID] += len(waiting) - len(items)
    return RequestReport(_store(judging.database, labels), dict(+skipped), source.reason)


def _waiting(database: Database) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        return connection.cursor(row_factory=dict_row).execute(_WAITING).fetchall()


def _item(row: Mapping[str, Any]) -> Item | None:
    try:
        return Item(whole_question(row["question"], row["history"]), row["answer"], tuple(row["passages"] or ()))
    except InputError:
        return None


def _store(database: Database, labels: Mapping[int, float]) -> int:
    """One that got feedback meanwhile keeps that. Returns how many were stored."""
    values = {"ids": list(labels), "qualities": list(labels.values())}
    with database.transaction() as connection:
        return connection.execute(_LABEL, values).rowcount


# Settled by the outbox without a score; passages as they stand in memory now, in the order of the prompt.
_WAITING = """
    SELECT i.id, i.question, i.history, i.answer,
           (SELECT array_agg(t.text ORDER BY u.place) FROM unnest(i.used) WITH ORDINALITY AS u (node, place)
            JOIN memory.node_texts t ON t.node = u.node) AS passages
    FROM serving.interactions i
    WHERE i.quality IS NULL AND i.gold IS NULL
      AND NOT EXISTS (SELECT FROM serving.outbox o WHERE o.interaction = i.id AND o.done_at IS NULL)
    ORDER BY i.id
"""
_LABEL = """
    UPDATE serving.interactions i SET quality = l.quality, quality_source = 'judge'
    FROM unnest(%(ids)s::bigint[], %(qualities)s::real[]) AS l (id, quality)
    WHERE i.id = l.id AND i.quality IS NULL
"""
