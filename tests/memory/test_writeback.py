"""Good answers become Facts, once; a merge never hides another fact."""

import threading
from dataclasses import replace

import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.errors import InputError
from ruvllm.memory.records import NewNode, WriteBack
from ruvllm.memory.store import Memory
from ruvllm.settings import Settings

GHANA = "What is the population of Ghana?"
GABON = "What is the population of Gabon?"


def _back(
    memory: Memory, question: str, answer: str, quality: float | None = 1.0, source: str = "gold", **more
) -> WriteBack:
    return memory.write_back(question, answer, quality, source, **more)


def _version_history(database: Database) -> list[tuple]:
    with database.transaction() as connection:
        return connection.execute(
            "SELECT t.metadata ->> 'answer', n.version, n.archived_at IS NULL FROM memory.nodes n"
            " JOIN memory.node_texts t ON t.node = n.id WHERE n.kind = 'Fact' ORDER BY n.id"
        ).fetchall()


def test_a_good_answer_is_written_and_found(memory: Memory) -> None:
    result = _back(memory, GHANA, "33 million", 0.9, writer="ann", domain="geography")
    assert result.outcome == "written"
    [hit] = memory.search_text("population of Ghana", 1)
    node = hit.node
    assert (node.id, node.kind, node.source, node.domain) == (result.node, "Fact", "qa_pair", "geography")
    assert node.text == f"Q: {GHANA}\nA: 33 million"
    assert (node.trust, node.writer, round(node.confidence, 3)) == ("corroborated", "ann", 0.9)
    assert node.metadata["quality"] == 0.9


@pytest.mark.parametrize(
    ("quality", "outcome"), [(None, "unscored"), (0.0, "skipped"), (0.749, "skipped"), (0.75, "written")]
)
def test_only_scored_and_good_enough(memory: Memory, quality: float | None, outcome: str) -> None:
    assert _back(memory, GHANA, "33 million", quality).outcome == outcome
    assert memory.counts()["nodes"] == (outcome == "written")


@pytest.mark.parametrize("quality", [-0.1, 1.1, float("nan")])
def test_a_quality_out_of_range_is_an_error(memory: Memory, quality: float) -> None:
    with pytest.raises(InputError, match="quality: got"):
        _back(memory, GHANA, "33 million", quality)


@pytest.mark.parametrize("answer", ["", " ", "a\x00b", "\udfff", "x" * 20_001, "x" * 19_990])
def test_what_memory_cannot_hold_is_skipped_with_the_reason(memory: Memory, answer: str) -> None:
    result = _back(memory, GHANA, answer)
    assert (result.outcome, result.node) == ("skipped", None)
    assert "answer" in result.reason
    assert memory.counts()["nodes"] == 0


def test_the_same_answer_again_strengthens_the_node(memory: Memory, database: Database) -> None:
    first = _back(memory, GHANA, "33 million", 0.8)
    second = _back(memory, "population of Ghana", "33 million.", 0.95, "feedback", writer="bob")
    assert (second.outcome, second.node) == ("merged", first.node)
    [node] = memory.get([first.node])
    assert round(node.confidence, 3) == 0.95
    assert [entry["writer"] for entry in node.metadata["history"]] == ["bob"]
    for _ in range(25):
        _back(memory, GHANA, "33 million")
    assert len(memory.get([first.node])[0].metadata["history"]) == 20  # bounded
    assert memory.counts()["nodes"] == 1
    with database.transaction() as connection:
        assert connection.execute("SELECT uses FROM memory.node_usage").fetchone() == (26,)


def test_a_better_answer_replaces_the_old_one_as_a_new_version(memory: Memory, database: Database) -> None:
    [passage] = memory.add([NewNode("a passage")]).ids
    old = _back(memory, GHANA, "30 million", 0.8, derived_from=(passage,))
    new = _back(memory, GHANA, "33 million", 0.9)
    assert new.outcome == "written"
    assert "supersedes" in new.reason
    assert _version_history(database) == [("30 million", 1, False), ("33 million", 2, True)]
    with database.transaction() as connection:
        row = connection.execute("SELECT superseded_by FROM memory.nodes WHERE id = %s", [old.node]).fetchone()
        edges = connection.execute(
            "SELECT src, dst, rel FROM memory.edges WHERE rel = 'Derived' ORDER BY dst"
        ).fetchall()
    assert row == (new.node,)
    assert edges == [(new.node, passage, "Derived"), (new.node, old.node, "Derived")]  # its sources are inherited
    worse = _back(memory, GHANA, "31 million", 0.85)
    assert (worse.outcome, worse.node) == ("skipped", new.node)
    assert [hit.node.id for hit in memory.search_text(GHANA, 5, exclude_kinds=("Document",))] == [new.node]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (GHANA, GABON),
        (GHANA.lower(), GABON.lower()),
        ("What are the exports of Ghana in 2023 by value?", "What are the imports of Ghana in 2023 by value?"),
        ("What was the GDP of Ghana in 2022 in dollars?", "What was the GDP of Ghana in 2023 in dollars?"),
    ],
)
@pytest.mark.parametrize("answers", [("33 million", "33 million"), ("33 million", "2 million")])
def test_questions_that_differ_in_a_word_are_two_facts(
    memory: Memory, settings: Settings, first: str, second: str, answers: tuple[str, str]
) -> None:
    careless = Memory(memory.database, memory.embedder, replace(settings, duplicate_cosine=0.5, duplicate_jaccard=0.1))
    for question, answer, quality in ((first, answers[0], 0.8), (second, answers[1], 1.0)):
        assert _back(careless, question, answer, quality).outcome == "written"
    assert careless.maintain().archived == 0
    assert careless.counts()["Fact"] == 2


