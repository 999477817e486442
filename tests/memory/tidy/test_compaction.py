"""Compaction: what becomes a Concept, what never meets, what the canary takes back, and what a kill leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from ruvllm.database import EmbeddedPostgres
from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.embedding.fake import HashingEncoder
from ruvllm.errors import DatabaseError, InferenceError
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import canary, clusters, runs, summarise
from ruvllm.memory.tidy.compaction import CompactionReport, Options, compact
from ruvllm.settings import Settings
from tests.memory.tables import contents

NOW = Options(older_than_days=0, similarity=0.6)
ALL = replace(NOW, policy="all")


def _fact(thing: str, answer: str, trust: str = "corroborated", writer: str = "", domain: str = "Ghana") -> NewNode:
    question = f"In the country of {domain}, what is the number of {thing} that the census of 2021 counted?"
    return NewNode(
        f"Q: {question}\nA: {answer}",
        kind="Fact",
        source="qa_pair",
        domain=domain,
        trust=trust,
        writer=writer,
        metadata={"question": question, "answer": answer},
        confidence=0.9,
    )


THINGS = ("goats", "boats", "roads", "wells", "schools", "bakers")


def _facts(**same: str) -> list[NewNode]:
    return [_fact(thing, f"{n + 3}00", **same) for n, thing in enumerate(THINGS)]


def _whole(texts: Sequence[str]) -> str:
    return "The census of 2021 counted in Ghana: " + "; ".join(text.replace("\n", " ") for text in texts)


def _lossy(texts: Sequence[str]) -> str:
    return "The census of 2021 counted many things in Ghana, goats and boats among them."


def _compact(memory: Memory, how: summarise.Summarise = _whole, options: Options = NOW) -> CompactionReport:
    return compact(memory.database, memory.embedder, how, "test-model", options, apply=True)


def test_a_cluster_becomes_a_concept_that_contains_it(memory: Memory, database: Database) -> None:
    ids = memory.add([*_facts(), NewNode("Something else altogether", kind="Query")]).ids
    memory.touch([ids[0], ids[1]])
    report = _compact(memory)
    [made] = report.clusters
    assert (report.candidates, made.superseded, made.by, made.why) == (7, 6, "test-model", "")
    [concept] = memory.get([made.concept or 0])
    assert (concept.kind, concept.trust, round(concept.confidence, 3)) == ("Concept", "corroborated", 0.9)
    assert all(f"{n + 3}00" in concept.text for n in range(6))
    assert memory.counts() == {"Concept": 1, "Query": 1, "nodes": 2, "archived": 6, "edges": 6}
    assert [node.text for node in memory.get(ids[:6])] == [fact.text for fact in _facts()]  # raw ones are kept
    with database.transaction() as connection:
        edges = connection.execute("SELECT src, dst, rel FROM memory.edges ORDER BY dst").fetchall()
        spans = connection.execute(
            "SELECT c.span_start = min(m.created_at), c.span_end = max(m.created_at) FROM memory.nodes c"
            " JOIN memory.nodes m ON m.superseded_by = c.id GROUP BY c.id"
        ).fetchall()
        uses = connection.execute("SELECT uses FROM memory.node_usage WHERE node = %s", [concept.id]).fetchone()
    assert edges == [(concept.id, id, "Contains") for id in ids[:6]]
    assert (spans, uses) == ([(True, True)], (2,))
    assert _compact(memory).clusters == ()  # it is done


def test_undo_of_a_compaction_restores_everything(memory: Memory, database: Database) -> None:
    ids = memory.add(_facts()).ids
    memory.link_all([(ids[0], ids[1], "SameTopic", 0.9), (ids[2], ids[1], "SameTopic", 0.8)], "test")
    memory.touch([ids[0]])
    before = contents(database)
    report = _compact(memory)
    assert report.status == "done"
    undone = runs.undo(database, report.run)
    assert contents(database) == before
    assert (undone.nodes, undone.deleted) == (6, 1)
    assert _compact(memory).clusters == ()  # what was taken back is let rest


def test_a_concept_that_was_used_since_is_kept_archived_by_undo(memory: Memory, database: Database) -> None:
    memory.add(_facts())
    report = _compact(memory)
    concept = report.clusters[0].concept or 0
    [other] = memory.add([NewNode("An answer from it")]).ids
    memory.link(other, concept, "Derived", 1.0, "somebody")
    assert runs.undo(database, report.run).kept == 1
    assert memory.counts()["Fact"] == 6
    assert memory.get([concept])[0].kind == "Concept"
    assert "Concept" not in memory.counts()


def test_a_compaction_that_loses_answers_is_rolled_back_by_its_canary(memory: Memory, database: Database) -> None:
    ids = memory.add(_facts()).ids
    memory.link(ids[0], ids[1], "SameTopic", 0.9, "test")
    for n, thing in enumerate(THINGS):
        asked = f"How many {thing} did the census of 2021 count in Ghana?"
        canary.add(database, memory.embedder, asked, ids[n], f"{n + 3}00")
    before = contents(database)
    report = _compact(memory, _lossy, ALL)
    assert report.status == "rolled_back"
    assert "R@10 on the stored questions fell from 1.000 to 0.000" in report.reason
    assert contents(database) == before
    run = runs.find(database, report.run)
    assert (run.canary_before, run.canary_after) == (1.0, 0.0)


def test_by_default_only_what_the_summary_covers_is_superseded(memory: Memory) -> None:
    memory.add(_facts())
    assert _compact(memory, _lossy).clusters[0].why == "the summary covers 0 of 6 members"
    assert memory.counts() == {"Fact": 6, "nodes": 6, "archived": 0, "edges": 0}
    part = _compact(memory, lambda texts: "Ghana, census of 2021, number counted: 300 and 400 boats, goats")
    assert part.clusters[0].superseded == 2
    assert memory.counts() == {"Concept": 1, "Fact": 4, "nodes": 5, "archived": 2, "edges": 6}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda texts: "The census of 2021 counted 999 goats in Togo.", "it says 999, togo"),
        (lambda texts: "The census of 2021 did not count goats in Ghana.", "it says not"),
        (lambda texts: " ", "summary: got an empty text"),
        (lambda texts: "Ghana.", "got 6 characters"),
        (lambda texts: "x" * 3000, "want at most 2000"),
    ],
)
def test_a_summary_that_invents_gives_way_to_the_texts_themselves(memory: Memory, bad, why: str) -> None:
    memory.add(_facts())
    [made] = _compact(memory, bad).clusters
    assert why in made.why
    assert (made.by, made.superseded) == ("extractive", 6)
    [concept] = memory.get([made.concept or 0])
    assert concept.metadata["summarised_by"] == "extractive"
    assert all(f"A: {n + 3}00" in concept.text for n in range(6))


def test_a_model_that_fails_gives_way_too(memory: Memory) -> None:
    def dead(texts: Sequence[str]) -> str:
        raise InferenceError("model x: its process ended")

    memory.add(_facts())
    assert _compact(memory, dead).clusters[0].why == "model x: its process ended"


def test_what_different_readers_see_is_never_put_together(memory: Memory) -> None:
    private = [_facts(trust="untrusted", writer=who) for who in ("ann", "bob")]
    mixed = [private[0][0], private[0][1], private[0][2], private[1][3], private[1][4], private[1][5]]
    memory.add([*mixed, *[replace(n, text=n.text + "!", domain="d") for n in _facts(trust="system")[:4]]])
    assert _compact(memory).clusters == ()
    memory.add([replace(each, text=each.text + ".") for each in private[0]])
    [made] = _compact(memory).clusters
    [concept] = memory.get([made.concept or 0])
    assert (concept.trust, concept.writer) == ("untrusted", "ann")
    assert memory.search_text(concept.text, 1, reader="bob")[0].node.id != concept.id


def test_documents_and_concepts_are_protected(memory: Memory) -> None:
    memory.add([replace(each, kind=kind, source="") for kind in ("Document", "Concept", "Fact") for each in _facts()])
    assert _compact(memory).candidates == 0
    assert _compact(memory, options=replace(NOW, kinds=("Document",))).candidates == 0


def test_young_nodes_are_left_alone(memory: Memory) -> None:
    memory.add(_facts())
    assert _compact(memory, options=replace(NOW, older_than_days=7)).candidates == 0


def test_the_first_run_shows_clusters_and_asks_no_model(memory: Memory, database: Database) -> None:
    memory.add(_facts())
    before = contents(database)

    def never(texts: Sequence[str]) -> str:
        raise AssertionError

    report = compact(database, memory.embedder, never, options=NOW)
    assert (report.dry, len(report.clusters[0].members)) == (True, 6)
    assert contents(database) == before


def test_members_that_changed_while_the_model_wrote_are_left_alone(memory: Memory, database: Database) -> None:
    ids = memory.add(_facts()).ids

    def meanwhile(texts: Sequence[str]) -> str:
        with database.transaction() as connection:
            connection.execute("UPDATE memory.nodes SET trust = 'untrusted' WHERE id = %s", [ids[0]])
        return _whole(texts)

    assert _compact(memory, meanwhile).clusters[0].why == "its members changed meanwhile"
    assert memory.counts()["archived"] == 0


def test_groups_are_dense_and_what_is_alone_stays_alone() -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(4, 64))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    near = np.repeat(centres, 10, axis=0) + rng.normal(size=(40, 64)) * 0.04
    vectors = np.concatenate([near, rng.normal(size=(1000, 64))])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = clusters.groups(vectors, 0.8, 5)
    assert sorted(sorted(map(int, group)) for group in found) == [list(range(i, i + 10)) for i in range(0, 40, 10)]
    assert clusters.groups(vectors[:0], 0.8, 5) == []


def _kill(pid: int) -> None:
    postmaster = psutil.Process(pid)
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(processes, timeout=20)


def test_postgres_killed_in_mid_compaction_leaves_nothing_half_done(settings: Settings, open_dir: Path) -> None:
    settings = replace(settings, state_dir=open_dir / "killed-compaction")
    server = EmbeddedPostgres(settings)
    embedder = EmbeddingAdapter(HashingEncoder())
    dsn = server.ensure()
    upgrade(dsn, embedder.id, embedder.dimension)
    database = Database(dsn)  # one that does not bring the server back by itself
    try:
        memory = Memory(database, embedder, settings)
        memory.add([*_facts(), *_facts(domain="Togo")[:5]])
        before = contents(database)
        asked = 0

        def killing(texts: Sequence[str]) -> str:
            nonlocal asked
            asked += 1
            if asked == 2:
                pid = server.status().pid
                assert pid is not None
                _kill(pid)
            return _whole(texts)

        with pytest.raises(DatabaseError):
            _compact(memory, killing)
        server.ensure()
        [killed] = runs.latest(database)
        assert (killed.status, killed.counts) == ("running", {"concepts": 1, "superseded": 6})
        assert memory.counts()["Concept"] == 1
        again = _compact(memory)
        assert runs.find(database, killed.id).status == "failed"
        assert [each.superseded for each in again.clusters] == [5]
        runs.undo(database, again.run)
        runs.undo(database, killed.id)
        assert contents(database) == before
    finally:
        database.close()
        server.stop()
