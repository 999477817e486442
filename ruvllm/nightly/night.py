"""One night, step by step, from the day's questions to the promoted router; knows nothing of Prefect.

Every step takes the cycle's id, does its work once (`learning/cycle.py` keeps what is done), and returns plain figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruvllm import progress
from ruvllm.answering.answer import Answer, Answerer, Ask
from ruvllm.corpus.records import Question
from ruvllm.errors import ArtifactError, LearningError, RegistryError
from ruvllm.learning import cycle as cycles
from ruvllm.nightly import attending, collecting, machine
from ruvllm.nightly.consolidation import consolidate_champion, newest_state
from ruvllm.nightly.steps import opened as _opened
from ruvllm.nightly.steps import step as _step
from ruvllm.settings import Settings
from ruvllm.workplace import Workplace

Result = dict[str, Any]

DAY_QUESTIONS = 24
_MISSING_NIGHT = "run the earlier steps of this cycle first (ruvllm cycle)"


def begin(settings: Settings, cycle_id: str = "") -> str:
    """The unfinished cycle, or a new one; returns its id. With `cycle_id` that one, and an error if it is finished."""
    with _opened(settings) as database:
        if cycle_id:
            return cycles.resume_cycle(database, cycle_id).id
        return cycles.open_cycle(database).id


@contextmanager
def alone(settings: Settings) -> Iterator[Callable[[], None]]:
    """No second night within the block; call what is given before each step. See `learning/cycle.py`."""
    with _opened(settings) as database, cycles.alone(database) as still_alone:
        yield still_alone


def folder(settings: Settings, cycle_id: str) -> Path:
    """Where the files of a cycle lie."""
    return settings.state_dir / "cycles" / cycle_id


def ingest(settings: Settings, cycle_id: str) -> Result:
    """Bring the demonstration corpus into memory; what is there already is skipped."""
    from ruvllm.corpus import corpus_nodes

    def work(place: Workplace) -> Result:
        report = place.memory.add(corpus_nodes(), progress.stage("Reading the corpus into memory"))
        return {"nodes_written": report.written, "nodes_skipped": report.skipped}

    return _step(settings, cycle_id, "ingest", work)


def day(settings: Settings, cycle_id: str, n: int = DAY_QUESTIONS) -> Result:
    """Ask the day's questions, score the answers against gold, write the good ones back."""
    from ruvllm.corpus.questions import day as questions_of_day

    def work(place: Workplace) -> Result:
        night = cycles.find_cycle(place.database, cycle_id).night
        asked = questions_of_day(night, n)
        show = progress.stage("Answering the day's questions")
        with place.answerer(place.champion(), seed=night) as answerer:
            for done, question in enumerate(asked, start=1):
                _ask_once(place, answerer, question, cycle_id)
                show(done, len(asked), question.text)
            answerer.settle_outbox(limit=10 * n)
        return _day_figures(place, cycle_id)

    return _step(settings, cycle_id, "day", work)


def _ask_once(place: Workplace, answerer: Answerer, question: Question, cycle_id: str) -> Answer | None:
    """Ask, unless an earlier run of this night has."""
    request_id = f"{cycle_id}:{question.key}"
    with place.database.transaction() as connection:
        stored = connection.execute(
            "SELECT 1 FROM serving.interactions WHERE request_id = %s", (request_id,)
        ).fetchone()
    if stored is not None:
        return None
    return answerer.answer(
        Ask(
            question.text,
            history=question.history,
            session_id=f"{cycle_id}:{question.session_id}" if question.session_id else None,
            turn=question.turn,
            request_id=request_id,
            gold=question.gold,
            cycle_id=cycle_id,
            domain=question.domain,
        )
    )


def _day_figures(place: Workplace, cycle_id: str) -> Result:
    with place.database.transaction() as connection:
        tiers = connection.execute(_TIERS, (cycle_id,)).fetchall()
        outcomes = connection.execute(_OUTCOMES, (cycle_id,)).fetchall()
    return {
        "questions": sum(row[1] for row in tiers),
        "tiers": [{"tier": t, "answers": n, "quality": q, "latency_ms_p50": ms, "cost": c} for t, n, q, ms, c in tiers],
        "writeback": dict(outcomes),
    }


def collect(settings: Settings, cycle_id: str, budget_s: float | None = None, sample: int | None = None) -> Result:
    """Run the oracle on this night's sample within its budget; `sample` questions at most."""

    def work(place: Workplace) -> Result:
        oracle = collecting.oracle_of(place)
        budget = collecting.enrol(oracle, place, cycle_id, budget_s, sample)
        report = oracle.collect(cycle_id, budget, progress.stage("Collecting oracle outcomes"))
        return collecting.collected(oracle, report, budget)

    return _step(settings, cycle_id, "collect", work)


