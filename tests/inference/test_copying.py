"""Answers held to spans of the passages: by hand, on random models, and through a real model's process."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_letters import END, Letters, letters_prompt
from numpy.typing import NDArray

from ruvllm.errors import InputError
from ruvllm.inference.copying import Ends, Limit, ends_of, spans_of
from ruvllm.inference.generation import Generator
from ruvllm.inference.halt import Halt
from ruvllm.inference.llama_cpp import LlamaWorker
from ruvllm.inference.prompt import build
from ruvllm.inference.snapshots import Snapshots
from ruvllm.inference.types import Prompt, Sampling, Segment

COPYING = Sampling(max_tokens=30, copying=True)
SUEZ = "The Suez Canal was opened in November 1869 after ten years of digging."


@dataclass
class Vocabulary(Letters):
    n_vocab: int = 128


def _generator(letters: Vocabulary) -> Generator:
    return Generator(letters, ("\n",), Snapshots(10**6), letters.clock)


def _wants(text: str) -> Callable[[tuple[int, ...]], NDArray[np.float32]]:
    """A model that says `text` and then a full stop, whatever was said, and likes every other letter alike."""

    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        place = len(tokens) - 1 - max(i for i, token in enumerate(tokens) if token == ord("Q"))
        return np.eye(128, dtype=np.float32)[ord(text[place]) if place < len(text) else ord(".")] * 50

    return logits


def _answer(text: str, wants: str, sampling: Sampling = COPYING) -> tuple[str, str]:
    made = _generator(Vocabulary(next_logits=_wants(wants))).generate(letters_prompt(text), sampling, Halt())
    return made.text, made.finish_reason


def whole_words(answer: str, text: str) -> bool:
    """Independent of the module: the answer stands in the text with no letter or digit glued to it."""
    return re.search(rf"(?<![^\W_]){re.escape(answer.strip())}(?![^\W_])", text) is not None


def test_a_span_that_the_model_wants_is_said_and_ends_where_it_leaves_the_text() -> None:
    assert _answer("Founder: Pell Hadder, who left clocks", " Pell Hadder") == ("Pell Hadder", "stop")


def test_what_is_not_in_the_text_cannot_be_said() -> None:
    """Free, this model says a name that it made up; held to the text, it says some words of it."""
    text = "Founder: Pell Hadder, who left clocks"
    assert _answer(text, " Ida", replace(COPYING, copying=False))[0].startswith("Ida.")
    said, _ = _answer(text, " Ida")
    assert "Ida" not in said
    assert said.strip()
    assert whole_words(said, text)


def test_a_word_behind_a_quotation_mark_is_entered_by_its_spelling_behind_a_space() -> None:
    assert _answer('He is called "Pell Hadder" there', " Pell Hadder")[0] == "Pell Hadder"


def test_an_answer_does_not_end_within_a_word_nor_begin_there() -> None:
    assert _answer("Hadderstown", " Hadder")[0] == "Hadderstown"
    assert _answer("Hadderstown", "town")[0].strip() == "Hadderstown"


def test_passages_do_not_run_into_each_other() -> None:
    limit, text = Limit(spans_of(["ab", "cd"], Vocabulary()), Ends(END, np.array([END]))), ""
    logits = np.arange(128, dtype=np.float32)  # the later letter is the better one
    while (token := int(limit(logits).argmax())) != END:
        text += chr(token)
        limit.said(token)
    assert text == "cd"


def test_ends_are_weighed_as_one() -> None:
    """Going on has probability 0.4, each of two ways to end 0.3: the answer ends, though going on is the best token."""
    ends = Ends(END, np.array([END, ord(".")]))
    limit = Limit(spans_of(["a b"], Vocabulary()), ends)
    logits = np.full(128, -50, np.float32)
    logits[[ord(" "), END, ord(".")]] = np.log([0.4, 0.3, 0.3])
    assert not np.isfinite(limit(logits)[END])  # nothing was said yet
    limit.said(ord("a"))
    limited = limit(logits)
    assert limited[END] == pytest.approx(np.log(0.6), abs=1e-5)
    assert limited[ord(" ")] == pytest.approx(np.log(0.4), abs=1e-5)
    assert np.isfinite(limited).sum() == 2


def test_a_mark_that_goes_on_in_the_text_is_no_end() -> None:
    text = "Height: 3.5 m"
    assert _answer(text, "3.5 m")[0] == "3.5 m"


def test_ends_of_a_vocabulary() -> None:
    found = ends_of(Vocabulary(pieces={65: b" .", 66: b"\n\n", 67: b" a.", 68: b" "}), 128)
    assert found.token == END
    assert {65, 66, ord(","), ord("\n"), END} <= set(found.closing.tolist())
    assert not {67, 68, ord("a"), ord(" ")} & set(found.closing.tolist())


def test_a_model_without_an_end_is_refused() -> None:
    class Endless(Vocabulary):
        def is_end(self, token: int) -> bool:
            return False

    with pytest.raises(InputError, match="no token that ends"):
        ends_of(Endless(), 128)


@pytest.mark.parametrize("context", [(), (Segment("trusted words", True),), (Segment(" .,;", False),)])
def test_nothing_to_copy_is_refused_before_anything_is_evaluated(context: tuple[Segment, ...]) -> None:
    letters = Vocabulary()
    prompt = replace(letters_prompt(""), context=context)
    with pytest.raises(InputError, match="ask without copying"):
        _generator(letters).generate(prompt, COPYING, Halt())
    assert letters.evaluated == 0


def test_only_passages_are_copied_not_what_stands_around_them() -> None:
    context = (Segment("Passages: ", True), Segment("Gull Pier", False), Segment(" end", True))
    letters = Vocabulary(next_logits=_wants("Passages"))
    said = _generator(letters).generate(replace(letters_prompt(""), context=context), COPYING, Halt()).text
    assert whole_words(said, "Gull Pier")


def test_each_bin_is_copied_from_its_own_passages() -> None:
    letters = Vocabulary(next_logits=_wants("zebra"))
    small, large = _generator(letters).generate_nested(
        [(256, letters_prompt("ape")), (512, letters_prompt("ape zebra"))], COPYING, Halt()
    )
    assert small.generation.text.strip() == "ape"
    assert large.generation.text == "zebra"


@given(
    texts=st.lists(st.text(alphabet="ab1 .,\"'()-é", max_size=20), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_whatever_the_model_thinks_whole_words_of_one_text_are_said(
    texts: list[str], seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    letters = Bytes(next_logits=lambda _: rng.normal(size=256).astype(np.float32) * 3, n_vocab=256)
    prompt = Prompt((Segment("S", True),), (), tuple(Segment(text, False) for text in texts), (Segment("Q", True),))
    sampling = replace(COPYING, max_tokens=60, temperature=temperature, seed=seed)
    try:
        said = _generator(letters).generate(prompt, sampling, Halt()).text
    except InputError:
        assert not any(re.search(r"[^\W_]", text) for text in texts)
        return
    assert said.strip()
    assert any(whole_words(said, text) for text in texts)


class Bytes(Vocabulary):
    """A token is a byte, so that a letter beyond ASCII has several."""

    def tokenise(self, text: str, special: bool) -> list[int]:
        return list(text.encode())


def test_a_real_model_copies_in_its_process(few_shot_worker: LlamaWorker) -> None:
    prompt = build(few_shot_worker.tier, "In what month and year was the Suez Canal opened?", [SUEZ], [])
    made = few_shot_worker.generate(prompt, replace(COPYING, max_tokens=16), 60)
    assert "1869" in made.text
    assert whole_words(made.text, SUEZ)
    assert made.finish_reason == "stop"
    # A question that the text does not answer is answered with words of the text all the same.
    other = build(few_shot_worker.tier, "Who painted the Mona Lisa?", [SUEZ], [])
    assert whole_words(few_shot_worker.generate(other, replace(COPYING, max_tokens=16), 60).text, SUEZ)
    assert not whole_words(few_shot_worker.generate(other, Sampling(max_tokens=16), 60).text, SUEZ)
