"""The oracle: every question of a sample is answered by every tier at every bin, scored against gold, and stored.

Specification 5.3, phase 1. Resumable per (query, tier, bin) and bounded by a time budget; knows nothing of Prefect. A
lane is one pool of single-threaded workers; as many lanes run as there are cores, each taking whole questions, so that
a question is either complete or not begun when the budget ends.

Where a question has gold, gold alone says how right an answer is. One without is taken up only while the ladder's
largest tier is an accepted judge (inference/judge/labels.py): then its calibrated score is the quality, and the row
names the calibration. Else the question is skipped and counted, and the report says why.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from psycopg.rows import dict_row

from ruvllm.answering.answer import Ask, Perception
from ruvllm.answering.reading import context_of
from ruvllm.attention.context import Context
from ruvllm.corpus.records import Question
from ruvllm.database.pool import Database
from ruvllm.evaluation.qa import score_answer
from ruvllm.inference.backends import is_remote
from ruvllm.inference.files import ensure, verify
from ruvllm.inference.judge.judge import Judge, judge_version
from ruvllm.inference.judge.labels import Label, LabelSource, label_answers, label_source
from ruvllm.inference.judge.store import JudgeStore
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.prompt import PROMPT_VERSION, build
from ruvllm.inference.tiers import Ladder, Tier, cost
from ruvllm.inference.types import ROUTED_BINS, Model, NestedGeneration, Sampling
from ruvllm.learning.shares import WHOLE, Share
from ruvllm.memory.records import Node
from ruvllm.progress import Progress, silent
from ruvllm.router.layout import LAYOUT
from ruvllm.router.live import Live
from ruvllm.router.runtime import RouterRuntime
from ruvllm.settings import Settings
from ruvllm.text import whole_question

log = logging.getLogger(__name__)

NO_LABEL = "no gold, and no accepted judge"
NO_SCORE = "no gold, and the judge gave no score"
_MAX_LANES = 4  # each holds one copy of every tier's weights


@dataclass(frozen=True)
class OracleReport:
    """What a collection did. `remaining` questions are enrolled and wait for a later budget."""

    queries: int  # completed in this call
    runs: int  # (query, tier, bin) answered in this call
    remaining: int
    seconds: float
    model_seconds: float  # spent in the models, all lanes together
    cold_seconds: float  # what the same runs would have cost without the shared prefix
    labels: str = ""  # where labels come from: gold only, or an accepted judge too, and why
    skipped: Mapping[str, int] = field(default_factory=dict)  # questions without a label, by reason


@dataclass(frozen=True)
class _Query:
    key: str
    question: str
    gold: tuple[str, ...]
    history: tuple[tuple[str, str], ...]
    retrieved: tuple[int, ...]


def model_hashes(ladder: Ladder, settings: Settings) -> dict[str, str]:
    """Whose outcomes these are: the sha256 of each tier's verified file, pinned or recorded when it was pulled.

    What a vLLM server holds is not known here; its outcomes are those of the checkpoint by its name.
    """
    return {tier.name: _model_hash(tier, settings) for tier in ladder.tiers}


def _model_hash(tier: Tier, settings: Settings) -> str:
    if is_remote(tier, settings):
        return hashlib.sha256(f"vllm {tier.checkpoint or tier.name}".encode()).hexdigest()
    return verify(tier, settings, path=ensure(tier, settings))


class Oracle:
    """Collects outcomes for one ladder and tenant; `open_pool` makes the models of a lane."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        perception: Perception,
        ladder: Ladder,
        open_pool: Callable[[], ModelPool] | None = None,
    ) -> None:
        self.settings, self.database, self.perception, self.ladder = settings, database, perception, ladder
        self._hashes = model_hashes(ladder, settings)
        self._open_pool = open_pool or (lambda: ModelPool(settings, ladder, threads=1))
        self._live = Live(database)
        self._skipped: Counter[str] = Counter()
        self._counting = threading.Lock()

    @cached_property
    def labels(self) -> LabelSource:
        """Who may label a question without gold, decided once a collection; the largest tier is the judge."""
        judge = self.ladder.tiers[-1]
        return label_source(self.database, judge_version(self._hashes[judge.name], judge.style))

    def enrol(self, questions: Sequence[Question], cycle_id: str, runtime: RouterRuntime | None) -> int:
        """Store questions with what the router sees of them now; those there already stay. Returns how many are new.

        A question that nobody can label is left out and counted in the next report. Those enrolled under another
        feature layout get the features of this one; what they were answered from, and the answers, stay.
        """
        self._live.refresh_if_old()
        self._renew(runtime)
        usable = [question for question in questions if self._has_label(question.gold)]
        self._skip(NO_LABEL, len(questions) - len(usable))
        known = self._known([question.key for question in usable])
        fresh = [question for question in usable if question.key not in known]
        for question in fresh:
            self._enrol_one(question, cycle_id, runtime)
        return len(fresh)

    def collect(
        self, cycle_id: str, budget_s: float, progress: Progress = silent, share: Share = WHOLE
    ) -> OracleReport:
        """Run what is missing of the share's enrolled questions, oldest first, until `budget_s` is spent.

        Raises:
            InferenceError: a model could not be brought to answer.
            DatabaseError: an outcome could not be stored; what was stored before stays.
        """
        JudgeStore(self.database).retract()  # a question whose judge was refused since waits for labels again
        waiting: queue.SimpleQueue[_Query] = queue.SimpleQueue()
        enrolled = [query for query in self._pending(cycle_id) if share.has(query.key)]
        pending = [query for query in enrolled if self._has_label(query.gold)]
        self._skip(NO_LABEL, len(enrolled) - len(pending))  # of nights whose judge was accepted then
        for query in pending:
            waiting.put(query)
        tally = _Tally(len(pending), budget_s, progress)
        lanes = max(1, min(share.lanes or _MAX_LANES, os.cpu_count() or 1, len(pending)))
        with ThreadPoolExecutor(lanes, thread_name_prefix="oracle") as executor:
            for lane in [executor.submit(self._lane, waiting, cycle_id, tally) for _ in range(lanes)]:
                lane.result()
        return self._labelled(tally.report())

    def _has_label(self, gold: Sequence[str]) -> bool:
        return bool(gold) or self.labels.accepted

    def _skip(self, why: str, count: int) -> None:
        with self._counting:
            self._skipped[why] += count

    def _labelled(self, report: OracleReport) -> OracleReport:
        skipped, self._skipped = +self._skipped, Counter()
        return replace(report, labels=self.labels.reason, skipped=dict(skipped))

    def complete(self) -> dict[str, int]:
        """How many questions of each split were run on every tier and bin, over all nights."""
        with self.database.transaction() as connection:
            rows = connection.execute(_COMPLETE, self._places()).fetchall()
        return dict(rows)

    def _places(self) -> dict[str, object]:
        return {
            "tiers": list(self._hashes),
            "hashes": list(self._hashes.values()),
            "version": PROMPT_VERSION,
            "bins": list(ROUTED_BINS),
            "wanted": len(self.ladder.tiers) * len(ROUTED_BINS),
        }

    def _lane(self, waiting: queue.SimpleQueue[_Query], cycle_id: str, tally: _Tally) -> None:
        with self._open_pool() as pool:
            while not tally.spent():
                try:
                    query = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    tally.add(self._run(query, pool, cycle_id))
                except BaseException:
                    tally.stop()  # the other lanes end after their question; the error reaches the caller
                    raise

    def _run(self, query: _Query, pool: ModelPool, cycle_id: str) -> list[NestedGeneration]:
        found = self.perception.memory.get(query.retrieved)
        done: list[NestedGeneration] = []
        for index, tier in enumerate(self.ladder.tiers):
            bins = self._missing_bins(query.key, tier)
            if bins:
                model = pool.model(index)
                contexts = {b: context_of(tier, model, found, query.question, b) for b in bins}
                nested = self._answer(query, tier, model, contexts)
                labels = self._labels(query, nested, found, pool)
                if labels is None:
                    self._withdraw(query)
                    break
                rows = [
                    self._row(query, tier, run, label, cycle_id, contexts[run.context_bin])
                    for run, label in zip(nested, labels, strict=True)
                ]
                self._store(rows)
                done += nested
        return done

    def _labels(
        self, query: _Query, nested: Sequence[NestedGeneration], found: Sequence[Node], pool: ModelPool
    ) -> list[Label] | None:
        answers = [run.generation.text for run in nested]
        if query.gold:
            return [Label(score_answer(answer, query.gold), None) for answer in answers]
        place = len(self.ladder.tiers) - 1
        tier, model = self.ladder.tiers[place], pool.model(place)
        judge = Judge(model, tier.style, self._hashes[tier.name], self.settings.deadline_s)
        question = whole_question(query.question, query.history)
        seen = context_of(tier, model, found, question, ROUTED_BINS[-1]).passages
        return label_answers(self.labels, judge, question, answers, seen)

    def _withdraw(self, query: _Query) -> None:
        """A question that the judge cannot score is taken out again: it would wait for ever."""
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM learning.oracle_queries WHERE key = %s", (query.key,))
        self._skip(NO_SCORE, 1)

    def _answer(
        self, query: _Query, tier: Tier, model: Model, contexts: Mapping[int, Context]
    ) -> list[NestedGeneration]:
        prompts = {b: build(tier, query.question, shown.passages, query.history) for b, shown in contexts.items()}
        sampling = Sampling(max_tokens=self.settings.max_tokens)
        return model.generate_nested(prompts, sampling, self.settings.deadline_s * len(prompts))

    def _known(self, keys: list[str]) -> set[str]:
        with self.database.transaction() as connection:
            rows = connection.execute("SELECT key FROM learning.oracle_queries WHERE key = ANY(%s)", (keys,)).fetchall()
        return {row[0] for row in rows}

    def _enrol_one(self, question: Question, cycle_id: str, runtime: RouterRuntime | None) -> None:
        ask = Ask(question.text, history=question.history, session_id=question.session_id, turn=question.turn)
        seen = self._see(ask, runtime)
        with self.database.transaction() as connection:
            connection.execute(
                _ENROL,
                {
                    "key": question.key,
                    "tenant": self.database.tenant,
                    "cycle_id": cycle_id,
                    "question": question.text,
                    "gold": list(question.gold),
                    "kind": question.kind,
                    "domain": question.domain,
                    "split": question.split,
                    "grouping": question.group,
                    "session_id": question.session_id,
                    "turn": question.turn,
                    "history": json.dumps(question.history),
                    **seen,
                },
            )

    def _see(self, ask: Ask, runtime: RouterRuntime | None) -> dict[str, object]:
        """What the router sees of a question now, as columns."""
        vector = self.perception.vector(ask)
        hits = self.perception.search(vector)
        features = self.perception.features(ask, vector, hits, runtime, known=self._live.now(ask.writer))
        return {
            "layout_hash": LAYOUT.hash,
            "features": features.tolist(),
            "embedding": np.asarray(vector, dtype=np.float32).tolist(),
            "retrieved": [hit.node.id for hit in hits],
        }

    def _renew(self, runtime: RouterRuntime | None) -> None:
        with self.database.transaction() as connection:
            old = connection.cursor(row_factory=dict_row).execute(_OF_ANOTHER_LAYOUT, (LAYOUT.hash,)).fetchall()
        for row in old:
            history = tuple((asked, answered) for asked, answered in row["history"])
            ask = Ask(row["question"], history=history, session_id=row["session_id"], turn=row["turn"])
            with self.database.transaction() as connection:
                connection.execute(_RENEW, {**self._see(ask, runtime), "key": row["key"]})
        if old:
            log.info("oracle: features of %d questions made anew, they were of another layout", len(old))

    def _pending(self, cycle_id: str) -> list[_Query]:
        """Enrolled questions with a (tier, bin) missing, this cycle's first, in order of enrolment."""
        parameters = {"cycle_id": cycle_id, **self._places()}
        with self.database.transaction() as connection:
            rows = connection.cursor(row_factory=dict_row).execute(_PENDING, parameters).fetchall()
        return [
            _Query(
                r["key"], r["question"], tuple(r["gold"]), tuple((q, a) for q, a in r["history"]), tuple(r["retrieved"])
            )
            for r in rows
        ]

    def _missing_bins(self, key: str, tier: Tier) -> list[int]:
        with self.database.transaction() as connection:
            rows = connection.execute(
                "SELECT context_bin FROM learning.oracle_runs"
                " WHERE query = %s AND tier = %s AND model_sha256 = %s AND prompt_version = %s",
                (key, tier.name, self._hashes[tier.name], PROMPT_VERSION),
            ).fetchall()
        return sorted(set(ROUTED_BINS) - {row[0] for row in rows})

    def _store(self, rows: Sequence[Mapping[str, object]]) -> None:
        """All bins of one (query, tier) in one transaction."""
        with self.database.transaction() as connection:
            connection.cursor().executemany(_STORE, rows)

    def _row(
        self, query: _Query, tier: Tier, run: NestedGeneration, label: Label, cycle_id: str, shown: Context
    ) -> dict[str, object]:
        generation = run.generation
        return {
            "tenant": self.database.tenant,
            "query": query.key,
            "ladder": self.ladder.name,
            "tier": tier.name,
            "model_sha256": self._hashes[tier.name],
            "prompt_version": PROMPT_VERSION,
            "context_bin": run.context_bin,
            "used": shown.ids,
            "cycle_id": cycle_id,
            "answer": generation.text,
            "quality": label.quality,
            "judge_calibration": label.calibration,
            "latency_s": run.cold_prefill_s + generation.decode_s,
            "spent_s": run.spent_s,
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "cost": cost(tier, self.ladder, generation.prompt_tokens, generation.completion_tokens),
        }


