"""Questions whose answers memory has to go on finding: recall at 10 before and after it was tidied. Changes no node.

A question is a hit where its node, or a live one with the same content, is among the 10 nearest that its asker may see;
one that has an answer also where a text among these holds that answer. So a summary that lost the answer is a loss, and
one that kept it is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import InputError
from ruvllm.memory import rows
from ruvllm.memory.likeness.wording import normal
from ruvllm.text import clean_text

K = 10
MOST = 200  # questions that are asked, the newest: about 2 ms each, twice a run
_EF_SEARCH = 200  # near exact, so that chance in the graph is not taken for a loss
_GOOD = 0.75
_SPACE = re.compile(r"\W+")

_ADD = """
    INSERT INTO memory.canary_queries (tenant, question, embedding, expected, answer, reader, origin)
    SELECT current_setting('app.tenant'), %(question)s, %(embedding)s, n.id, %(answer)s, %(reader)s, %(origin)s
    FROM memory.nodes n WHERE n.id = %(expected)s
    ON CONFLICT (tenant, question, reader) DO NOTHING
    RETURNING id
"""
_STORED = """
    SELECT c.question, c.embedding, c.expected, t.text, c.answer, c.reader
    FROM memory.canary_queries c JOIN memory.node_texts t ON t.node = c.expected ORDER BY c.id DESC LIMIT %s
"""
_NEAREST = """
    SELECT n.id, t.text
    FROM memory.nodes n JOIN memory.node_texts t ON t.node = n.id
    WHERE n.archived_at IS NULL AND (n.trust <> 'untrusted' OR t.writer = %(reader)s)
    ORDER BY n.embedding <#> %(embedding)s LIMIT %(k)s
"""
_GOLD = """
    SELECT i.question, i.gold, i.used, i.writer FROM serving.interactions i
    WHERE i.quality_source = 'gold' AND i.quality >= %(good)s AND i.used <> '{}' AND i.history = '[]'
      AND NOT EXISTS (SELECT FROM memory.canary_queries c WHERE c.question = i.question AND c.reader = i.writer)
    ORDER BY i.id DESC LIMIT %(most)s
"""


@dataclass(frozen=True)
class CanaryScore:
    """`lost` are the questions that found nothing; `recall` is None where no question is stored."""

    questions: int
    hits: int
    lost: tuple[str, ...] = ()

    @property
    def recall(self) -> float | None:
        return self.hits / self.questions if self.questions else None


@dataclass(frozen=True)
class _Stored:
    question: str
    embedding: object
    expected: int
    text: str  # of the expected node, which may be archived by now
    answer: str | None
    reader: str


def add(
    database: Database,
    embedder: EmbeddingAdapter,
    question: str,
    expected: int,
    answer: str | None = None,
    reader: str = "",
    origin: str = "added",
) -> bool:
    """Store a question that has to find the node `expected`; False where that question is stored already.

    Raises:
        InputError: a text is unacceptable, or there is no such node.
    """
    asked = clean_text(question, "canary question")
    values = {
        "question": asked,
        "embedding": rows.half(embedder.embed_one(asked)),
        "expected": expected,
        "answer": clean_text(answer, "canary answer") if answer is not None else None,
        "reader": reader,
        "origin": origin,
    }
    with database.transaction() as connection:
        if not rows.get(connection, [expected]):
            raise InputError(f"canary question {asked[:60]!r}: there is no node {expected}; give a stored node's id")
        return connection.execute(_ADD, values).fetchone() is not None


def fill(database: Database, embedder: EmbeddingAdapter, most: int = MOST) -> int:
    """Take up to `most` well answered questions with a gold answer that a node in the prompt held; how many are new."""
    with database.transaction() as connection:
        found = connection.execute(_GOLD, {"good": _GOOD, "most": most}).fetchall()
        source = [(q, writer, _source(connection, gold, used)) for q, gold, used, writer in found]
    return sum(
        add(database, embedder, question, held[0], held[1], writer, "gold")
        for question, writer, held in source
        if held is not None
    )


def _source(connection: Connection, gold: Sequence[str], used: Sequence[int]) -> tuple[int, str] | None:
    """The first node of the prompt that holds a gold answer, and that answer."""
    for node in rows.get(connection, used):
        for answer in gold or ():
            if holds(node.text, answer):
                return node.id, answer
    return None


def score(database: Database, most: int = MOST) -> CanaryScore:
    """Ask the newest `most` questions, through the index as a user's would be."""
    with database.transaction() as connection:
        asked = [_Stored(*row) for row in connection.execute(_STORED, [most])]
        rows.by_index(connection, _EF_SEARCH)
        lost = [each.question for each in asked if not _hit(connection, each)]
    return CanaryScore(len(asked), len(asked) - len(lost), tuple(lost))


def _hit(connection: Connection, asked: _Stored) -> bool:
    values = {"embedding": asked.embedding, "reader": asked.reader, "k": K}
    return any(
        id == asked.expected
        or normal(text) == normal(asked.text)
        or (asked.answer is not None and holds(text, asked.answer))
        for id, text in connection.execute(_NEAREST, values)
    )


def holds(text: str, answer: str) -> bool:
    """Whether `text` holds the words of `answer` in a row, whatever their case and punctuation."""
    wanted = _words(answer)
    return bool(wanted.strip()) and wanted in _words(text)


def _words(text: str) -> str:
    return f" {_SPACE.sub(' ', unicodedata.normalize('NFKC', text).casefold()).strip()} "
