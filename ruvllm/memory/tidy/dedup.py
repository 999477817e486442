"""Merge duplicates among live nodes of one kind and source. Knows nothing of the night that calls it.

Candidates come from shared MinHash bands and from HNSW; whether they are one is decided on the texts: Facts from
answers by their question, the conflict rule choosing among answers; other nodes by equal text, by equal names and
numbers with Jaccard over the threshold, or by the same content words with cosine over the threshold. Each batch of new
nodes is one transaction with the mark how far it went, so a killed run goes on and a second one finds nothing. A pair
whose merge somebody undid is left apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory import rows
from ruvllm.memory.likeness import candidates
from ruvllm.memory.likeness.conflict import may_absorb, raised_trust, survivor
from ruvllm.memory.likeness.minhash import jaccard
from ruvllm.memory.likeness.wording import normal, same_answer, same_names, same_question
from ruvllm.memory.records import Node
from ruvllm.memory.tidy import merge, runs
from ruvllm.memory.tidy.runs import Running
from ruvllm.memory.writing.writeback import QA
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


_UNDONE = """
    SELECT s.node, s.heir FROM memory.supersessions s
    LEFT JOIN memory.runs r ON r.id = s.run
    WHERE s.node = ANY(%(ids)s) AND s.undone_at IS NOT NULL AND coalesce(r.status, 'undone') = 'undone'
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


@dataclass(frozen=True)
class DedupReport:
    """A run and what it did, or, where it was `dry`, what it would have done; `capped`: there is more to merge."""

    run: int
    status: str  # done | rolled_back
    dry: bool
    capped: bool
    done: MaintainReport
    pairs: tuple[tuple[int, int, str], ...]  # (node, heir, exact | near), the first 100

    def as_dict(self) -> dict[str, object]:
        merged = self.done.merged_exact, self.done.merged_near
        figures = replace(self.done, merged_exact=0, merged_near=0, archived=0) if self.dry else self.done
        would = {"would_merge_exact": merged[0], "would_merge_near": merged[1]} if self.dry else {}
        return {**figures.as_dict(), **would, "run": self.run, "status": self.status, "dry_run": self.dry,
                "capped": self.capped}  # fmt: skip


@dataclass(frozen=True)
class _Merge:
    """A decision: `stays` takes `goes` in and becomes `heir` by it."""

    stays: Node
    goes: Node
    heir: Node
    how: str  # exact | near
    newer: int  # the node that was being checked


@dataclass
class _Tally:
    """How far a run is; `gone` lets a dry run decide as a real one would."""

    after: int
    checked: int = 0
    merges: list[_Merge] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    capped: bool = False

    def merged(self, how: str) -> int:
        return sum(each.how == how for each in self.merges)


def maintain(
    database: Database, settings: Settings, progress: Progress = silent, everything: bool = False
) -> MaintainReport:
    """Merge among the nodes that came since the last run, or among all, now; `dedup` is the careful door."""
    return dedup(database, settings, progress, everything, apply=True).done


def dedup(
    database: Database,
    settings: Settings,
    progress: Progress = silent,
    everything: bool = False,
    apply: bool | None = None,
    cap: int | None = None,
    protect: Sequence[str] = (),
) -> DedupReport:
    """Check the nodes that came since the last run, or all, against every live node.

    Args:
        apply: None is a dry run until one is on record; `runs.tidying` says more, of `cap` too.
        protect: kinds that are not merged.

    Raises:
        DatabaseError: another run of this tenant is under way, or Postgres went away: what was done by then is whole.
    """
    with database.transaction() as connection:
        tally = _Tally(0 if everything else _last(connection))
        before, total = _counted(connection, tally.after)
    with runs.tidying(database, "dedup", apply, cap) as run:
        while not tally.capped and _batch(run, settings, tally, protect):
            progress(tally.checked, max(total, tally.checked), f"{len(tally.merges)} merged")
    return _report(database, run, tally, before)


def _report(database: Database, run: Running, tally: _Tally, before: int) -> DedupReport:
    exact, near = tally.merged("exact"), tally.merged("near")
    with database.transaction() as connection:
        after = _counted(connection, 0)[0]
    done = MaintainReport(before, tally.checked, exact, near, exact + near, after)
    pairs = tuple((each.goes.id, each.stays.id, each.how) for each in tally.merges[:100])
    return DedupReport(run.id, runs.find(database, run.id).status, run.dry, tally.capped, done, pairs)


