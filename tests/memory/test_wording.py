"""Which texts speak of the same thing, and which near duplicates share a band."""

import pytest

from ruvllm.memory.hnsw import ef_search
from ruvllm.memory.minhash import bands, jaccard
from ruvllm.memory.wording import same_answer, same_names, same_question


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is the population of Ghana?", "what is the population of ghana"),
        ("What is the population of Ghana?", "Population of Ghana"),
        ("What is Ghana's population?", "What is the population of Ghana?"),
        ("Who lives in 1,000 villages?", "Who lives in 1000 villages"),
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
    ],
)
def test_two_questions(first: str, second: str) -> None:
    assert not same_question(first, second)
    assert not same_question(second, first)


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


def test_a_search_keeps_at_least_k_candidates() -> None:
    assert [ef_search(k, 0) for k in (1, 32, 64, 2000)] == [32, 32, 64, 1000]
    assert [ef_search(10, n) for n in (99_999, 100_000, 10**6, 10**7)] == [32, 64, 128, 256]
