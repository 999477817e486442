"""Gathers a night's report from Postgres and from the candidate's report.json. Draws nothing, writes nothing.

Answers are counted by Postgres; a hundred thousand of them are never fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ruvllm.database.pool import Database
from ruvllm.learning.cycle import Step, find_cycle, steps_done
from ruvllm.registry import ledger
from ruvllm.reporting.records import Change, Group, Interval, Night, NightReport, Target, Tenth

Figures = Mapping[str, Any]


def gather(database: Database, cycle_id: str, report: Figures, links: Mapping[str, str] | None = None) -> NightReport:
    """The report of a night whose candidate's report.json is `report`.

    Raises:
        LearningError: there is no such cycle.
    """
    night, done = find_cycle(database, cycle_id).night, steps_done(database, cycle_id)
    proposed, promoted = _result(done, "propose"), _result(done, "promote")
    return NightReport(
        night=night,
        cycle_id=cycle_id,
        version=str(proposed.get("version", "")),
        champion=_champion(database),
        promoted=bool(promoted.get("promoted")),
        why_not=str(promoted.get("why", "")),
        tiers=_groups(database, "tier", cycle_id),
        domains=_groups(database, "domain", cycle_id),
        deciders=_groups(database, "decided_by", cycle_id),
        nights=every_night(database),
        policies=_result(done, "evaluate").get("policies", []),
        n_test=int(report.get("n_test", 0)),
        n_train=int(report.get("n_train", 0)),
        per_domain=report.get("per_domain", {}),
        ece=report.get("calibration", {}).get("ece"),
        tenths=[Tenth(**tenth) for tenth in report.get("calibration", {}).get("bins", [])],
        changed={key: value for key, value in (report.get("changes") or {}).items() if key != "examples"},
        changes=_changes(database, (report.get("changes") or {}).get("examples", [])),
        gates=proposed.get("gates", []),
        targets=_targets(database, done, cycle_id),
        cost_saved=report.get("cost_saved"),
        warnings=report.get("warnings", []),
        seconds={name: step.seconds for name, step in done.items()},
        links=links or {},
    )


def trend_figures(report: Figures) -> dict[str, Any]:
    """What the step `evaluate` keeps of a report.json for later nights' trends."""
    return {
        "forgetting": report.get("forgetting"),
        "calibration": {key: report.get("calibration", {}).get(key) for key in ("ece", "n")},
        "cost_saved": report.get("cost_saved"),
    }


def _result(done: Mapping[str, Step], name: str) -> dict[str, Any]:
    return done[name].result if name in done else {}


def _champion(database: Database) -> str:
    with database.transaction() as connection:
        row = ledger.current(connection)
    return row.version if row else ""


def _groups(database: Database, by: str, cycle_id: str) -> list[Group]:
    with database.transaction() as connection:
        return [Group(*row) for row in connection.execute(_GROUPS, {"cycle": cycle_id, "by": by})]


def every_night(database: Database) -> list[Night]:
    """Every night so far, the oldest first, from the steps that are kept of it."""
    with database.transaction() as connection:
        rows = connection.execute(_NIGHTS).fetchall()
    return [_night(number, steps) for number, steps in rows]


def _night(number: int, steps: Figures) -> Night:
    evaluate, maintain = steps.get("evaluate") or {}, steps.get("maintain") or {}
    counts, promote = maintain.get("counts") or {}, steps.get("promote") or {}
    merged = [maintain[key] for key in ("merged_exact", "merged_near") if key in maintain]
    return Night(
        night=number,
        questions=int((steps.get("day") or {}).get("questions", 0)),
        regret=_regret(evaluate),
        forgetting=_forgetting(evaluate.get("forgetting") or {}),
        nodes=counts.get("nodes"),
        edges=counts.get("edges"),
        merged=sum(merged) if merged else None,
        version=str((steps.get("propose") or {}).get("version", "")),
        promoted=bool(promote.get("promoted")),
    )


def _regret(evaluate: Figures) -> Interval | None:
    if "regret_after" not in evaluate:
        return None
    low, high = evaluate["regret_after_interval"]
    return Interval(evaluate["regret_after"], low, high, int(evaluate.get("n_test", 0)))


