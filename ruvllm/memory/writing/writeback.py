"""Good answers become Facts (specification 4.2.2). Knows nothing of who asked or of how the answer was scored.

A Fact is written only above the quality threshold. One about the same question that is there already decides by the
conflict rule: the same answer strengthens it; another answer replaces it, as a new version, only with more trust or
quality. Gold corroborates; what a user's feedback or a judge scored is untrusted: only its writer finds it.

A statement goes the same way (`remember`); it holds its own answer, so it only ever meets what says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.errors import InputError
from ruvllm.memory import edges, rows
from ruvllm.memory.likeness import candidates
from ruvllm.memory.likeness.alike import same_fact, same_statement
from ruvllm.memory.likeness.candidates import Nearby
from ruvllm.memory.likeness.conflict import TRUST, raised_trust, rank, visible
from ruvllm.memory.likeness.minhash import signed
from ruvllm.memory.likeness.thresholds import Thresholds, thresholds
from ruvllm.memory.likeness.wording import same_answer, same_question
from ruvllm.memory.records import NewNode, Node, Vector, WriteBack
from ruvllm.memory.rows import Ready, content_hash
from ruvllm.memory.tidy import merge
from ruvllm.memory.writing import writes
from ruvllm.settings import Settings
from ruvllm.text import LIMIT, clean_text

QA = "qa_pair"  # the source of these Facts
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
    key: str = ""  # of this write: sent again, it gets the first outcome
    session: str = ""  # its Fact follows that of the session's turn before
    turn: int = 1

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

    @property
    def node(self) -> NewNode:
        metadata = {"type": QA, "question": self.question, "answer": self.answer, **self.provenance}
        return NewNode(
            text=self.text,
            kind="Fact",
            source=QA,
            domain=self.domain,
            trust=self.trust,
            writer=self.writer,
            metadata=metadata,
            confidence=self.quality or 0.0,
        )


@dataclass(frozen=True)
class Statement:
    """A node that is written unless memory holds it in other words; `derived_from` as of Answered."""

    node: NewNode
    derived_from: tuple[int, ...] = ()
    key: str = ""
    session: str = ""
    turn: int = 1

    @property
    def provenance(self) -> dict[str, object]:
        return {"writer": self.node.writer, "at": datetime.now(UTC).isoformat(timespec="seconds")}


@dataclass(frozen=True)
class Prepared:
    """What can be written: clean text, its vector (d,) and that of an answer's question alone, and what two share."""

    what: Answered | Statement
    vector: Vector
    question: Vector | None
    limits: Thresholds
    jaccard: float

    @property
    def node(self) -> NewNode:
        return self.what.node


def write_back(connection: Connection, embedder: EmbeddingAdapter, settings: Settings, answered: Answered) -> WriteBack:
    """Decide and write, in the transaction of `connection`.

    Raises:
        InputError: the quality is outside [0, 1], or the key or session is unacceptable.
    """
    if answered.key and (known := writes.first_outcomes(connection, [writes.clean_key(answered.key)])):
        return known[writes.clean_key(answered.key)]  # before anything is embedded
    return commit(connection, answered, prepare(embedder, settings, answered))


def remember(connection: Connection, embedder: EmbeddingAdapter, settings: Settings, told: Statement) -> WriteBack:
    """Write a statement unless memory holds it, in these or in other words; in the transaction of `connection`.

    Raises:
        InputError: the text, key or session is unacceptable.
    """
    if told.key and (known := writes.first_outcomes(connection, [writes.clean_key(told.key)])):
        return known[writes.clean_key(told.key)]
    return commit(connection, told, prepare_statement(embedder, settings, told))


def write(database: Database, embedder: EmbeddingAdapter, settings: Settings, what: Answered | Statement) -> WriteBack:
    """As `write_back` or `remember`, in a transaction of its own that holds nothing while it embeds.

    A deadlock with other writers is no failure: what was broken off is done again.
    """
    if what.key:
        with database.transaction() as connection:
            known = writes.first_outcomes(connection, [writes.clean_key(what.key)])
        if known:
            return known[writes.clean_key(what.key)]
    if isinstance(what, Answered):
        prepared = prepare(embedder, settings, what)
    else:
        prepared = prepare_statement(embedder, settings, what)
    return database.run(lambda connection: commit(connection, what, prepared))


