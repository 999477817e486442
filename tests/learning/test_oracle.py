"""The oracle: everything is run once, a stop in the middle costs one question, and the snapshot holds what was run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ruvllm.answering.answer import Perception
from ruvllm.corpus.records import Question
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import LearningError, WorkerDiedError
from ruvllm.inference.fake import FakeModel
from ruvllm.inference.pool import ModelPool
from ruvllm.inference.tiers import Ladder, load_catalogue
from ruvllm.inference.types import BINS, ROUTED_BINS
from ruvllm.learning import cycle as cycles
from ruvllm.learning.data import load_snapshot
from ruvllm.learning.oracle import Oracle
from ruvllm.learning.snapshot import write_snapshot
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.router.layout import LAYOUT

PLACES = ["Accra", "Lome", "Abuja", "Dakar", "Bamako", "Niamey", "Rabat", "Tunis", "Cairo", "Lagos", "Praia", "Luanda"]
COUNTRIES = [
    "Ghana",
    "Togo",
    "Nigeria",
    "Senegal",
    "Mali",
    "Niger",
    "Morocco",
    "Tunisia",
    "Egypt",
    "Benin",
    "Verde",
    "Angola",
]


def question(place: int, split: str) -> Question:
    country = COUNTRIES[place]
    return Question(
        key=f"capital/{country}", text=f"What is the capital of {country}?", gold=(PLACES[place],), kind="capital",
        domain="geography", split=split, group=country, gold_passage=f"{country}/1", fact=f"{country}/capital", turn=1,
    )  # fmt: skip


QUESTIONS = [question(place, "train" if place < 9 else "test") for place in range(12)]


@pytest.fixture
def ladder():
    return Ladder("packaged", tuple(load_catalogue()["packaged"]), "for a test")


@pytest.fixture
def perception(settings, database):
    embedder = EmbeddingAdapter(HashingEncoder())
    memory = Memory(database, embedder, settings)
    memory.add([NewNode(f"{c} - Capital: {p}.", source="test") for c, p in zip(COUNTRIES, PLACES, strict=True)])
    return Perception(settings, embedder, memory)


@pytest.fixture
def oracle(settings, database, perception, ladder, monkeypatch):
    """The small tier knows nothing, the big one reads its context."""
    monkeypatch.setattr("ruvllm.learning.oracle.model_hashes", lambda *_: dict.fromkeys(ladder.names, "0" * 64))
    monkeypatch.setattr("ruvllm.learning.snapshot.model_hashes", lambda *_: dict.fromkeys(ladder.names, "0" * 64))
    deaths = dict.fromkeys(ladder.names, 0)

    def start(tier):
        if tier.name == ladder.names[0]:
            return FakeModel(deaths=deaths[tier.name])
        return FakeModel(answer=read, deaths=deaths[tier.name])

    oracle = Oracle(settings, database, perception, ladder, open_pool=lambda: ModelPool(settings, ladder, start=start))
    oracle.deaths = deaths
    return oracle


def read(prompt: str) -> str:
    """The capital of the country that the last question names."""
    asked = max(COUNTRIES, key=lambda country: prompt.rfind(f"capital of {country}"))
    return PLACES[COUNTRIES.index(asked)]


def test_every_question_is_run_on_every_place_once(oracle, database):
    cycle = cycles.open_cycle(database)
    assert oracle.enrol(QUESTIONS, cycle.id, None) == 12
    assert oracle.enrol(QUESTIONS, cycle.id, None) == 0
    report = oracle.collect(cycle.id, 60)
    assert (report.queries, report.runs, report.remaining) == (12, 12 * 2 * len(ROUTED_BINS), 0)
    assert oracle.collect(cycle.id, 60).runs == 0
    assert oracle.complete() == {"train": 9, "test": 3}


def test_a_run_keeps_what_it_was_shown_and_wider_contexts_extend_narrower_ones(oracle, database):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS[:1], cycle.id, None)
    oracle.collect(cycle.id, 60)
    with database.transaction() as connection:
        rows = connection.execute("SELECT used FROM learning.oracle_runs ORDER BY tier, context_bin").fetchall()
        (retrieved,) = connection.execute("SELECT retrieved FROM learning.oracle_queries").fetchone()
    assert len(rows) == 2 * len(ROUTED_BINS)
    for (narrow,), (wide,) in itertools.pairwise(rows[: len(ROUTED_BINS)]):
        assert narrow
        assert wide[: len(narrow)] == narrow
        assert set(wide) <= set(retrieved)


def test_a_tier_that_fails_costs_its_question_and_the_next_collection_goes_on(oracle, database):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS, cycle.id, None)
    oracle.deaths[oracle.ladder.names[1]] = 100
    with pytest.raises(WorkerDiedError):
        oracle.collect(cycle.id, 60)
    done = one(database, "SELECT count(*) FROM learning.oracle_runs")[0]
    oracle.deaths[oracle.ladder.names[1]] = 0
    report = oracle.collect(cycle.id, 60)
    assert done + report.runs == 12 * 2 * len(ROUTED_BINS)


def test_the_snapshot_holds_what_was_run_and_the_learner_reads_it(oracle, settings, database, ladder, tmp_path):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS, cycle.id, None)
    oracle.collect(cycle.id, 60)
    written = write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "snapshot.npz")
    assert (written.rows, written.train_rows, written.test_rows) == (12, 9, 3)
    snapshot = load_snapshot(tmp_path / "snapshot.npz")
    routed = [BINS.index(b) for b in ROUTED_BINS]
    assert np.all(snapshot.quality[:, 1, routed] == 1.0)
    assert np.all(snapshot.quality[:, 0, routed] == 0.0)
    assert np.isnan(snapshot.quality[:, 2:]).all()
    again = write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "again.npz")
    assert again.digest == written.digest


def test_a_question_that_was_not_finished_is_not_in_the_snapshot(oracle, settings, database, ladder, tmp_path):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS, cycle.id, None)
    oracle.collect(cycle.id, 60)
    with database.transaction() as connection:
        connection.execute(
            "DELETE FROM learning.oracle_runs WHERE query = %s AND context_bin = 512", (QUESTIONS[0].key,)
        )
    written = write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "snapshot.npz")
    assert written.rows == 11


def test_questions_of_another_layout_are_left_out_and_counted(oracle, settings, database, ladder, tmp_path):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS, cycle.id, None)
    oracle.collect(cycle.id, 60)
    with database.transaction() as connection:
        connection.execute(
            "UPDATE learning.oracle_queries SET layout_hash = 'older' WHERE key = %s", (QUESTIONS[0].key,)
        )
    written = write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "snapshot.npz")
    assert (written.rows, written.left_out) == (11, 1)
    assert QUESTIONS[0].key not in load_snapshot(tmp_path / "snapshot.npz").keys


def test_questions_of_another_layout_are_seen_anew_and_keep_their_answers(oracle, settings, database, ladder, tmp_path):
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS, cycle.id, None)
    oracle.collect(cycle.id, 60)
    state = "SELECT features, retrieved, layout_hash FROM learning.oracle_queries ORDER BY key"
    with database.transaction() as connection:
        before = connection.execute(state).fetchall()
        runs = connection.execute("SELECT count(*) FROM learning.oracle_runs").fetchone()
        connection.execute("UPDATE learning.oracle_queries SET layout_hash = 'older', features = ARRAY[1.5::real]")
    assert oracle.enrol([], cycle.id, None) == 0
    with database.transaction() as connection:
        after = connection.execute(state).fetchall()
        assert connection.execute("SELECT count(*) FROM learning.oracle_runs").fetchone() == runs
    assert [row[1:] for row in after] == [row[1:] for row in before]
    assert [len(row[0]) for row in after] == [128] * 12
    written = write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "snapshot.npz")
    assert (written.rows, written.left_out) == (12, 0)


def test_what_a_service_knows_of_its_past_is_in_the_features(oracle, database):
    """A router can only learn from what was there when its outcomes were collected."""
    cycle = cycles.open_cycle(database)
    oracle.enrol(QUESTIONS[:1], cycle.id, None)
    with database.transaction() as connection:
        [(features,)] = connection.execute("SELECT features FROM learning.oracle_queries").fetchall()
    assert features[LAYOUT["graph_depth"]][0] > 0  # memory's size is known
    assert features[LAYOUT["user_frequency"]][0] == 0  # nobody asked: unknown


def test_nothing_run_is_an_error_with_the_way_out(oracle, settings, database, ladder, tmp_path):
    cycle = cycles.open_cycle(database)
    with pytest.raises(LearningError, match="--budget"):
        write_snapshot(settings, database, ladder, "test-encoder", [], cycle.id, tmp_path / "snapshot.npz")
    assert list(tmp_path.iterdir()) == []


def one(database, query):
    with database.transaction() as connection:
        return connection.execute(query).fetchone()