class _Tally:
    """What the lanes did so far, and whether to go on."""

    def __init__(self, total: int, budget_s: float, progress: Progress) -> None:
        self._total, self._budget, self._progress = total, budget_s, progress
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = False
        self._queries, self._runs, self._spent, self._cold = 0, 0, 0.0, 0.0

    def spent(self) -> bool:
        return self._stopped or time.monotonic() - self._started >= self._budget

    def stop(self) -> None:
        self._stopped = True

    def add(self, runs: Sequence[NestedGeneration]) -> None:
        with self._lock:
            self._queries += 1
            self._runs += len(runs)
            self._spent += sum(run.spent_s for run in runs)
            self._cold += sum(run.cold_prefill_s + run.generation.decode_s for run in runs)
            elapsed = time.monotonic() - self._started
            self._progress(
                self._queries, self._total, f"{self._queries} questions, {elapsed:.0f} of {self._budget:.0f} s"
            )

    def report(self) -> OracleReport:
        seconds = time.monotonic() - self._started
        return OracleReport(self._queries, self._runs, self._total - self._queries, seconds, self._spent, self._cold)


_ENROL = """
    INSERT INTO learning.oracle_queries (key, tenant, cycle_id, question, gold, kind, domain, split, grouping,
        session_id, turn, history, layout_hash, features, embedding, retrieved)
    VALUES (%(key)s, %(tenant)s, %(cycle_id)s, %(question)s, %(gold)s, %(kind)s, %(domain)s, %(split)s, %(grouping)s,
        %(session_id)s, %(turn)s, %(history)s, %(layout_hash)s, %(features)s, %(embedding)s, %(retrieved)s)
    ON CONFLICT (key) DO NOTHING
"""
_OF_ANOTHER_LAYOUT = (
    "SELECT key, question, history, session_id, turn FROM learning.oracle_queries WHERE layout_hash <> %s ORDER BY key"
)
_RENEW = """
    UPDATE learning.oracle_queries SET layout_hash = %(layout_hash)s, features = %(features)s, embedding = %(embedding)s
    WHERE key = %(key)s
"""
_STORE = """
    INSERT INTO learning.oracle_runs (tenant, query, ladder, tier, model_sha256, prompt_version, context_bin, cycle_id,
        used, answer, quality, judge_calibration, latency_s, spent_s, prompt_tokens, completion_tokens, cost)
    VALUES (%(tenant)s, %(query)s, %(ladder)s, %(tier)s, %(model_sha256)s, %(prompt_version)s, %(context_bin)s,
        %(cycle_id)s, %(used)s, %(answer)s, %(quality)s, %(judge_calibration)s, %(latency_s)s, %(spent_s)s,
        %(prompt_tokens)s, %(completion_tokens)s, %(cost)s)
    ON CONFLICT (query, tier, context_bin, model_sha256, prompt_version) DO NOTHING
"""
_RUN_PLACES = """
    (SELECT count(*) FROM learning.oracle_runs r
     JOIN unnest(%(tiers)s::text[], %(hashes)s::text[]) AS t (tier, sha256)
       ON t.tier = r.tier AND t.sha256 = r.model_sha256
     WHERE r.query = q.key AND r.prompt_version = %(version)s AND r.context_bin = ANY(%(bins)s))
"""
_PENDING = f"""
    SELECT q.key, q.question, q.gold, q.history, q.retrieved FROM learning.oracle_queries q
    WHERE {_RUN_PLACES} < %(wanted)s
    ORDER BY q.cycle_id <> %(cycle_id)s, q.created_at, q.key
"""  # noqa: S608  # a constant of ours
_COMPLETE = f"""
    SELECT q.split, count(*)::int FROM learning.oracle_queries q WHERE {_RUN_PLACES} = %(wanted)s GROUP BY q.split
"""  # noqa: S608
