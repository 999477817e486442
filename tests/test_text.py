"""Text at the door: what is refused, what is mended, how it is cut."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.errors import InputError, TooLargeError
from ruvllm.text import chunk_text, clean_text, is_clean

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=400)


def _cleaned(text: str) -> str | None:
    try:
        return clean_text(text)
    except InputError:
        return None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n\t\x0b", "empty"),
        ("\u200b\u200e", "empty"),  # zero width only
        ("a\ud800b", "lone surrogate at character 1"),
        ("a\x00b", "NUL at character 1"),
    ],
)
def test_refused_with_the_texts_name(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^question: .*{said}"):
        clean_text(text, "question")


def test_over_the_limit_even_if_only_after_nfc() -> None:
    with pytest.raises(TooLargeError, match="answer: got 21 characters, want at most 20"):
        clean_text("x" * 21, "answer", limit=20)
    assert clean_text("x" * 20, limit=20)
    with pytest.raises(TooLargeError, match="got 40 characters"):
        clean_text("\u0958" * 20, limit=20)  # each becomes two under NFC


def test_mended() -> None:
    assert clean_text(" e\u0301te\x07 \r\nb\rc\td ") == "éte  \nb\nc\td"
    assert clean_text("שלום \u202bעולם") == "שלום \u202bעולם"  # right-to-left marks are the writer's own


@given(TEXT)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = _cleaned(text)
    if once is None:
        return
    assert clean_text(once) == once
    assert is_clean(once)
    assert unicodedata.is_normalized("NFC", once)
    assert "\x00" not in once


@given(TEXT, st.integers(1, 80))
def test_chunks_hold_every_character_in_order_within_the_limit(text: str, limit: int) -> None:
    chunks = chunk_text(text, limit)
    assert all(0 < len(chunk) <= limit and chunk == chunk.strip() for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert [again for chunk in chunks for again in chunk_text(chunk, limit)] == chunks


@given(st.lists(st.text("abcé", min_size=1, max_size=9), min_size=1, max_size=60))
def test_words_stay_whole(words: list[str]) -> None:
    assert " ".join(chunk_text(" ".join(words), 12)).split() == words


def test_cut_at_paragraphs_then_sentences() -> None:
    text = "One two. Three four.\n\nFive six! “Seven?” Eight."
    assert chunk_text(text, 24) == ["One two. Three four.", "Five six! “Seven?”", "Eight."]
    assert chunk_text(text, 12) == ["One two.", "Three four.", "Five six!", "“Seven?”", "Eight."]
    assert chunk_text("第一句。第二句。", 4) == ["第一句。", "第二句。"]


def test_no_accent_is_torn_from_its_letter() -> None:
    assert chunk_text("aaa" + "x\u0332" * 3, 4) == ["aaa", "x\u0332x\u0332", "x\u0332"]


def test_a_megabyte_is_cut_quickly() -> None:
    chunks = chunk_text("word " * 200_000)
    assert sum(len(chunk.split()) for chunk in chunks) == 200_000
    assert max(map(len, chunks)) <= 600
