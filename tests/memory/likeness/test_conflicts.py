"""One fact in other words is stored once; near-duplicates that differ in a number, a negation or an entity stay apart.

With the real encoder: what is near depends on it. The pairs are made of other sentences than those that calibrate it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from ruvllm.database.migrate import upgrade
from ruvllm.database.pool import Database
from ruvllm.embedding import open_embedder
from ruvllm.embedding.adapter import EmbeddingAdapter
from ruvllm.memory.likeness.alike import same_fact
from ruvllm.memory.likeness.thresholds import thresholds
from ruvllm.memory.records import NewNode
from ruvllm.memory.store import Memory
from ruvllm.memory.writing.writeback import Answered, Statement, write
from ruvllm.settings import load_settings

Asked = tuple[str, str]

PLACES = ("Austria", "Bolivia", "Cameroon", "Denmark", "Ethiopia")
# Of one fact: question and question in other words.
REWORDED = (
    ("How many people live in {p}?", "What is {p}'s population?"),
    ("What is the capital of {p}?", "Which is the capital city of {p}?"),
    ("What is the official language of {p}?", "Which language is official in {p}?"),
    ("What is the average rainfall in {p}?", "On average, how much rain falls in {p}?"),
    ("What is the life expectancy in {p}?", "How long do people in {p} live on average?"),
    ("What is the literacy rate of {p}?", "What share of the people of {p} can read and write?"),
    ("When was {p} founded?", "In what year was {p} established?"),
    ("What is the calling code of {p}?", "Which country code does one dial to phone {p}?"),
    ("What does {p} export?", "Which goods does {p} sell abroad?"),
    ("How large is {p}?", "What is the surface area of {p}?"),
    ("What is the longest river in {p}?", "Which river of {p} is the longest?"),
    ("What was the unemployment rate of {p} in 2019?", "How high was unemployment in {p} in 2019?"),
    ("Who was the first president of {p}?", "Who was {p}'s first president?"),
    ("How tall is the highest mountain in {p}?", "What is the height of the highest mountain in {p}?"),
    ("Which countries does {p} border?", "Which countries share a border with {p}?"),
    ("What is the national animal of {p}?", "Which animal is the national symbol of {p}?"),
    ("Which party governs {p}?", "Which party is in government in {p}?"),
    ("What is the time zone of {p}?", "Which time zone is {p} in?"),
    ("At what temperature does the lead of {p} melt?", "What is the melting point of the lead of {p}?"),
    ("When did {p} join the United Nations?", "In what year did {p} become a member of the United Nations?"),
)  # fmt: skip
# Two facts nearly alike: what differs, one question, the other.
CONFLICTING = (
    ("number", "How many tourists came to {p} in 2018?", "How many tourists came to {p} in 2019?"),
    ("number", "What did 3 kilos of rice cost in {p}?", "What did 5 kilos of rice cost in {p}?"),
    ("number", "Who ruled {p} in the 17th century?", "Who ruled {p} in the 18th century?"),
    ("number", "What was the second city of {p}?", "What was the third city of {p}?"),
    ("number", "Who earns over one million in {p}?", "Who earns over one billion in {p}?"),
    ("number", "What does 10 % of the land of {p} cost?", "How much is 20 % of {p}'s land?"),
    ("negation", "Which roads of {p} are paved?", "Which roads of {p} are not paved?"),
    ("negation", "Which rivers of {p} carry water in summer?", "Which rivers in {p} don't carry water in summer?"),
    ("negation", "Who has visited {p}?", "Who has never visited {p}?"),
    ("negation", "What can be bought in {p} with a licence?", "What can one buy in {p} without a licence?"),
    ("negation", "Which crops grow in {p}?", "Which crops cannot grow in {p}?"),
    ("negation", "Where is fishing allowed in {p}?", "Where is fishing forbidden in {p}?"),
    ("negation", "Which treaties did {p} sign?", "Which treaties did {p} refuse to sign?"),
    ("entity", "What is the population of {p}?", "How many people live in {q}?"),
    ("entity", "What is the capital of {p}?", "What is the capital of {q}?"),
    ("entity", "what is the capital of {l}", "what is the capital of {m}"),
    ("entity", "Which wars did {p} fight against {q}?", "Which wars did {p} fight against Finland?"),
    ("entity", "Did {p} invade {q}, and when?", "Did {q} invade {p}, and when?"),
    ("entity", "Who was born in {p} in 1950?", "Who was born in {q} in 1950?"),
    ("entity", "What does {p} import from {q}?", "What does {q} import from {p}?"),
)  # fmt: skip


def _pairs(templates: tuple[tuple[str, str], ...]) -> list[tuple[Asked, Asked]]:
    """The answers are equal, so that only the questions can tell."""
    made = []
    for (one, other), (i, place) in product(templates, enumerate(PLACES)):
        names = {"p": place, "q": PLACES[i - 1], "l": place.lower(), "m": PLACES[i - 1].lower()}
        answer = f"forty-one, says the yearbook of {i + 1990}"
        made.append(((one.format(**names), answer), (other.format(**names), answer)))
    return made


@pytest.fixture(scope="module")
def embedder() -> EmbeddingAdapter:
    return open_embedder(load_settings({}))


def _merged(embedder: EmbeddingAdapter, pairs: list[tuple[Asked, Asked]]) -> list[bool]:
    limit = thresholds(embedder.id, load_settings({})).paraphrase
    texts = [f"Q: {question}\nA: {answer}" for pair in pairs for question, answer in pair]
    vectors = embedder.embed(texts).reshape(len(pairs), 2, -1)  # (pairs, 2, d)
    near = np.einsum("pd,pd->p", vectors[:, 0], vectors[:, 1])
    return [same_fact(*pair, float(cosine), limit) for pair, cosine in zip(pairs, near, strict=True)]


def test_of_200_made_pairs_no_two_facts_are_merged(embedder: EmbeddingAdapter) -> None:
    conflicting = _pairs(tuple((one, other) for _, one, other in CONFLICTING))
    same = _pairs(REWORDED)
    assert (len(conflicting), len(same)) == (100, 100)
    wrong = [pair for pair, merged in zip(conflicting, _merged(embedder, conflicting), strict=True) if merged]
    assert wrong == []  # precision 1
    found = sum(_merged(embedder, same))
    print(f"\n200 made pairs: 0 of 100 conflicting merged, {found} of 100 equivalent merged")
    assert found >= 65  # measured: 70; what is missed is stored twice, which loses nothing


def test_without_the_wording_nearness_would_merge_most_of_them(embedder: EmbeddingAdapter) -> None:
    """The null control: the pairs are hard, cosine alone fails on them."""
    conflicting = _pairs(tuple((one, other) for _, one, other in CONFLICTING))
    texts = [f"Q: {question}\nA: {answer}" for pair in conflicting for question, answer in pair]
    vectors = embedder.embed(texts).reshape(len(conflicting), 2, -1)
    near = np.einsum("pd,pd->p", vectors[:, 0], vectors[:, 1])
    assert (near >= thresholds(embedder.id, load_settings({})).paraphrase).sum() >= 40


@pytest.fixture(scope="module")
def memory(postgres, embedder: EmbeddingAdapter) -> Iterator[Memory]:
    dsn = postgres.create_database("conflicts")
    upgrade(dsn, embedder.id, embedder.dimension)
    database = Database(dsn)
    yield Memory(database, embedder, load_settings({}))
    database.close()


ASKED = (
    ("33 million", ("What is the population of Ghana?", "How many people live in Ghana?",
                    "How many inhabitants does Ghana have?")),
    ("8,849 metres", ("How tall is Mount Everest?", "What is the height of Mount Everest?",
                      "How high is Mount Everest?")),
    ("William Shakespeare", ("Who wrote Hamlet?", "Who is the author of Hamlet?", "Hamlet was written by whom?")),
    ("in 1947", ("When did India become independent?", "In what year did India gain independence?",
                 "In which year did India become independent?")),
    ("the yen", ("What is the currency of Japan?", "Which money is used in Japan?",
                 "Can you tell me what Japan's unit of currency is?")),
)  # fmt: skip

STATED = (
    ("The population of Togo is 9 million.", "Togo has 9 million inhabitants.", "9 million people live in Togo."),
    ("Lome is the capital of Togo.", "The capital of Togo is Lome.", "Togo's capital city is Lome."),
    ("Mount Agou is 986 metres high.", "The height of Mount Agou is 986 metres.", "Mount Agou is 986 meters tall."),
    ("Togo became independent in 1960.", "In 1960 Togo became independent.",
     "Togo became independent in the year 1960."),
    ("The currency of Togo is the CFA franc.", "Togo's currency is the CFA franc.",
     "The CFA franc is the currency of Togo."),
)  # fmt: skip


def test_five_answers_in_three_wordings_are_five_facts(memory: Memory) -> None:
    outcomes = [
        memory.write_back(question, answer, 1.0, "gold").outcome
        for turn in range(3)
        for answer, questions in ASKED
        for question in questions[turn : turn + 1]
    ]
    assert outcomes == ["written"] * 5 + ["merged"] * 10
    other = memory.write_back("What is the population of Gabon?", "33 million", 1.0, "gold")
    assert other.outcome == "written"


def test_five_statements_in_three_wordings_are_five_facts(memory: Memory) -> None:
    def told(text: str) -> str:
        statement = Statement(NewNode(text, kind="Fact", source="notes"))
        return write(memory.database, memory.embedder, memory.settings, statement).outcome

    assert [told(wordings[turn]) for turn in range(3) for wordings in STATED] == ["written"] * 5 + ["merged"] * 10
    for near in ("The population of Togo is 8 million.", "Togo's currency is not the CFA franc.",
                 "The population of Benin is 9 million.", "Togo became independent in 1961."):  # fmt: skip
        assert told(near) == "written"


def test_other_words_neither_raise_trust_nor_vanish_in_what_is_hidden(memory: Memory) -> None:
    """Who plants a question beside another's must not have it corroborated by the answer to the other."""
    planted, asked = "When did Peru become independent?", "In what year did Peru gain independence?"
    poison = memory.write_back(planted, "in the year 1821", 1.0, "feedback", writer="mallory")
    gold = memory.write_back(asked, "in the year 1821", 0.9, "gold")
    assert (poison.outcome, gold.outcome) == ("written", "written")
    assert memory.get([poison.node])[0].trust == "untrusted"
    mine = memory.write_back("In which year did Peru gain independence?", "in the year 1821", 1.0, "feedback", "ann")
    assert (mine.outcome, mine.node) == ("merged", gold.node)


def test_an_answered_pair_is_written_by_the_same_door(memory: Memory) -> None:
    answered = Answered("How deep is Lake Volta?", "75 metres", 1.0, "gold")
    first = write(memory.database, memory.embedder, memory.settings, answered)
    again = memory.write_back("What is the depth of Lake Volta?", "75 metres", 1.0, "gold")
    assert (first.outcome, again.outcome, again.node) == ("written", "merged", first.node)