def train(settings: Settings, cycle_id: str) -> Result:
    """Snapshot, then `dvc repro`: train the candidate and evaluate it."""
    from ruvllm.learning.replay import Reservoir
    from ruvllm.learning.snapshot import write_snapshot
    from ruvllm.learning.traffic import FILE, read_traffic, save_traffic
    from ruvllm.learning.workspace import run_pipeline

    def work(place: Workplace) -> Result:
        workspace = folder(settings, cycle_id)
        reservoir = Reservoir(place.database, settings.replay_capacity, by_domain=settings.replay_by_domain)
        snapshot = write_snapshot(
            settings, place.database, place.ladder, place.embedder.id, reservoir.keys(), cycle_id,
            workspace / "snapshot.npz",
        )  # fmt: skip
        save_traffic(read_traffic(settings, place.database, place.ladder, place.embedder), workspace / FILE)
        champion = place.champion()
        with machine.sampled(workspace / machine.FILE):
            result = run_pipeline(
                workspace,
                snapshot.path,
                champion.path if champion else None,
                newest_state(place.database, workspace),
                cycle_id,
                progress.stage("Training and evaluating the router (dvc repro)"),
            )
        reservoir.offer(_train_keys(place, cycle_id))
        return {
            "snapshot": snapshot.digest,
            "rows": snapshot.rows,
            "train_rows": snapshot.train_rows,
            "test_rows": snapshot.test_rows,
            "left_out": snapshot.left_out,
            "bundle": str(result.bundle.relative_to(settings.state_dir)),
            "report": str(result.report.relative_to(settings.state_dir)),
            "dvc_lock": result.lock_sha256,
            "metrics": result.metrics,
        }

    return _step(settings, cycle_id, "train", work)


def _train_keys(place: Workplace, cycle_id: str) -> list[str]:
    with place.database.transaction() as connection:
        rows = connection.execute(
            "SELECT key FROM learning.oracle_queries WHERE cycle_id = %s AND split = 'train' ORDER BY created_at, key",
            (cycle_id,),
        ).fetchall()
    return [row[0] for row in rows]


def evaluate(settings: Settings, cycle_id: str) -> Result:
    """The figures of the candidate beside the champion and the baselines, as a table to read."""
    from ruvllm.evaluation.table import policy_rows, report_markdown
    from ruvllm.reporting.gather import trend_figures

    def work(place: Workplace) -> Result:
        report = _report(settings, place, cycle_id)
        policies = report["policies"]
        before = "champion" if "champion" in policies else "random"  # the cold-start rule is uniform
        return {
            "before": before,
            "regret_before": policies[before]["regret"]["utility"]["mean"],
            "regret_after": policies["fastgrnn"]["regret"]["utility"]["mean"],
            "regret_after_interval": [policies["fastgrnn"]["regret"]["utility"][k] for k in ("low", "high")],
            "accuracy_tier": policies["fastgrnn"]["accuracy_tier"],
            "n_test": report["n_test"],
            "n_train": report["n_train"],
            "warnings": report["warnings"],
            "policies": policy_rows(report),
            "table": report_markdown(report),
            **trend_figures(report),
        }

    return _step(settings, cycle_id, "evaluate", work)


def _report(settings: Settings, place: Workplace, cycle_id: str) -> Result:
    path = settings.state_dir / _result_of(place, cycle_id, "train")["report"]
    report: Result = json.loads(path.read_text())
    return report


def _result_of(place: Workplace, cycle_id: str, name: str) -> Result:
    done = cycles.steps_done(place.database, cycle_id)
    if name not in done:
        raise LearningError(f"step {name} of {cycle_id}: not done; {_MISSING_NIGHT}")
    return done[name].result


def propose(settings: Settings, cycle_id: str) -> Result:
    """Register the candidate in MLflow with its gate table, pending a reviewer."""
    from ruvllm.registry.gates import table_markdown
    from ruvllm.registry.package import register_candidate

    def work(place: Workplace) -> Result:
        trained, attended = (_result_of(place, cycle_id, name) for name in ("train", "attend"))
        registered = register_candidate(
            settings,
            place.database,
            bundle=attending.proposed(folder(settings, cycle_id)),
            report={**_report(settings, place, cycle_id), **_decision_latency(trained["metrics"])},
            cycle_id=cycle_id,
            params={
                "snapshot": trained["snapshot"],
                "rows": trained["rows"],
                "dvc_lock": trained["dvc_lock"],
                "attention": attended["part"],
                **attending.figures(attended),
            },
            machine=machine.read_samples(folder(settings, cycle_id) / machine.FILE),
        )
        return {
            "version": registered.version,
            "run_id": registered.run_id,
            "sha256": registered.sha256,
            "gates": [gate.as_dict() for gate in registered.gates],
            "table": table_markdown(registered.gates),
        }

    return _step(settings, cycle_id, "propose", work)


