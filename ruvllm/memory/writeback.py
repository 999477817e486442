"""Good answers become Facts (specification 4.2.2). Knows nothing of who asked or of how the answer was scored.

A Fact is written only above the quality threshold. One about the same question that is there already decides by the
conflict rule: the same answer strengthens it; another answer replaces it, as a new version, only with more trust or
quality. Gold corroborates; what a user's feedback or a judge scored is untrusted: only its writer finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg import Connection

from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import InputError
from ruvllm.memory import candidates, edges, merge, rows
from ruvllm.memory.conflict import raised_trust, rank, visible
from ruvllm.memory.minhash import bands
from ruvllm.memory.records import NewNode, Node, Vector, WriteBack
from ruvllm.memory.rows import Ready, content_hash
from ruvllm.memory.wording import same_answer, same_question, wording
from ruvllm.settings import Settings
from ruvllm.text import LIMIT, clean_text

QA = "qa_pair"  # the source of these Facts
SAME_TOPIC = 0.80  # similarity from which a SameTopic edge is drawn
_NEAREST = 32  # nodes looked at for a duplicate: near the question, and near question and answer together
_TOPICS = 8  # SameTopic edges of a new Fact at most
_AUTHOR = "write-back"


@dataclass(frozen=True)
class Answered:
    """An answer that may be kept; `quality` in [0, 1] or None, `derived_from` the nodes it was answered from."""

    question: str
    answer: str
    quality: float | None
    quality_source: str | None  # gold | feedback | judge
    writer: str = ""
    domain: str = ""
    derived_from: tuple[int, ...] = ()

    @property
    def trust(self) -> str:
        return "corroborated" if self.quality_source == "gold" else "untrusted"

    @property
    def text(self) -> str:
        return f"Q: {self.question}\nA: {self.answer}"

    @property
    def provenance(self) -> dict[str, object]:
        return {
            "quality": self.quality,
            "quality_source": self.quality_source,
            "writer": self.writer,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@dataclass(frozen=True)
class _Vectors:
    whole: Vector  # (d,) of question and answer together, what is stored
    question: Vector  # (d,)


def write_back(connection: Connection, embedder: EmbeddingAdapter, settings: Settings, answered: Answered) -> WriteBack:
    """Decide and write, in the transaction of `connection`.

    Raises:
        InputError: the quality is outside [0, 1].
    """
    if answered.quality is None:
        return WriteBack("unscored", None, "no quality is known")
    if not 0 <= answered.quality <= 1:
        raise InputError(f"quality: got {answered.quality}, want a number from 0 to 1")
    if answered.quality < settings.writeback_threshold:
        return WriteBack("skipped", None, f"quality {answered.quality:.2f} < {settings.writeback_threshold:.2f}")
    try:
        clean = _cleaned(answered)
    except InputError as error:  # an answer that memory cannot hold must not stop the outbox
        return WriteBack("skipped", None, str(error))
    whole, question = embedder.embed([clean.text, clean.question])
    return _settle(connection, clean, _Vectors(whole, question))


def _cleaned(answered: Answered) -> Answered:
    question, answer = clean_text(answered.question, "question"), clean_text(answered.answer, "answer")
    clean = Answered(
        question, answer, answered.quality, answered.quality_source, answered.writer, answered.domain,
        answered.derived_from,
    )  # fmt: skip
    clean_text(clean.text, "question and answer together", LIMIT)
    return clean


def _settle(connection: Connection, answered: Answered, vectors: _Vectors) -> WriteBack:
    _lock(connection, answered.question)
    alike = _alike(connection, answered, vectors)
    for node in alike:
        if same_answer(str(node.metadata.get("answer", "")), answered.answer):
            return _strengthened(connection, node, answered)
    rivals = [node for node in alike if visible(node, answered.writer)]
    mine = rank(answered.trust, answered.quality or 0.0)
    if better := next((n for n in rivals if rank(n.trust, n.confidence) >= mine), None):
        return WriteBack("skipped", better.id, f"node {better.id} holds another answer that is at least as good")
    return _written(connection, answered, vectors, rivals)


def _lock(connection: Connection, question: str) -> None:
    """Two writers of one question wait for each other, whatever its wording; the lock ends with the transaction."""
    key = " ".join(sorted(wording(question).content))
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(current_setting('app.tenant') || ' ' || %s, 0))", [key]
    )


def _alike(connection: Connection, answered: Answered, vectors: _Vectors) -> list[Node]:
    """Facts about the same question, the oldest first, locked.

    Nearness (cosine, MinHash) only finds them, the wording decides: another answer can pull one question's rows apart,
    and two questions that differ in a name can be nearer than any threshold.
    """
    near = {
        *candidates.nearest(connection, vectors.whole, _NEAREST),
        *candidates.nearest(connection, vectors.question, _NEAREST),
        *candidates.sharing_a_band(connection, bands(answered.text)),
    }
    alike = [node.id for node in rows.get(connection, list(near)) if _asks(node, answered.question)]
    return candidates.lock_live(connection, alike) if alike else []


def _asks(node: Node, question: str) -> bool:
    return node.source == QA and same_question(str(node.metadata.get("question", "")), question)


def _strengthened(connection: Connection, node: Node, answered: Answered) -> WriteBack:
    trust = raised_trust(node.trust, node.writer, answered.trust, answered.writer)
    merge.strengthen(connection, node.id, answered.quality or 0.0, trust, answered.provenance)
    merge.touch(connection, [node.id])
    return WriteBack("merged", node.id, f"node {node.id} holds the same answer")


def _written(connection: Connection, answered: Answered, vectors: _Vectors, rivals: Sequence[Node]) -> WriteBack:
    node = _new_node(answered)
    version = max((rival.version for rival in rivals), default=0) + 1
    [id] = rows.insert(connection, [Ready(node, content_hash(node.kind, node.text), vectors.whole, version)])
    if id is None:  # the same text came by another door, as a Fact that is no qa_pair
        return WriteBack("skipped", None, "a Fact with the same text is there already")
    for rival in rivals:
        merge.absorb(connection, id, rival.id)
    _link(connection, answered, vectors, id, rivals)
    old = ", ".join(str(rival.id) for rival in rivals)
    return WriteBack("written", id, f"version {version}, supersedes node {old}" if rivals else "")


def _new_node(answered: Answered) -> NewNode:
    metadata = {"type": QA, "question": answered.question, "answer": answered.answer, **answered.provenance}
    return NewNode(
        text=answered.text,
        kind="Fact",
        source=QA,
        domain=answered.domain,
        trust=answered.trust,
        writer=answered.writer,
        metadata=metadata,
        confidence=answered.quality or 0.0,
    )


def _link(connection: Connection, answered: Answered, vectors: _Vectors, id: int, rivals: Sequence[Node]) -> None:
    sources = [*answered.derived_from, *(rival.id for rival in rivals)]
    drawn: list[edges.Edge] = [(id, source, "Derived", 1.0) for source in dict.fromkeys(sources)]
    drawn += [(id, other, "SameTopic", near) for other, near in _topics(connection, answered, vectors) if other != id]
    edges.link(connection, drawn, _AUTHOR)


def _topics(connection: Connection, answered: Answered, vectors: _Vectors) -> list[tuple[int, float]]:
    """(id, similarity) of the nearest nodes that the writer may see."""
    near = candidates.nearest(connection, vectors.whole, _TOPICS + 1)  # it finds the new Fact too
    close = [id for id, similarity in near.items() if similarity >= SAME_TOPIC]
    seen = [node.id for node in rows.get(connection, close) if visible(node, answered.writer)]
    return [(id, min(1.0, near[id])) for id in seen]