def prepare(embedder: EmbeddingAdapter, settings: Settings, answered: Answered) -> Prepared | WriteBack:
    """What is to be written, embedded; or why nothing is. Touches no database."""
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
    question = embedder.embed_one(clean.question)  # it was embedded when it was asked
    [whole] = embedder.embed([clean.text])
    return Prepared(clean, whole, question, thresholds(embedder.id, settings), settings.duplicate_jaccard)


def prepare_statement(embedder: EmbeddingAdapter, settings: Settings, told: Statement) -> Prepared:
    """As `prepare`; a vector that the node brings is taken as it is."""
    node = replace(told.node, text=clean_text(told.node.text, f"text of a {told.node.kind}"))
    vector = embedder.embed([node.text])[0] if node.embedding is None else node.embedding
    limits = thresholds(embedder.id, settings)
    return Prepared(replace(told, node=node), vector, None, limits, settings.duplicate_jaccard)


def commit(connection: Connection, what: Answered | Statement, prepared: Prepared | WriteBack) -> WriteBack:
    """Write what was prepared, once by its key; in the transaction of `connection`."""
    if what.key and (known := writes.claim(connection, [writes.clean_key(what.key)])):
        return known[writes.clean_key(what.key)]
    result = prepared if isinstance(prepared, WriteBack) else _settle(connection, prepared)
    session = writes.clean_key(what.session, "session") if what.session else ""
    if what.key:
        writes.fulfil(connection, {writes.clean_key(what.key): result}, session, what.turn)
    elif session:
        writes.took_place(connection, result, session, what.turn)
    return result


def _before(connection: Connection, prepared: Prepared) -> list[int]:
    """The node of the session's turn before, if there is one that the writer may see."""
    what = prepared.what
    if not what.session:
        return []
    found = writes.previous(connection, writes.clean_key(what.session, "session"), what.turn)
    nodes = rows.get(connection, [found]) if found is not None else []
    return [node.id for node in nodes if visible(node, prepared.node.writer)]


def _cleaned(answered: Answered) -> Answered:
    question, answer = clean_text(answered.question, "question"), clean_text(answered.answer, "answer")
    clean = replace(answered, question=question, answer=answer)
    clean_text(clean.text, "question and answer together", LIMIT)
    return clean


def _settle(connection: Connection, prepared: Prepared) -> WriteBack:
    _take_turn(connection)
    hash = content_hash(prepared.node.kind, prepared.node.text)
    known = rows.live(connection, [hash]).get(hash)
    near, topics = _near(connection, prepared, [known.id] if known else [])
    alike = _alike(connection, prepared, near, known.id if known else None)
    for node in alike:
        if _same_content(node, prepared.what):
            return _strengthened(connection, node, prepared)
    rivals = [node for node in alike if visible(node, prepared.node.writer)]
    mine = rank(prepared.node.trust, prepared.node.confidence)
    if better := next((n for n in rivals if rank(n.trust, n.confidence) >= mine), None):
        return WriteBack("skipped", better.id, f"node {better.id} holds another answer that is at least as good")
    return _written(connection, prepared, rivals, topics)