def test_edges_to_sources_and_to_the_same_topic(memory: Memory) -> None:
    passage, other = memory.add([NewNode("Ghana: 33 million people"), NewNode("rivers of Peru")]).ids
    first = _back(
        memory, "what is the population of Ghana in people", "33 million", derived_from=(passage, passage, 10**9)
    )
    second = _back(memory, "what is the population of Ghana in 2023 people", "33 million")
    edges = {(src, dst, rel) for src, dst, rel, _ in memory.neighbours([first.node], hops=1)}
    assert (first.node, passage, "Derived") in edges
    assert (second.node, first.node, "SameTopic") in edges
    assert not any(other in edge for edge in edges)


def test_what_feedback_scored_is_its_writers_until_corroborated(memory: Memory) -> None:
    claim = _back(memory, GHANA, "one", 1.0, "feedback", writer="mallory")
    assert memory.search_text(GHANA, 5) == []
    assert memory.search_text(GHANA, 5, reader="mallory")[0].node.id == claim.node
    other = _back(memory, GHANA, "33 million", 0.8, "feedback", writer="ann")
    assert other.outcome == "written"  # a row that ann cannot see is no rival of hers
    assert memory.search_text(GHANA, 5, reader="ann")[0].node.id == other.node
    again = _back(memory, GHANA, "33 million", 0.9, "feedback", writer="bob")
    assert (again.outcome, again.node) == ("merged", other.node)
    assert [hit.node.id for hit in memory.search_text(GHANA, 5)] == [other.node]  # two writers: corroborated


def test_no_quality_that_a_user_claims_displaces_a_corroborated_fact(memory: Memory) -> None:
    truth = _back(memory, GHANA, "33 million", 0.8)
    poison = _back(memory, GHANA, "one", 1.0, "feedback", writer="mallory")
    assert (poison.outcome, poison.node) == ("skipped", truth.node)
    assert _back(memory, GHANA, "one", 1.0, "judge", writer="mallory").outcome == "skipped"


def test_it_is_part_of_the_callers_transaction(memory: Memory, database: Database) -> None:
    with database.transaction() as connection:
        assert _back(memory, GHANA, "33 million", connection=connection).outcome == "written"
        raise psycopg.Rollback
    assert memory.counts()["nodes"] == 0
    with database.transaction() as connection:
        _back(memory, GHANA, "33 million", connection=connection)
    assert memory.counts()["nodes"] == 1


def test_the_same_answer_from_many_at_once_is_one_fact(memory: Memory) -> None:
    results: list[WriteBack] = []
    wordings = [GHANA, "population of Ghana", GHANA.lower()]
    threads = [
        threading.Thread(target=lambda i=i: results.append(_back(memory, wordings[i % 3], "33 million")))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.outcome for result in results) == ["merged"] * 5 + ["written"]
    assert memory.counts()["nodes"] == 1


def test_with_the_real_encoder(template: str, settings: Settings, postgres) -> None:
    """Paraphrases find it; questions about two countries stay two facts; contradicting answers meet."""
    from ruvllm.database.migrate import upgrade

    embedder = open_embedder(settings)
    dsn = postgres.create_database("real_encoder")
    upgrade(dsn, embedder.id, embedder.dimension)
    database = Database(dsn)
    memory = Memory(database, embedder, settings)
    memory.add(
        [
            NewNode(f"{name} exports {goods}.")
            for name, goods in (("Ghana", "gold"), ("Gabon", "oil"), ("Peru", "copper"))
        ]
    )
    ghana, gabon = _back(memory, GHANA, "33 million people"), _back(memory, GABON, "2.4 million people")
    capital = _back(memory, "What is the capital of Australia?", "Sydney", 0.8)
    better = _back(memory, "What is Australia's capital?", "Canberra, and it always was since 1927", 1.0)
    assert [r.outcome for r in (ghana, gabon, capital, better)] == ["written"] * 4
    assert memory.counts()["archived"] == 1  # Sydney
    for question, wanted in (
        ("How many people live in Ghana?", ghana),
        ("How many inhabitants does Gabon have?", gabon),
        ("Which city is Australia governed from?", better),
    ):
        assert memory.search_text(question, 1)[0].node.id == wanted.node
    database.close()