def _batch(run: Running, settings: Settings, tally: _Tally, protect: Sequence[str]) -> bool:
    """Check the next nodes; False where there are none."""
    with run.batch() as connection:
        ids = [row[0] for row in connection.execute(_NEXT, {"after": tally.after, "batch": _BATCH})]
        if not ids:
            return False
        merges = _decided(connection, settings, ids, tally, protect, run.dry)
        chosen = merges[: run.left]
        tally.capped = len(chosen) < len(merges)
        checked = ids if not tally.capped else [id for id in ids if id < merges[len(chosen)].newer]
        for each in [] if run.dry else chosen:
            _apply(connection, each)
        tally.merges += chosen
        _note(connection, run, tally, checked, chosen)
    return True


def _note(connection: Connection, run: Running, tally: _Tally, checked: list[int], chosen: list[_Merge]) -> None:
    """Count, and move the mark; a dry run moves it no further than to the first pair that it would merge."""
    run.count(len(chosen), checked=len(checked), merged=0 if run.dry else len(chosen))
    tally.checked += len(checked)
    tally.after = checked[-1] if checked else tally.after
    mark = tally.after if not run.dry else min([tally.after, *(each.newer - 1 for each in tally.merges)])
    connection.execute(_MARK, {"last": mark})


def _last(connection: Connection) -> int:
    row = connection.execute("SELECT last_node FROM memory.maintained").fetchone()
    return int(row[0]) if row else 0


def _counted(connection: Connection, after: int) -> tuple[int, int]:
    row = connection.execute(_COUNT, {"after": after}).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _decided(
    connection: Connection, settings: Settings, ids: list[int], tally: _Tally, protect: Iterable[str], dry: bool
) -> list[_Merge]:
    """What to merge, in order; each decision sees what the ones before it did."""
    pairs = _pairs(connection, settings, ids)
    found = {id for pair, _ in pairs for id in pair} - tally.gone
    held = rows.get(connection, sorted(found)) if dry else candidates.lock_live(connection, found)
    nodes = {node.id: node for node in held if node.kind not in set(protect)}
    apart = {frozenset(pair) for pair in connection.execute(_UNDONE, {"ids": list(nodes)})}
    merges = []
    for (newer, older), similarity in pairs:
        if newer not in nodes or older not in nodes or frozenset((newer, older)) in apart:
            continue  # merged a moment ago, protected, or taken apart by somebody
        if each := _decide(nodes[newer], nodes[older], similarity, settings):
            merges.append(each)
            nodes[each.stays.id] = each.heir
            del nodes[each.goes.id]
            tally.gone.add(each.goes.id)
    return merges


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


def _decide(newer: Node, older: Node, similarity: float, settings: Settings) -> _Merge | None:
    """By the conflict rule; None where they are two, or the one that would go must stay."""
    how = likeness(newer, older, similarity, settings)
    if how is None:
        return None
    stays = survivor((newer, older))
    goes = older if stays is newer else newer
    if not may_absorb(stays, goes):
        return None
    agree = stays.source != QA or same_answer(_part(stays, "answer"), _part(goes, "answer"))
    confidence = max(stays.confidence, goes.confidence) if agree else stays.confidence
    heir = replace(stays, confidence=confidence, trust=_trust(stays, goes))
    return _Merge(stays, goes, heir, how, newer.id)


def _apply(connection: Connection, each: _Merge) -> None:
    """Both rows are locked, so what was decided still holds."""
    heir, goes = each.heir, each.goes
    if not merge.absorb(connection, heir.id, goes.id, f"{each.how} duplicate", "dedup"):
        raise AssertionError(f"node {goes.id} was locked and live")
    entry = {"merged": goes.uuid, "writer": goes.writer}
    merge.strengthen(connection, heir.id, heir.confidence, heir.trust, entry)


def _trust(stays: Node, goes: Node) -> str:
    """Only the same text corroborates: near another's text anyone can come."""
    if normal(stays.text) != normal(goes.text):
        return stays.trust
    return raised_trust(stays.trust, stays.writer, goes.trust, goes.writer)
