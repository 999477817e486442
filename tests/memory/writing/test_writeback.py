"""Good answers become Facts, once; a merge never hides another fact."""

import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.errors import InputError
from ruvllm.memory.records import NewNode, WriteBack
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import merge
from ruvllm.memory.writing import writeback, writes
from ruvllm.memory.writing.writeback import Statement, remember, write
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


def test_a_key_is_answered_with_the_first_outcome(memory: Memory) -> None:
    first = _back(memory, GHANA, "33 million", key="a")
    assert _back(memory, GHANA, "33 million", key="a") == first
    other = _back(memory, GABON, "2 million", 0.9, key="a")  # whatever else is sent under it
    assert (other.outcome, other.node) == ("written", first.node)
    low = _back(memory, GABON, "2 million", 0.1, key="b")
    assert low.outcome == "skipped"
    assert _back(memory, GABON, "2 million", 1.0, key="b").outcome == "skipped"
    assert memory.counts()["nodes"] == 1
    assert _back(memory, GABON, "2 million", 1.0, key="c").outcome == "written"


@pytest.mark.parametrize("key", ["x" * 201, "a\x00b", "\ud800"])
def test_a_key_that_cannot_be_kept_is_an_error(memory: Memory, key: str) -> None:
    with pytest.raises(InputError, match="key"):
        _back(memory, GHANA, "33 million", key=key)
    assert memory.counts()["nodes"] == 0


def test_a_key_of_a_write_that_was_rolled_back_is_free(memory: Memory, database: Database) -> None:
    with database.transaction() as connection:
        _back(memory, GHANA, "33 million", key="a", connection=connection)
        raise psycopg.Rollback
    assert _back(memory, GHANA, "34 million", key="a").outcome == "written"
    assert memory.search_text(GHANA, 1)[0].node.metadata["answer"] == "34 million"


def test_keys_are_the_tenants_own_and_are_forgotten_in_time(memory: Memory, database: Database) -> None:
    _back(memory, GHANA, "33 million", key="a")
    with database.transaction("other") as connection:
        assert writes.claim(connection, ["a"]) == {}
    with database.transaction() as connection:
        assert writes.forget(connection, days=1) == 0
        connection.execute("UPDATE memory.writes SET written_at = now() - interval '2 days'")
        assert writes.forget(connection, days=1) == 1


def test_what_was_superseded_stays_superseded_when_it_is_sent_again(memory: Memory, database: Database) -> None:
    _back(memory, GHANA, "30 million", 0.8, key="old")
    new = _back(memory, GHANA, "33 million", 0.9)
    for key in ("old", "", "another"):
        _back(memory, GHANA, "30 million", 0.8, key=key)
    assert _version_history(database) == [("30 million", 1, False), ("33 million", 2, True)]
    assert [hit.node.id for hit in memory.search_text(GHANA, 3)] == [new.node]
    fact = NewNode("Tema is a harbour of Ghana", kind="Fact", source="notes")
    [a] = memory.add([fact]).ids
    [b] = memory.add([replace(fact, text="Tema is the harbour of Ghana")]).ids
    with database.transaction() as connection:
        merge.absorb(connection, b, a)
    assert memory.add([fact]).ids == (b,)
    again = write(database, memory.embedder, memory.settings, Statement(fact))
    assert (again.outcome, again.node) == ("merged", b)


def _at_once(count: int, work: Callable[[int], object]) -> None:
    """Start `count` threads that begin `work` together."""
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def run(i: int) -> None:
        gate.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("keyed", [False, True])
def test_twenty_identical_writes_at_once_store_one(memory: Memory, keyed: bool) -> None:
    results: list[WriteBack] = []
    _at_once(20, lambda i: results.append(_back(memory, GHANA, "33 million", key="same" if keyed else "")))
    assert {result.node for result in results} == {results[0].node}
    outcomes = sorted(result.outcome for result in results)
    assert outcomes == (["written"] * 20 if keyed else ["merged"] * 19 + ["written"])  # a key gets the first outcome
    assert (memory.counts()["nodes"], memory.counts()["archived"]) == (1, 0)