def _forgetting(found: Figures) -> Interval | None:
    rate = found.get("rate")
    return Interval(rate["mean"], rate["low"], rate["high"], int(found.get("n", 0))) if rate else None


def _changes(database: Database, examples: Sequence[Figures]) -> list[Change]:
    """Examples with the questions' texts; one whose question was forgotten since is left out."""
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT key, question FROM learning.oracle_queries WHERE key = ANY(%s)", [[e["key"] for e in examples]]
        ).fetchall()
    texts = dict(rows)
    return [Change(texts[e["key"]], e["from"], e["to"], e["gained"]) for e in examples if e["key"] in texts]


def _targets(database: Database, done: Mapping[str, Step], cycle_id: str) -> list[Target]:
    """The specification's figures (8.1 and 8.2) of this night, met or missed, each with its N."""
    with database.transaction() as connection:
        sources = {row[0]: (row[1], row[2]) for row in connection.execute(_SOURCES, (cycle_id,))}
    writes = _result(done, "day").get("writeback", {})
    settled, canary = sum(writes.values()), _result(done, "watch")
    judged = sources.get("judge")
    return [
        _target("F1 of answers with gold", 0.85, sources.get("gold"), "no answer of this night has gold"),
        _target(
            "judge's rating, 1 to 5", 4.2, (judged[0], 1 + 4 * judged[1]) if judged else None,
            "no accepted judge scored an answer of this night",
        ),
        _target(
            "R@10 on stored questions", 0.90,
            (canary["questions"], canary["recall"]) if canary.get("questions") else None, "no question is stored yet",
        ),
        _written(settled, writes.get("written", 0)),
    ]  # fmt: skip


def _target(what: str, wanted: float, found: tuple[int, float] | None, why: str) -> Target:
    if found is None:
        return Target(what, f"at least {wanted:g}", None, 0, None, why)
    n, measured = found
    return Target(what, f"at least {wanted:g}", measured, n, measured >= wanted)


def _written(settled: int, written: int) -> Target:
    share = written / settled if settled else None
    met = None if share is None else 0.10 <= share <= 0.30
    note = "" if settled else "no answer of this night is settled"
    return Target("answers written to memory", "10 to 30 %", share, settled, met, note)


# The day of a night: what it asked itself, and what users asked between the night before and this one.
_GROUPS = """
    WITH period AS (
        SELECT coalesce(max(b.started_at), '-infinity') AS since, c.started_at AS until
        FROM learning.cycles c LEFT JOIN learning.cycles b ON b.night < c.night
        WHERE c.id = %(cycle)s GROUP BY c.started_at
    ), answered AS (
        SELECT i.* FROM serving.interactions i WHERE i.cycle_id = %(cycle)s
        UNION ALL
        SELECT i.* FROM serving.interactions i, period p
        WHERE i.cycle_id IS NULL AND i.asked_at >= p.since AND i.asked_at < p.until
    )
    SELECT CASE %(by)s WHEN 'tier' THEN tier WHEN 'decided_by' THEN decided_by
                       ELSE coalesce(nullif(domain, ''), 'unknown') END, count(*)::int,
           count(quality)::int, avg(quality)::float8,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY total_ms)::float8,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY total_ms)::float8, sum(cost)::float8
    FROM answered GROUP BY 1 ORDER BY 2 DESC, 1
"""
_SOURCES = """
    SELECT quality_source, count(*)::int, avg(quality)::float8 FROM serving.interactions
    WHERE cycle_id = %s AND quality IS NOT NULL GROUP BY quality_source
"""
_NIGHTS = """
    SELECT c.night, coalesce(jsonb_object_agg(s.step, s.result) FILTER (WHERE s.step IS NOT NULL), '{}')
    FROM learning.cycles c
    LEFT JOIN learning.steps s ON s.cycle_id = c.id AND s.step IN ('day', 'evaluate', 'propose', 'promote', 'maintain')
    GROUP BY c.night ORDER BY c.night
"""
