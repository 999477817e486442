"""Edges learn: stronger on the way to good answers, weaker on the way to bad ones, and fading while nobody uses them.

Knows nothing of nodes. A weight halves in 30 days without use (specification 4.2, decision "edges learn"), in whole
weeks: an edge is rewritten, with the packed rows of its ends and the replicas' log, at most once a week and not every
night. `decayed_at` says until when its time was taken off, so a second run on one day finds nothing to do. Provenance
(Derived, Contains) does not fade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from psycopg import Connection

from ruvllm.database.pool import Database
from ruvllm.memory.tidy import journal, runs
from ruvllm.memory.tidy.runs import Running
from ruvllm.progress import Progress, silent

HALF_LIFE_DAYS = 30
STEP_DAYS = 7
FLOOR = 0.05  # lighter edges are pruned: 130 days without use from weight 1
FADING = ("Cites", "Follows", "SameTopic", "AgentStep")
GOOD, BAD = 0.75, 0.25  # quality from which, and up to which, edges learn
RATE = 0.1  # of the way to 1, or of the weight
_BATCH = 5_000

_DUE = """
    WITH due AS (
        SELECT id, weight, decayed_at, src, dst, greatest(last_used_at, coalesce(decayed_at, created_at)) AS since
        FROM memory.edges
        WHERE id > %(after)s AND rel = ANY(%(fading)s)
          AND greatest(last_used_at, coalesce(decayed_at, created_at)) <= %(now)s - make_interval(days => %(step)s)
        ORDER BY id LIMIT %(batch)s FOR UPDATE  -- what is learnt meanwhile waits, and is not overwritten
    )
    SELECT id, weight, decayed_at, src, dst, (weight * power(0.5, weeks * %(step)s / %(half)s::float8))::real,
           since + make_interval(days => weeks * %(step)s)
    FROM due CROSS JOIN LATERAL (
        SELECT floor(extract(epoch FROM %(now)s - since) / (86400 * %(step)s))::int) AS w (weeks)
    ORDER BY id
"""
_FADE = """
    UPDATE memory.edges AS e SET weight = w.new, decayed_at = w.at
    FROM unnest(%(ids)s::bigint[], %(new)s::real[], %(at)s::timestamptz[]) AS w (id, new, at) WHERE e.id = w.id
"""
_PRUNE = "DELETE FROM memory.edges WHERE id = ANY(%(ids)s)"
_REINFORCE = """
    WITH on_the_way AS (  -- locked in order, so that two answers never wait for each other
        SELECT id FROM memory.edges WHERE src = ANY(%(ids)s) AND dst = ANY(%(ids)s) ORDER BY id FOR UPDATE
    )
    UPDATE memory.edges AS e SET uses = uses + 1, last_used_at = now(), weight = CASE
        WHEN %(good)s THEN weight + (1 - weight) * %(rate)s::real ELSE weight * (1 - %(rate)s::real) END
    FROM on_the_way WHERE e.id = on_the_way.id
"""


@dataclass(frozen=True)
class DecayReport:
    """Edges that were due, that lost weight, that were pruned; of a dry run what would have happened."""

    run: int
    status: str
    dry: bool
    faded: int
    pruned: int
    capped: bool

    def as_dict(self) -> dict[str, object]:
        return {("dry_run" if name == "dry" else name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class _Edge:
    id: int
    weight: float
    decayed_at: datetime | None
    src: int
    dst: int
    new: float
    at: datetime


def decay(
    database: Database,
    floor: float = FLOOR,
    apply: bool | None = None,
    cap: int | None = None,
    progress: Progress = silent,
    now: datetime | None = None,
) -> DecayReport:
    """Fade the edges that are due, and prune those that fall below `floor`.

    Args:
        apply: None is a dry run until one is on record. The cap is of pruned edges; fading loses none.
        now: until when non-use counts; for tests and for a look ahead in a dry run.
    """
    at = now or datetime.now(UTC)
    after, light = 0, 0
    with runs.tidying(database, "decay", apply, cap, watched=False) as run:
        while True:
            with run.batch() as connection:
                due = _due(connection, after, at)
                light += sum(edge.new < floor for edge in due)
                _faded(run, connection, due, floor)
            if len(due) < _BATCH:
                break
            after = due[-1].id
            progress(run.counts["faded"], run.counts["faded"], f"{run.counts['pruned']} pruned")
    status = runs.find(database, run.id).status
    counts = run.counts
    return DecayReport(run.id, status, run.dry, counts["faded"], counts["pruned"], light > counts["pruned"])


def _due(connection: Connection, after: int, now: datetime) -> list[_Edge]:
    values = {"after": after, "now": now, "fading": list(FADING), "step": STEP_DAYS, "half": HALF_LIFE_DAYS,
              "batch": _BATCH}  # fmt: skip
    return [_Edge(*row) for row in connection.execute(_DUE, values)]


def _faded(run: Running, connection: Connection, due: Sequence[_Edge], floor: float) -> None:
    """Pruned edges are journalled one by one, by their trigger; faded ones, which are many, in one row."""
    light = [edge.id for edge in due if edge.new < floor][: run.left]
    fading = [edge for edge in due if edge.id not in set(light)]
    run.count(len(light), faded=len(fading), pruned=len(light))
    if run.dry or not due:
        return
    connection.execute(_PRUNE, {"ids": light})
    connection.execute("SELECT set_config('app.run', '', true)")
    changes: list[dict[str, object]] = [
        {"id": e.id, "old": e.weight, "new": e.new, "decayed_at": _stamp(e.decayed_at)} for e in fading
    ]
    journal.note_weights(connection, run.id, changes)
    values = {"ids": [e.id for e in fading], "new": [e.new for e in fading], "at": [e.at for e in fading]}
    connection.execute(_FADE, values)


def _stamp(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def reinforce(connection: Connection, nodes: Sequence[int], quality: float) -> int:
    """Teach the edges among the `nodes` that an answer was made from: stronger by a good one, weaker by a bad one.

    Args:
        quality: of the answer, in [0, 1]; from 0.75 it is good, to 0.25 bad, between them nothing is learnt.

    Returns:
        How many edges learnt.
    """
    if len(set(nodes)) < 2 or BAD < quality < GOOD:
        return 0
    values = {"ids": sorted(set(nodes)), "good": quality >= GOOD, "rate": RATE}
    return connection.execute(_REINFORCE, values).rowcount