def test_twenty_identical_nodes_added_at_once_are_one(memory: Memory) -> None:
    """In another order each time: two that wait for each other would be a deadlock."""
    nodes = [NewNode(f"Passage {i} of a book") for i in range(8)]
    ids: list[tuple[int, ...]] = []

    def add(i: int) -> None:
        turned = nodes[i % 8 :] + nodes[: i % 8]
        found = memory.add(turned).ids
        ids.append(found[8 - i % 8 :] + found[: 8 - i % 8])

    _at_once(20, add)
    assert len(set(ids)) == 1
    assert memory.counts()["nodes"] == 8


def test_ids_follow_the_order_of_the_input(memory: Memory) -> None:
    ids = memory.add([NewNode(f"node {i}") for i in range(20)]).ids
    assert list(ids) == sorted(ids)


def test_facts_of_a_session_follow_each_other(memory: Memory) -> None:
    first = _back(memory, GHANA, "33 million", session="s", turn=1)
    _back(memory, "What is the best harbour?", "nobody knows", 0.1, session="s", turn=2)  # not kept
    third = _back(memory, "Where is gold mined?", "Obuasi", session="s", turn=3)
    apart = _back(memory, "Who is the king of Spain?", "Felipe", session="t", turn=4)
    again = _back(memory, GHANA, "33 million", session="t", turn=5)
    edges = {(src, dst) for src, dst, rel, _ in memory.neighbours([third.node, again.node], hops=1) if rel == "Follows"}
    assert edges == {(third.node, first.node), (first.node, apart.node)}
    assert again.node == first.node


def test_a_session_does_not_lead_to_what_its_writer_may_not_see(memory: Memory) -> None:
    _back(memory, GHANA, "one", 1.0, "feedback", writer="mallory", session="s", turn=1)
    mine = _back(memory, "Where is gold mined?", "Obuasi", writer="ann", session="s", turn=2)
    assert memory.neighbours([mine.node], hops=1, reader="mallory") == []


def test_a_statement_is_kept_once_in_all_its_wordings(memory: Memory) -> None:
    def told(text: str, **more) -> WriteBack:
        return write(
            memory.database, memory.embedder, memory.settings, Statement(NewNode(text, "Fact", "notes"), **more)
        )

    first = told("Ghana has 33 million inhabitants.")
    assert told("The population of Ghana is 33 million.").node == first.node
    assert told("The population of Ghana is 34 million.").outcome == "written"
    assert told("The population of Gabon is 33 million.").outcome == "written"
    assert told("anything", key="k").outcome == told("something else", key="k").outcome == "written"
    with memory.database.transaction() as connection:
        told_again = remember(connection, memory.embedder, memory.settings,
                              Statement(NewNode("In Ghana live 33 million people.", "Fact", "elsewhere")))  # fmt: skip
    assert told_again.outcome == "written"  # another source: not for us to merge
    with pytest.raises(InputError, match="Fact"):
        told("\x00")


def test_a_deadlock_is_done_again(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    commit = writeback.commit

    def broken_off_twice(connection, what, prepared):
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.errors.DeadlockDetected("made up")
        return commit(connection, what, prepared)

    monkeypatch.setattr(writeback, "commit", broken_off_twice)
    assert _back(memory, GHANA, "33 million").outcome == "written"
    assert len(tries) == 3


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


def test_what_is_written_after_a_search_is_planned_with_sorts(memory: Memory, database: Database) -> None:
    """Without them the triggers of a write read every node there is, in the order of an index."""
    with database.transaction() as connection:
        result = memory.write_back(
            "When was the harbour of Tema opened?", "In 1962.", 1.0, "gold", connection=connection
        )
        assert result.outcome == "written"
        assert connection.execute("SELECT current_setting('enable_sort')").fetchone() == ("on",)