def _take_turn(connection: Connection) -> None:
    """Write-backs of one tenant take turns: what one looks for, another may be about to write in other words."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('write-back ' || current_setting('app.tenant'), 0))"
    )


def _near(connection: Connection, prepared: Prepared, known: Sequence[int]) -> tuple[list[Nearby], list[Nearby]]:
    """Live nodes that might be the same, and those of one topic that the writer may see, the nearest first."""
    vectors = [prepared.vector] if prepared.question is None else [prepared.vector, prepared.question]
    found, mates = candidates.around(connection, vectors, signed(prepared.node.text), _NEAREST)
    topical = [id for id, similarity in found[0].items() if similarity >= prepared.limits.topic][: _TOPICS + 1]
    near = candidates.of_interest(
        connection, {*mates, *known, *(id for each in found for id in each)}, prepared.vector, prepared.node.kind,
        prepared.node.source, topical,
    )  # fmt: skip
    topics = [each for each in near if each.node.id in topical and visible(each.node, prepared.node.writer)]
    return near, sorted(topics, key=lambda each: -each.similarity)


def _alike(connection: Connection, prepared: Prepared, near: Sequence[Nearby], known: int | None) -> list[Node]:
    """Nodes about the same thing, the oldest first, locked; `known` holds this very text or took it in.

    Nearness (cosine, MinHash) only finds them, the wording decides: another answer can pull one question's rows apart,
    and two questions that differ in a name can be nearer than any threshold.
    """
    alike = [each.node.id for each in near if each.node.id == known or _same(each, prepared)]
    return candidates.lock_live(connection, alike) if alike else []


def _same(near: Nearby, prepared: Prepared) -> bool:
    node, new, limits = near.node, prepared.node, prepared.limits
    if (node.kind, node.source) != (new.kind, new.source):
        return False
    if isinstance(prepared.what, Answered):
        held, asked = str(node.metadata.get("question", "")), prepared.what.question
        answers = str(node.metadata.get("answer", "")), prepared.what.answer
        alike = same_fact((held, answers[0]), (asked, answers[1]), near.similarity, limits.paraphrase)
    else:
        held, asked = node.text, new.text
        alike = same_statement(held, asked, near.similarity, limits.paraphrase, prepared.jaccard)
    return alike and (same_question(held, asked) or _may_stand_for(node, new))


def _may_stand_for(node: Node, new: NewNode) -> bool:
    """Near another's text anyone can come: other words of it neither raise its trust nor vanish in what is hidden."""
    return visible(node, new.writer) and TRUST[node.trust] >= TRUST[new.trust]


def _same_content(node: Node, what: Answered | Statement) -> bool:
    return isinstance(what, Statement) or same_answer(str(node.metadata.get("answer", "")), what.answer)


def _strengthened(connection: Connection, node: Node, prepared: Prepared) -> WriteBack:
    new = prepared.node
    trust = raised_trust(node.trust, node.writer, new.trust, new.writer)
    merge.strengthen(connection, node.id, new.confidence, trust, prepared.what.provenance)
    merge.touch(connection, [node.id])
    follows = [id for id in _before(connection, prepared) if id != node.id]
    if follows:
        edges.link(connection, [(node.id, id, "Follows", 1.0) for id in follows], _AUTHOR)
    what = "answer" if isinstance(prepared.what, Answered) else "statement"
    return WriteBack("merged", node.id, f"node {node.id} holds the same {what}")


def _written(connection: Connection, prepared: Prepared, rivals: Sequence[Node], topics: Sequence[Nearby]) -> WriteBack:
    node = prepared.node
    version = max((rival.version for rival in rivals), default=0) + 1
    hash = content_hash(node.kind, node.text)
    [id] = rows.insert(connection, [Ready(node, hash, prepared.vector, version)])
    if id is None:  # the same text came by another door, as a node of another source
        return WriteBack("skipped", None, f"a {node.kind} with the same text is there already")
    for rival in rivals:
        merge.absorb(connection, id, rival.id, why="another answer, with more trust or quality", by=_AUTHOR)
    _link(connection, prepared, id, rivals, topics)
    old = ", ".join(str(rival.id) for rival in rivals)
    return WriteBack("written", id, f"version {version}, supersedes node {old}" if rivals else "")


def _link(
    connection: Connection, prepared: Prepared, id: int, rivals: Sequence[Node], topics: Sequence[Nearby]
) -> None:
    gone = {rival.id for rival in rivals}
    drawn: list[edges.Edge] = [
        (id, source, "Derived", 1.0) for source in dict.fromkeys([*prepared.what.derived_from, *sorted(gone)])
    ]
    drawn += [(id, before, "Follows", 1.0) for before in _before(connection, prepared) if before not in gone]
    drawn += [
        (id, each.node.id, "SameTopic", min(1.0, each.similarity)) for each in topics if each.node.id not in gone
    ][:_TOPICS]
    if drawn:
        edges.link(connection, drawn, _AUTHOR)
