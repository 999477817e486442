"""Maintain merges duplicates of one kind and source, loses nothing, and does so once."""

from dataclasses import replace

import pytest

from ruvllm.database.pool import Database
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.tidy import dedup

TEXT = (
    "Travellers who arrive by ship land at a place that most guide books leave out, though it repays a visit on foot."
    " The harbour of Tema was built after independence and handles most of the cargo of Ghana. It lies thirty"
    " kilometres east of Accra on the Gulf of Guinea and has been widened twice since it was opened in 1962."
)
NODE = NewNode(TEXT, source="guide")


def _two(memory: Memory, second: str, **more) -> tuple[int, int]:
    a, b = memory.add([NODE, replace(NODE, text=second, **more)]).ids
    return a, b


def test_near_and_exact_duplicates_are_merged_once(memory: Memory) -> None:
    near = TEXT.replace("was built", "was constructed")
    spaced = TEXT.replace(". It", ".\n\nIt")
    others = [NewNode(f"Chapter {i} is about thing{i} and nothing else of note", source="guide") for i in range(30)]
    memory.add([NODE, replace(NODE, text=near), replace(NODE, text=spaced), *others])
    report = memory.maintain()
    assert report.as_dict() == {
        "nodes_before": 33, "checked": 33, "merged_exact": 1, "merged_near": 1, "archived": 2, "nodes_after": 31,
    }  # fmt: skip
    assert memory.maintain().as_dict() == {
        "nodes_before": 31, "checked": 0, "merged_exact": 0, "merged_near": 0, "archived": 0, "nodes_after": 31,
    }  # fmt: skip
    assert memory.maintain(everything=True).archived == 0
    assert memory.counts()["archived"] == 2


def test_what_was_merged_away_is_not_written_again(memory: Memory) -> None:
    near = TEXT.replace("was built", "was constructed")
    a, _ = _two(memory, near)
    memory.maintain()
    report = memory.add([NODE, replace(NODE, text=near)])
    assert (report.ids, report.written) == ((a, a), 0)


@pytest.mark.parametrize(
    ("old", "new"), [("Tema", "Takoradi"), ("1962", "1963"), ("east", "west"), ("has been", "has never been")]
)
def test_another_name_number_or_sense_is_another_fact(memory: Memory, old: str, new: str) -> None:
    _two(memory, TEXT.replace(old, new))
    assert memory.maintain().archived == 0


@pytest.mark.parametrize("change", [{"kind": "Concept"}, {"source": "elsewhere"}])
def test_other_kinds_and_sources_are_left_alone(memory: Memory, change: dict[str, str]) -> None:
    _two(memory, TEXT.replace("was built", "was constructed"), **change)
    assert memory.maintain().archived == 0


def test_the_heir_takes_edges_usage_and_provenance(memory: Memory, database: Database) -> None:
    a, b = _two(memory, TEXT.replace("was built", "was constructed"), confidence=0.5, writer="ann")
    c, d = memory.add([NewNode("c"), NewNode("d")]).ids
    memory.link_all(
        [(b, c, "Cites", 0.9), (a, c, "Cites", 0.2), (d, b, "Follows", 0.6), (a, b, "SameTopic", 0.9)], "test"
    )
    memory.touch([b])
    memory.touch([a, b])
    assert memory.maintain().merged_near == 1
    edges = [(src, dst, rel, round(weight, 2)) for src, dst, rel, weight in memory.neighbours([a])]
    assert edges == [(a, c, "Cites", 0.9), (d, a, "Follows", 0.6)]
    with database.transaction() as connection:
        assert connection.execute("SELECT uses FROM memory.node_usage WHERE node = %s", [a]).fetchone() == (3,)
        bands = connection.execute("SELECT count(*) FROM memory.minhash_bands WHERE node = %s", [b]).fetchone()
    assert bands == (0,)
    [heir, gone] = memory.get([a, b])
    assert heir.metadata["history"] == [{"merged": gone.uuid, "writer": "ann"}]
    assert gone.text != heir.text  # the old version is kept


def test_the_conflict_rule_trust_then_confidence_then_age(memory: Memory) -> None:
    a, b = _two(memory, TEXT.replace("was built", "was constructed"), confidence=1.0)
    weak = replace(NODE, text=TEXT.replace("handles", "carries"), trust="corroborated")
    memory.add([weak])
    memory.maintain()
    assert memory.counts()["nodes"] == 1
    assert memory.search_text(TEXT, 1)[0].node.id == a != b


def test_untrusted_rows_merge_only_where_their_reader_still_sees_them(memory: Memory) -> None:
    near = TEXT.replace("was built", "was constructed")
    memory.add(
        [replace(NODE, trust="untrusted", writer="ann"), replace(NODE, text=near, trust="untrusted", writer="bob")]
    )
    assert memory.maintain().archived == 0
    memory.add([replace(NODE, text=TEXT.replace("handles", "carries"))])
    assert memory.maintain().archived == 2  # both into the system's
    assert memory.search_text(TEXT, 5)[0].node.trust == "system"


def test_a_killed_run_goes_on_where_it_stopped(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "_BATCH", 10)
    texts = [TEXT.replace("Tema", f"Port{i}") for i in range(15)]
    memory.add([NewNode(text, source="guide") for text in texts])
    memory.add([NewNode(text.replace("was built", "was constructed"), source="guide") for text in texts])

    def killed(done: int, total: int, note: str = "") -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.maintain(killed)
    before = memory.counts()["archived"]
    report = memory.maintain()
    assert report.checked <= 10
    assert (before + report.archived, report.nodes_after) == (15, 15)
    assert before > 0 < report.archived


def test_contradicting_answers_that_became_visible_meet(memory: Memory, database: Database) -> None:
    """A private row is no rival when it is written; once corroborated it is."""
    question = "What is the population of Ghana?"
    memory.write_back(question, "one", 1.0, "feedback", "mallory")
    kept = memory.write_back(question, "33 million", 0.8, "gold")
    assert memory.counts()["nodes"] == 2
    assert memory.maintain().merged_near == 1
    assert [hit.node.id for hit in memory.search_text(question, 5, reader="mallory")] == [kept.node]
    assert round(memory.get([kept.node])[0].confidence, 3) == 0.8  # another answer's quality does not rub off
