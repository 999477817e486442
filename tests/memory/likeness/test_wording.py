"""Which texts speak of the same thing, and which near duplicates share a band."""

import sys

import pytest

from ruvllm.errors import SettingsError
from ruvllm.memory.hnsw import ef_search
from ruvllm.memory.likeness.minhash import SIGNERS, bands, jaccard, signed, signer
from ruvllm.memory.likeness.wording import reworded, same_answer, same_names, same_question, telling_answer


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is the population of Ghana?", "what is the population of ghana"),
        ("What is the population of Ghana?", "Population of Ghana"),
        ("What is Ghana's population?", "What is the population of Ghana?"),
        ("Who lives in 1,000 villages?", "Who lives in 1000 villages"),
        ("How many people live in Ghana?", "What is the population of Ghana?"),
        ("What is the capital of Ghana?", "Which is the capital city of Ghana?"),
        ("Who wrote Hamlet?", "Who is the author of Hamlet?"),
        ("Accra is the capital of Ghana.", "The capital of Ghana is Accra."),
        ("33 million people live in Ghana.", "Ghana has 33 million inhabitants."),
        ("Why can't Ghana export gold?", "Why can Ghana not export gold?"),
    ],
)
def test_one_question(first: str, second: str) -> None:
    assert same_question(first, second)
    assert same_question(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is the population of Ghana?", "What is the population of Gabon?"),
        ("population of ghana", "population of gabon"),  # no capital tells
        ("What are the exports of Ghana?", "What are the imports of Ghana?"),
        ("Did Germany beat Brazil?", "Did Brazil beat Germany?"),
        ("did germany beat brazil", "did brazil beat germany"),
        ("What is 2 + 1?", "What is 2 - 1?"),
        ("When was Rome founded?", "Where was Rome founded?"),
        ("Who is the king of Spain?", "Who is not the king of Spain?"),
        ("Is C# older than C?", "Is C older than C?"),
        ("GDP in 2023 in dollars", "GDP in 2024 in dollars"),
        ("What is the?", "What is a?"),
        ("ガーナの人口は？", "ガボンの人口は？"),
        ("How many people live in Ghana?", "What people live in Ghana?"),
        ("Ghana is larger than Gabon.", "Gabon is larger than Ghana."),
        ("Ghana imports more than it exports", "Ghana exports more than it imports"),
        ("Where may Ghana fish?", "Where mayn't Ghana fish?"),
        ("Who is the king of Spain?", "Who was the king of Spain?"),
        ("Ghana sells 3 to Togo", "Togo sells 3 to Ghana"),
    ],
)
def test_two_questions(first: str, second: str) -> None:
    assert not same_question(first, second)
    assert not same_question(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("When did India become independent?", "In what year did India gain its independence?"),
        ("What is the longest river in Ghana?", "Which river of Ghana is the longest?"),
    ],
)
def test_what_may_be_one_question_in_other_words(first: str, second: str) -> None:
    assert reworded(first, second)
    assert reworded(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Who founded the bank of Ghana?", "Who owns the bank of Ghana?"),  # one word for another
        ("What is the rural population of Ghana?", "What is the population of Ghana?"),  # one word more
        ("Who wrote the anthem of Ghana?", "Who composed the tune of Ghana's anthem?"),  # another deed
        ("When was Rome taken by the Gauls?", "Where did the Gauls defeat the army of Rome?"),
        ("exports to Ghana in a year", "exports from Ghana in a year"),
        ("how much gold is mined in ghana", "what quantity of gold does ghana dig up"),  # no name to be seen
    ],
)
def test_what_may_not(first: str, second: str) -> None:
    assert not reworded(first, second)
    assert not reworded(second, first)


@pytest.mark.parametrize(("answer", "telling"), [("yes", False), ("No.", False), ("3", False), ("33 million", True)])
def test_an_answer_that_many_questions_share_is_no_evidence(answer: str, telling: bool) -> None:
    assert telling_answer(answer) is telling


TEXT = "Rainfall is heavy in the south. The capital, Accra, has 2.5 million people."


@pytest.mark.parametrize(
    ("old", "new"),
    [("Accra", "Kumasi"), ("2.5", "2.6"), ("million", "billion"), ("south", "north"), ("is heavy", "is not heavy")],
)
def test_names_numbers_and_telling_words_set_texts_apart(old: str, new: str) -> None:
    assert same_names(TEXT, "In the south rainfall is heavy. The capital Accra has 2.5 million inhabitants.")
    assert not same_names(TEXT, TEXT.replace(old, new))


def test_answers_are_compared_strictly() -> None:
    assert same_answer("Accra", " accra.")
    assert same_answer("the 33,000,000", "33000000")
    for first, second in ("-5", "5"), ("5%", "5"), ("Accra", "not Accra"), ("1.5 million", "15 million"):
        assert not same_answer(first, second)


def test_near_duplicates_share_a_band_and_strangers_do_not() -> None:
    words = [f"word{i}" for i in range(80)]
    near = [*words[:40], "changed", *words[41:]]
    a, b, c = " ".join(words), " ".join(near), " ".join(reversed(words))
    assert jaccard(a, b) == 75 / 81  # 78 shingles each, 3 of them differ
    assert any(x == y for x, y in zip(bands(a), bands(b), strict=True))
    assert not any(x == y for x, y in zip(bands(a), bands(c), strict=True))
    assert all(-(2**63) <= band < 2**63 for band in bands("short"))
    assert bands("one") == bands("One!")


def test_each_signer_finds_its_own_near_duplicates_and_none_of_the_others() -> None:
    text = "The harbour of Tema was built after independence and handles most of the cargo of Ghana"
    near = text.replace("most", "much")
    for each in SIGNERS:
        mine, other = signed(text, each), signed(near, each)
        assert any(x == y for x, y in zip(mine.hashes, other.hashes, strict=True))
    assert len({each.scheme for each in SIGNERS}) == len(SIGNERS)
    rust, python = (signed(text, each).hashes for each in SIGNERS)
    assert not set(rust) & set(python)


def test_stored_bands_stay_comparable() -> None:
    """Golden: another version of a signer that signs otherwise needs a scheme of its own."""
    text = "The harbour of Tema was built after independence"
    assert [signed(text, each).hashes[:2] for each in SIGNERS] == [
        (1873004121428092847, 6821818256332407067),
        (6524291392499333253, 1813121731049638438),
    ]


def test_without_rensa_datasketch_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    signer.cache_clear()
    try:
        assert signer().scheme == 2
        monkeypatch.setitem(sys.modules, "datasketch", None)
        signer.cache_clear()
        with pytest.raises(SettingsError, match="pip install datasketch"):
            signer()
    finally:
        signer.cache_clear()


def test_a_search_keeps_at_least_k_candidates() -> None:
    assert [ef_search(k, 0) for k in (1, 64, 65, 2000)] == [64, 64, 65, 1000]
    assert [ef_search(10, n) for n in (99_999, 100_000, 10**6, 10**7)] == [64, 64, 128, 256]
