"""Many small nodes about one thing become a Concept that sums them up; the raw ones stay, archived behind it.

Knows nothing of models: it is handed what summarises. Only nodes of one domain, one trust and one audience are put
together, so nobody reads in a Concept what they could not read before. By default a member is superseded only where the
summary covers it (its names, numbers and answer stand in it); the others stay found as they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.memory import edges, rows
from ruvllm.memory.likeness import candidates
from ruvllm.memory.likeness.wording import normal, wording
from ruvllm.memory.records import NewNode, Node, Vector
from ruvllm.memory.rows import Ready, content_hash
from ruvllm.memory.tidy import clusters, merge, runs
from ruvllm.memory.tidy.canary import holds
from ruvllm.memory.tidy.runs import Running
from ruvllm.memory.tidy.summarise import EXTRACTIVE, Summarise, Summary, summary
from ruvllm.memory.writing.writeback import QA
from ruvllm.progress import Progress, silent

KINDS = ("Query", "AgentStep", "Fact")  # Facts only where they are written-back answers
PROTECTED = ("Document", "Concept")
_AUTHOR = "compaction"
_SOURCE = "compaction"
_MOST = 20_000  # nodes looked at a run, the oldest first: their vectors are held in memory
_REST_DAYS = 30  # what was taken back is not tried again before

_CANDIDATES = """
    SELECT n.id, n.created_at, n.embedding FROM memory.nodes n
    WHERE n.archived_at IS NULL AND n.kind = ANY(%(kinds)s) AND n.created_at <= now() - make_interval(days => %(days)s)
      AND NOT EXISTS (SELECT FROM memory.supersessions s WHERE s.node = n.id AND s.by = %(by)s
                      AND s.undone_at > now() - make_interval(days => %(rest)s))
    ORDER BY n.id LIMIT %(most)s
"""
_SPAN = "UPDATE memory.nodes SET span_start = %(first)s, span_end = %(last)s WHERE id = %(id)s"

Policy = Literal["covered", "all"]


@dataclass(frozen=True)
class Cluster:
    """Nodes that one Concept may stand for, the most central first."""

    nodes: tuple[Node, ...]
    first: datetime  # when the oldest was written
    last: datetime

    @property
    def ids(self) -> list[int]:
        return [node.id for node in self.nodes]


@dataclass(frozen=True)
class Compacted:
    """A cluster of a run: its members, and the Concept that was made (None: none was, or the run was dry)."""

    members: tuple[int, ...]
    text: str  # the most central member's
    concept: int | None = None
    superseded: int = 0
    by: str = ""
    why: str = ""  # why no Concept was made, or why not by the model


@dataclass(frozen=True)
class CompactionReport:
    run: int
    status: str  # done | rolled_back
    dry: bool
    candidates: int
    clusters: tuple[Compacted, ...]
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        made = [each for each in self.clusters if each.concept is not None]
        return {
            "run": self.run, "status": self.status, "dry_run": self.dry, "candidates": self.candidates,
            "clusters": len(self.clusters), "concepts": len(made), "superseded": sum(e.superseded for e in made),
            "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True)
class Options:
    """`similarity` is each member's least cosine to the centre; `policy` says which members are superseded."""

    kinds: Sequence[str] = KINDS
    protect: Sequence[str] = PROTECTED
    least: int = 5  # members
    similarity: float = 0.8
    older_than_days: int = 7  # younger ones are still being corroborated
    policy: Policy = "covered"
    most: int = _MOST

    @property
    def wanted(self) -> list[str]:
        return [kind for kind in self.kinds if kind not in self.protect]


@dataclass
class _Work:
    """What every step of a run needs."""

    run: Running
    embedder: EmbeddingAdapter
    summarise: Summarise
    name: str
    options: Options
    done: list[Compacted] = field(default_factory=list)


def compact(
    database: Database,
    embedder: EmbeddingAdapter,
    summarise: Summarise,
    name: str = "model",
    options: Options = Options(),
    apply: bool | None = None,
    cap: int | None = None,
    progress: Progress = silent,
) -> CompactionReport:
    """Find clusters and make a Concept of each, a transaction a cluster; a dry run shows the clusters only.

    Args:
        summarise: texts to one text, the most central first; `name` is kept with what it wrote.
        apply: None is a dry run until one is on record; `runs.tidying` says more, of `cap` too.

    Raises:
        DatabaseError: another run of this tenant is under way, or Postgres went away: what was done by then is whole.
    """
    with runs.tidying(database, "compaction", apply, cap) as run:
        looked_at, found = find(database, options)
        work = _Work(run, embedder, summarise, name, options)
        for n, cluster in enumerate(found, start=1):
            work.done.append(_shown(cluster) if run.dry else _compacted(work, cluster))
            progress(n, len(found), cluster.nodes[0].text[:60])
        run.count(clusters=len(found))
        with run.batch():
            pass  # the counts are the run's own
    ended = runs.find(database, run.id)
    return CompactionReport(run.id, ended.status, run.dry, looked_at, tuple(work.done), ended.reason)


