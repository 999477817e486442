"""Pieces joined against the whole answer's definition, however its bytes are cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from ruvllm.inference.speech import Speech

RAW = st.lists(st.one_of(st.text("ab:é漢🙂 \n\t", max_size=6).map(str.encode), st.binary(max_size=3)), max_size=10).map(
    b"".join
)
STOPS = st.lists(st.text("ab:é漢\n ", min_size=1, max_size=4), max_size=3)


def whole(raw: bytes) -> str:
    """The definition: no knowledge of pieces."""
    return raw.decode(errors="ignore").strip().removeprefix(":").strip()


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(raw) + 1) for place in places}), len(raw)]
    return [raw[a:b] for a, b in pairwise(bounds)]


def say(tokens: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    speech = Speech(stops)
    said = [speech.push(token) for token in tokens]
    stopped = speech.stopped
    return [*said, speech.finish()], stopped


@given(RAW, st.lists(st.integers(0, 1000), max_size=12))
@example(b" : a b \n", [1, 2, 3, 4, 5])
@example("漢🙂".encode()[:-1], [1, 2, 3, 4, 5, 6])
def test_the_pieces_are_the_text(raw: bytes, places: list[int]) -> None:
    said, stopped = say(cut(raw, places), [])
    assert ("".join(said), stopped) == (whole(raw), False)


@given(RAW, st.lists(st.integers(0, 1000), max_size=12), STOPS)
def test_an_answer_ends_before_the_stop_that_was_complete_first(
    raw: bytes, places: list[int], stops: list[str]
) -> None:
    tokens = cut(raw, places)
    said, stopped = say(tokens, stops)
    seen, end = b"", None
    for token in tokens:  # as it was before answers were streamed: look for every stop in all bytes after each token
        seen += token
        end = min((seen.find(stop.encode()) for stop in stops if stop.encode() in seen), default=None)
        if end is not None:
            break
    assert stopped == (end is not None)
    assert "".join(said) == whole(seen if end is None else seen[:end])


@given(RAW, st.lists(st.integers(0, 1000), max_size=12), STOPS)
def test_what_was_said_is_never_taken_back(raw: bytes, places: list[int], stops: list[str]) -> None:
    """Every prefix of the pieces begins the whole: nothing held back was said too early."""
    said, _ = say(cut(raw, places), stops)
    text, so_far = "".join(said), ""
    for piece in said:
        so_far += piece
        assert text.startswith(so_far)
        assert not so_far[:1].isspace()
        assert so_far == so_far.rstrip()


def test_text_is_said_as_soon_as_it_stands() -> None:
    speech = Speech(["\n\n", "END"])
    assert [speech.push(token) for token in (b" ", b":", b" The", b" dog", b" E", b"ar", b"\n", b"x")] == [
        "", "", "The", " dog", "", " Ear", "", "\nx",
    ]  # fmt: skip
    assert (speech.push(b" EN"), speech.finish()) == ("", " EN")


def test_a_character_is_held_until_it_is_whole() -> None:
    speech = Speech()
    assert [speech.push(bytes([byte])) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