def _decision_latency(metrics: Result) -> Result:
    """Measured apart from report.json, whose bytes are the same whenever it is made again."""
    return {"decision_us": metrics["decision_us"]} if "decision_us" in metrics else {}


def promote(settings: Settings, cycle_id: str, approve_as: str = "") -> Result:
    """Approve as `approve_as` where that is given, then promote if the gates pass; says why not otherwise."""
    from ruvllm.registry import promotion

    def work(place: Workplace) -> Result:
        version = _result_of(place, cycle_id, "propose")["version"]
        if not approve_as:
            return {
                "promoted": False,
                "version": version,
                "why": "waits for a reviewer: " + promotion.how_to_approve(version),
            }
        try:
            promotion.approve(settings, version, approve_as, f"approved by flag in {cycle_id}")
            row = promotion.promote(settings, place.database, version)
        except (RegistryError, ArtifactError) as error:
            return {"promoted": False, "version": version, "why": str(error)}
        return {"promoted": True, "version": row.version, "previous": row.previous, "approved_by": row.approved_by}

    return _step(settings, cycle_id, "promote", work)


def promote_approved(settings: Settings) -> Result:
    """Promote the newest version that a reviewer approved and that is not yet champion; then consolidate it."""
    from ruvllm.registry import promotion

    with _opened(settings) as database:
        row = promotion.promote_approved(settings, database)
        promotion.reconcile_alias(settings, database)
        if row is None:
            return {"promoted": False, "why": "nothing was approved since the last look"}
        consolidate_champion(settings, database, row.cycle_id)
        return {"promoted": True, "version": row.version, "approved_by": row.approved_by}


def consolidate(settings: Settings, cycle_id: str) -> Result:
    """Fisher information and anchor weights of the champion, where this cycle made it."""

    def work(place: Workplace) -> Result:
        promoted = _result_of(place, cycle_id, "promote")
        if not promoted["promoted"]:
            return {"consolidated": False, "why": f"version {promoted['version']} is not champion"}
        return consolidate_champion(place.settings, place.database, cycle_id)

    return _step(settings, cycle_id, "consolidate", work)


def maintain(settings: Settings, cycle_id: str) -> Result:
    """What the tidying of this night came to, and what memory holds after it; nightly/tidying.py has the steps."""

    def work(place: Workplace) -> Result:
        merged = _result_of(place, cycle_id, "merge")
        alarms = _result_of(place, cycle_id, "upkeep")["alarms"]
        return {**merged, "alarms": alarms, "counts": place.memory.counts()}

    return _step(settings, cycle_id, "maintain", work)


def serve(settings: Settings, cycle_id: str) -> Result:
    """The gateway answers one question with the ledger's champion; it is started where none runs, and then ended.

    A champion that this night promoted and that cannot be loaded, or does not answer, is rolled back.
    """
    from ruvllm.nightly.verifying import verify_champion

    def work(place: Workplace) -> Result:
        promoted = _result_of(place, cycle_id, "promote")["promoted"]
        return verify_champion(settings, place.database, place.champion, may_roll_back=promoted)

    return _step(settings, cycle_id, "serve", work)


def finish(settings: Settings, cycle_id: str) -> Result:
    """Close the cycle; the results of all its steps."""
    with _opened(settings) as database:
        cycles.finish_cycle(database, cycle_id)
        night = cycles.find_cycle(database, cycle_id).night
    return results(settings, night)


def results(settings: Settings, night: int | None = None) -> Result:
    """The results of a finished night's steps, by name, with the seconds that each took; by default of the last one.

    Raises:
        LearningError: that night is not finished, or there is none.
    """
    with _opened(settings) as database:
        cycle = cycles.finished_cycle(database, night)
        done = cycles.steps_done(database, cycle.id)
    return {
        "cycle_id": cycle.id,
        "night": cycle.night,
        "steps": {name: {**step.result, "seconds_taken": round(step.seconds, 1)} for name, step in done.items()},
    }


_TIERS = """
    SELECT tier, count(*)::int, avg(quality)::float8, percentile_cont(0.5) WITHIN GROUP (ORDER BY total_ms)::float8,
           sum(cost)::float8
    FROM serving.interactions WHERE cycle_id = %s GROUP BY tier ORDER BY tier
"""
_OUTCOMES = """
    SELECT o.outcome, count(*)::int FROM serving.outbox o JOIN serving.interactions i ON i.id = o.interaction
    WHERE i.cycle_id = %s AND o.outcome IS NOT NULL GROUP BY o.outcome
"""