def find(database: Database, options: Options = Options()) -> tuple[int, list[Cluster]]:
    """How many nodes were looked at, and the clusters among them, the biggest first."""
    values = {"kinds": options.wanted, "days": options.older_than_days, "by": _AUTHOR, "rest": _REST_DAYS,
              "most": options.most}  # fmt: skip
    with database.transaction() as connection:
        found = connection.cursor(binary=True).execute(_CANDIDATES, values).fetchall()
        nodes = rows.get(connection, [row[0] for row in found])
    when = {row[0]: row[1] for row in found}
    vectors = {row[0]: row[2].to_numpy().astype(np.float32) for row in found}
    audiences = defaultdict(list)
    for node in nodes:
        if node.kind != "Fact" or node.source == QA:
            audiences[audience(node)].append(node)
    grouped = [each for alike in audiences.values() for each in _clusters(alike, vectors, when, options)]
    return sum(map(len, audiences.values())), sorted(grouped, key=lambda cluster: -len(cluster.nodes))


def audience(node: Node) -> tuple[str, str, str]:
    """Nodes that differ in this are never put together."""
    return node.domain, node.trust, node.writer if node.trust == "untrusted" else ""


def _clusters(
    nodes: Sequence[Node], vectors: dict[int, Vector], when: dict[int, datetime], options: Options
) -> Iterator[Cluster]:
    matrix = np.stack([vectors[node.id] for node in nodes])  # (n, d)
    for group in clusters.groups(matrix, options.similarity, options.least):
        members = tuple(nodes[i] for i in group)
        times = [when[node.id] for node in members]
        yield Cluster(members, min(times), max(times))


def _shown(cluster: Cluster, why: str = "") -> Compacted:
    return Compacted(tuple(cluster.ids), cluster.nodes[0].text, why=why)


def _compacted(work: _Work, cluster: Cluster) -> Compacted:
    """The model is asked outside of any transaction; what it was asked about has to be the same afterwards."""
    if work.run.left < 2:
        return _shown(cluster, f"the run's cap of {work.run.cap} rows is reached")
    told = summary([node.text for node in cluster.nodes], work.summarise, work.name)
    chosen = [n for n, node in enumerate(cluster.nodes) if work.options.policy == "all" or covered(node, told, n)]
    chosen = chosen[: work.run.left]
    if len(chosen) < 2:
        return _shown(cluster, f"the summary covers {len(chosen)} of {len(cluster.nodes)} members")
    vector = work.embedder.embed([told.text])[0]
    with work.run.batch() as connection:
        if [_essence(node) for node in candidates.lock_live(connection, cluster.ids)] != sorted(
            map(_essence, cluster.nodes)
        ):
            return _shown(cluster, "its members changed meanwhile")
        return _written(work, connection, cluster, told, vector, chosen)


def _essence(node: Node) -> tuple[int, str, str, str]:
    return node.id, node.text, node.trust, node.domain


def _written(
    work: _Work, connection: Connection, cluster: Cluster, told: Summary, vector: Vector, chosen: Sequence[int]
) -> Compacted:
    concept = _concept(cluster, told, work.run.id)
    [id] = rows.insert(connection, [Ready(concept, content_hash(concept.kind, concept.text), vector)])
    if id is None:
        return _shown(cluster, "a Concept with that very text is there already")
    connection.execute(_SPAN, {"id": id, "first": cluster.first, "last": cluster.last})
    for n in chosen:
        merge.absorb(connection, id, cluster.nodes[n].id, f"summed up with {len(cluster.nodes)}", _AUTHOR)
    edges.link(connection, [(id, node.id, "Contains", 1.0) for node in cluster.nodes], _AUTHOR)
    work.run.count(len(chosen), concepts=1, superseded=len(chosen))
    return Compacted(tuple(cluster.ids), cluster.nodes[0].text, id, len(chosen), told.by, told.refused)


def _concept(cluster: Cluster, told: Summary, run: int) -> NewNode:
    domain, trust, writer = audience(cluster.nodes[0])
    metadata: dict[str, object] = {"summarised_by": told.by, "members": len(cluster.nodes), "run": run}
    return NewNode(
        text=told.text,
        kind="Concept",
        source=_SOURCE,
        domain=domain,
        trust=trust,  # all members have it
        writer=writer,
        metadata={**metadata, "refused": told.refused} if told.refused else metadata,
        confidence=min(node.confidence for node in cluster.nodes),
    )


def covered(node: Node, told: Summary, place: int) -> bool:
    """Whether the summary holds what the node says: word for word, or its names and numbers, and an answer whole."""
    if told.included[place] or told.by == EXTRACTIVE:
        return told.included[place]
    question, answer = (node.metadata.get("question"), node.metadata.get("answer")) if node.source == QA else ("", "")
    if answer and not holds(told.text, str(answer)):
        return False
    said, asked = wording(told.text), wording(str(question or node.text))
    marks, kept = asked.marks(said), said.marks(asked)
    if not marks.mixed:
        return normal(node.text) in normal(told.text)
    return set(marks.mixed) <= set(said.words) and set(marks.telling) <= set(kept.telling)
