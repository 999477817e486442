"""Merge duplicates among live nodes of one kind and source. Knows nothing of the night that calls it.

Candidates come from shared MinHash bands and from HNSW; whether they are one is decided on the texts: Facts from
answers by their question, the conflict rule choosing among answers; other nodes by equal text, by equal names and
numbers with Jaccard over the threshold, or by the same content words with cosine over the threshold. Each batch of new
nodes is one transaction with the mark how far it went, so a killed run goes on and a second one finds nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory import candidates, merge
from ruvllm.memory.conflict import may_absorb, raised_trust, survivor
from ruvllm.memory.minhash import jaccard
from ruvllm.memory.records import Node
from ruvllm.memory.wording import normal, same_answer, same_names, same_question
from ruvllm.memory.writeback import QA
from ruvllm.progress import Progress, silent
from ruvllm.settings import Settings

_BATCH = 100
_NEAREST = 8  # neighbours looked at a node

_COUNT = """
    SELECT count(*) FILTER (WHERE archived_at IS NULL), count(*) FILTER (WHERE archived_at IS NULL AND id > %(after)s)
    FROM memory.nodes
"""

_NEXT = "SELECT id FROM memory.nodes WHERE id > %(after)s AND archived_at IS NULL ORDER BY id LIMIT %(batch)s"

_MARK = """
    INSERT INTO memory.maintained (tenant, last_node) VALUES (current_setting('app.tenant'), %(last)s)
    ON CONFLICT (tenant) DO UPDATE SET last_node = greatest(memory.maintained.last_node, excluded.last_node)
"""


@dataclass(frozen=True)
class MaintainReport:
    """What a run looked at and did; `archived` are the merged ones, which stay as old versions."""

    nodes_before: int
    checked: int
    merged_exact: int
    merged_near: int
    archived: int
    nodes_after: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def maintain(
    database: Database, settings: Settings, progress: Progress = silent, everything: bool = False
) -> MaintainReport:
    """Check the nodes that came since the last run, or all, against every live node."""
    with database.transaction() as connection:
        after = 0 if everything else _last(connection)
        before, total = _counted(connection, after)
    report = MaintainReport(before, 0, 0, 0, 0, before)
    while True:
        with database.transaction() as connection:
            values = {"after": after, "batch": _BATCH}
            ids = [row[0] for row in connection.execute(_NEXT, values)]
            if not ids:
                break
            report = _merge_batch(connection, settings, ids, report)
            after = ids[-1]
            connection.execute(_MARK, {"last": after})
        progress(report.checked, max(total, report.checked), f"{report.archived} merged")
    with database.transaction() as connection:
        return replace(report, nodes_after=_counted(connection, 0)[0])


def _last(connection: Connection) -> int:
    row = connection.execute("SELECT last_node FROM memory.maintained").fetchone()
    return int(row[0]) if row else 0


def _counted(connection: Connection, after: int) -> tuple[int, int]:
    row = connection.execute(_COUNT, {"after": after}).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _merge_batch(connection: Connection, settings: Settings, ids: list[int], report: MaintainReport) -> MaintainReport:
    exact = near = 0
    pairs = _pairs(connection, settings, ids)
    nodes = {node.id: node for node in candidates.lock_live(connection, {id for pair, _ in pairs for id in pair})}
    for (newer, older), similarity in pairs:
        if newer not in nodes or older not in nodes:
            continue  # merged a moment ago
        how = likeness(nodes[newer], nodes[older], similarity, settings)
        if how is None or not (loser := _merged(connection, nodes[newer], nodes[older])):
            continue
        del nodes[loser]
        exact, near = exact + (how == "exact"), near + (how == "near")
    return replace(
        report,
        checked=report.checked + len(ids),
        merged_exact=report.merged_exact + exact,
        merged_near=report.merged_near + near,
        archived=report.archived + exact + near,
    )


def _pairs(connection: Connection, settings: Settings, ids: list[int]) -> list[tuple[tuple[int, int], float]]:
    """((newer, older), cosine), each pair once, in the order in which the newer came; cosine 0 where it is not near."""
    near = candidates.neighbours(connection, ids, _NEAREST, settings.duplicate_cosine)
    return sorted({**dict.fromkeys(candidates.band_mates(connection, ids), 0.0), **near}.items())


def likeness(first: Node, second: Node, similarity: float, settings: Settings) -> str | None:
    """How two nodes are duplicates: exact | near | None where they are not."""
    if (first.kind, first.source) != (second.kind, second.source):
        return None
    if normal(first.text) == normal(second.text):
        return "exact"
    if first.source == QA:
        return "near" if same_question(_part(first, "question"), _part(second, "question")) else None
    if jaccard(first.text, second.text) >= settings.duplicate_jaccard and same_names(first.text, second.text):
        return "near"
    close = similarity >= settings.duplicate_cosine
    return "near" if close and same_question(first.text, second.text) else None


def _part(node: Node, name: str) -> str:
    return str(node.metadata.get(name, node.text))


def _merged(connection: Connection, first: Node, second: Node) -> int | None:
    """Merge by the conflict rule and return the id of the one that went, or None where it must stay."""
    stays = survivor((first, second))
    goes = second if stays is first else first
    if not may_absorb(stays, goes) or not merge.absorb(connection, stays.id, goes.id):
        return None
    agree = stays.source != QA or same_answer(_part(stays, "answer"), _part(goes, "answer"))
    confidence = goes.confidence if agree else stays.confidence
    merge.strengthen(
        connection, stays.id, confidence, _trust(stays, goes), {"merged": goes.uuid, "writer": goes.writer}
    )
    return goes.id


def _trust(stays: Node, goes: Node) -> str:
    """Only the same text corroborates: near another's text anyone can come."""
    if normal(stays.text) != normal(goes.text):
        return stays.trust
    return raised_trust(stays.trust, stays.writer, goes.trust, goes.writer)
