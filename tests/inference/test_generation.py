"""What is evaluated, said and counted, on an evaluator by hand (inference_letters.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_letters import END, RESTORE_S, Letters, letters_prompt
from numpy.typing import NDArray

from ruvllm.errors import CancelledError, DeadlineError, InferenceError, InputError, TooLargeError
from ruvllm.inference.generation import Generator
from ruvllm.inference.halt import Halt
from ruvllm.inference.snapshots import Snapshots
from ruvllm.inference.types import Prompt, Sampling

TWO = Sampling(max_tokens=2)
HISTORY = "history so far"


def _generator(letters: Letters, stop: tuple[str, ...] = (), budget: int = 10**6) -> Generator:
    return Generator(letters, stop, Snapshots(budget), letters.clock)


def _says(text: str) -> Callable[[tuple[int, ...]], NDArray[np.float32]]:
    """Logits of a model that says `text` behind a prompt that ends in Q, and then ends."""

    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        place = len(tokens) - 1 - max(i for i, token in enumerate(tokens) if token == ord("Q"))
        return np.eye(128, dtype=np.float32)[ord(text[place]) if place < len(text) else END]

    return logits


# -- seconds and kept states


def test_seconds_of_nested_bins_by_hand() -> None:
    """static 4, history 1, contexts 3 and 3 + 5, question 2, answer 1 evaluated token."""
    letters = Letters()
    small, large = _generator(letters).generate_nested(
        [(512, letters_prompt("CCCDDDDD")), (256, letters_prompt("CCC"))], TWO, Halt()
    )
    assert (small.context_bin, large.context_bin) == (256, 512)
    # A user finds the static prefix kept: 0.5 to restore it, then history, context and question.
    assert small.cold_prefill_s == RESTORE_S + 1 + 3 + 2
    assert large.cold_prefill_s == RESTORE_S + 1 + 8 + 2
    # The first also evaluated the static prefix, the second found all but its own passage evaluated.
    assert small.spent_s == 4 + RESTORE_S + 1 + 3 + 2 + 1
    assert large.spent_s == RESTORE_S + 5 + 2 + 1
    assert large.generation.prefill_s == RESTORE_S + 5 + 2
    assert [n.generation.decode_s for n in (small, large)] == [1, 1]
    assert [n.generation.cached_tokens for n in (small, large)] == [0, 8]
    assert letters.evaluated == 4 + 1 + 8 + 2 * (2 + 1)


def test_seconds_of_a_bin_are_those_of_a_user_who_finds_only_the_static_prefix_kept() -> None:
    """Even where the history of the question is kept, too."""
    letters = Letters()
    generator = _generator(letters)
    prompt = letters_prompt("CCC", history=HISTORY)
    assert [generator.generate(prompt, TWO, Halt()).cached_tokens for _ in range(2)] == [0, 4 + len(HISTORY)]
    (bin_,) = generator.generate_nested([(256, prompt)], TWO, Halt())
    assert bin_.cold_prefill_s == RESTORE_S + len(HISTORY) + 3 + 2


def test_an_identical_bin_costs_nothing() -> None:
    letters = Letters()
    once, again = _generator(letters).generate_nested(
        [(256, letters_prompt("CCC")), (512, letters_prompt("CCC"))], TWO, Halt()
    )
    assert (again.spent_s, again.cold_prefill_s) == (0.0, once.cold_prefill_s)
    assert again.generation is once.generation


def test_a_conversation_goes_on_from_its_last_turn() -> None:
    letters = Letters()
    generator = _generator(letters)
    turns = ["", HISTORY, HISTORY + " and another turn"]
    cached = [generator.generate(letters_prompt("C", history=t), TWO, Halt()).cached_tokens for t in turns]
    assert cached == [0, 4, 4 + len(HISTORY)]
    before = letters.evaluated
    assert generator.generate(letters_prompt("D", history=turns[-1]), TWO, Halt()).cached_tokens == 4 + len(turns[-1])
    assert letters.evaluated - before == 1 + 2 + 1  # context, question, one token of the answer


def test_retrieved_context_is_no_part_of_what_is_kept() -> None:
    letters, snapshots = Letters(), Snapshots(10**6)
    generator = Generator(letters, (), snapshots, letters.clock)
    for context in "CDEF":
        generator.generate(letters_prompt(context * 20, history=HISTORY), TWO, Halt())
    assert snapshots.count == 2


@pytest.mark.parametrize("budget", [0, 300])
def test_without_room_for_a_state_the_answer_is_the_same_and_no_copy_is_made(budget: int) -> None:
    letters = Letters()
    poor, rich = _generator(letters, budget=budget), _generator(Letters())
    prompt = letters_prompt("CCC", history=HISTORY)
    for _ in range(2):
        got, want = poor.generate(prompt, TWO, Halt()), rich.generate(prompt, TWO, Halt())
        assert (got.text, got.cached_tokens) == (want.text, 0)
    assert letters.copied == 0
    small, large = poor.generate_nested([(256, letters_prompt("CCC")), (512, letters_prompt("CCCD"))], TWO, Halt())
    # Nobody finds the static prefix kept here, so everybody waits for it.
    assert small.cold_prefill_s == 4 + 1 + 3 + 2
    assert large.cold_prefill_s == 4 + 1 + 4 + 2


# -- stopping


def test_the_deadline_counts_between_tokens() -> None:
    letters = Letters()
    with pytest.raises(DeadlineError, match="deadline passed while"):
        _generator(letters).generate(letters_prompt("C"), Sampling(max_tokens=50), Halt(20.0, letters.clock))
    assert letters.now <= 22


def test_a_listener_may_cancel_in_the_middle_and_the_next_answer_is_right() -> None:
    letters, halt, heard = Letters(), Halt(), []
    generator = _generator(letters)

    def listen(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            halt.cancel()

    with pytest.raises(CancelledError, match="cancelled by its caller"):
        generator.generate(letters_prompt("C"), Sampling(max_tokens=50), halt, listen)
    assert heard == ["a"] * 3
    assert generator.generate(letters_prompt("C"), Sampling(max_tokens=5), Halt()).text == "aaaaa"


def test_a_request_cancelled_before_it_began_evaluates_next_to_nothing() -> None:
    letters, halt = Letters(), Halt()
    halt.cancel()
    with pytest.raises(CancelledError):
        _generator(letters).generate(letters_prompt("C" * 50), TWO, halt)
    assert letters.evaluated <= 1


# -- what is said


def test_an_answer_ends_at_the_earliest_stop() -> None:
    letters = Letters()
    generator = _generator(letters, stop=("aaaa",))
    assert generator.generate(letters_prompt("C"), Sampling(max_tokens=9), Halt()).text == ""
    free = _generator(letters, stop=("z",)).generate(letters_prompt("C"), Sampling(max_tokens=9), Halt())
    assert (free.text, free.completion_tokens, free.finish_reason) == ("a" * 9, 9, "length")


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        (Sampling(), "one"),
        (Sampling(lines=True), "one\ntwo\n\nthree"),
        (Sampling(lines=True, stop=("\n\n",)), "one\ntwo"),
    ],
)
def test_an_answer_has_several_lines_only_if_asked_for(sampling: Sampling, text: str) -> None:
    letters = Letters(next_logits=_says(" one\ntwo\n\nthree\n"))
    heard: list[str] = []
    got = _generator(letters, stop=("\n",)).generate(letters_prompt("C"), sampling, Halt(), heard.append)
    assert (got.text, got.finish_reason, "".join(heard)) == (text, "stop", text)


@given(st.text("ab:. \n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2))
def test_what_was_heard_is_the_text(answer: str, stops: list[str]) -> None:
    letters, heard = Letters(next_logits=_says(answer)), []
    got = _generator(letters).generate(
        letters_prompt("C"), Sampling(max_tokens=40, stop=tuple(stops)), Halt(), heard.append
    )
    ends = [answer.find(stop) for stop in stops if stop in answer]
    # The first stop to be complete ends the answer, not the one that would begin first.
    complete = min((answer.find(stop) + len(stop) for stop in stops if stop in answer), default=len(answer))
    assert "".join(heard) == got.text
    assert all(heard)
    if not ends:
        assert got.text == answer.strip().removeprefix(":").strip()
    else:
        assert len(got.text) <= complete
        assert not any(stop in got.text for stop in stops)


def test_a_token_without_characters_is_no_end() -> None:
    letters = Letters(next_logits=_says("a\x01b"), pieces={1: b""})
    got = _generator(letters).generate(letters_prompt("C"), Sampling(max_tokens=9), Halt())
    assert (got.text, got.completion_tokens) == ("ab", 4)


def test_one_token_needs_no_evaluation_of_itself() -> None:
    letters = Letters()
    got = _generator(letters).generate(letters_prompt("C"), Sampling(max_tokens=1), Halt())
    assert (got.text, got.completion_tokens, got.finish_reason) == ("a", 1, "length")
    assert letters.evaluated == got.prompt_tokens


def test_a_prompt_that_fills_the_context_to_the_last_token_is_answered() -> None:
    letters = Letters(n_ctx=30)
    full = letters_prompt("C" * (30 - 4 - 1 - 2 - 1))
    assert _generator(letters).generate(full, Sampling(max_tokens=1), Halt()).prompt_tokens == 29
    letters = Letters(n_ctx=30)
    with pytest.raises(TooLargeError, match="got 29 tokens and max_tokens 2, want at most 30 together"):
        _generator(letters).generate(full, TWO, Halt())
    assert letters.evaluated == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_damaged_logits_are_an_error(temperature: float) -> None:
    def damaged(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.where(np.arange(128) == 5, np.nan, 1.0).astype(np.float32)

    letters = Letters(next_logits=damaged)
    with pytest.raises(InferenceError, match="got nan as its best logit"):
        _generator(letters).generate(letters_prompt("C"), Sampling(temperature=temperature), Halt())
    with pytest.raises(InferenceError, match="got nan as its best logit"):
        _generator(letters).choose([letters_prompt("C")], ["a"], Halt())


# -- choices


def _count_vowels(tokens: tuple[int, ...]) -> NDArray[np.float32]:
    """The more `e` in the prompt, the likelier `y`."""
    logits = np.zeros(128, np.float32)
    logits[ord("y")] = tokens.count(ord("e"))
    return logits


def test_probabilities_are_over_the_whole_vocabulary() -> None:
    letters = Letters(next_logits=_count_vowels)
    (got,) = _generator(letters).choose([letters_prompt("eee")], ["y", "n"], Halt())
    others = 127 * np.exp(0.0)
    assert got.probabilities == pytest.approx((np.exp(3) / (np.exp(3) + others), 1 / (np.exp(3) + others)))
    assert got.prompt_tokens == 4 + 1 + 3 + 2


def test_what_two_prompts_in_a_row_share_is_evaluated_once() -> None:
    letters = Letters(next_logits=_count_vowels)
    alone = Letters(next_logits=_count_vowels)
    shared = "a passage that both are about "
    asked = "is the harbour of Velm "
    questions = (f"{asked}there, then? e", f"{asked}here, then? ee", "or elsewhere?")
    prompts = [letters_prompt(shared, question=question) for question in questions]
    prompts.append(letters_prompt("something else altogether", question="what?"))
    got = _generator(letters).choose(prompts, ["y"], Halt())
    want = [_generator(alone).choose([prompt], ["y"], Halt())[0] for prompt in prompts]
    assert [g.probabilities for g in got] == [w.probabilities for w in want]
    together = 4 + 1 + len(shared)
    assert [g.cached_tokens for g in got] == [0, together + len(asked), together, 4]
    assert letters.evaluated < alone.evaluated - 2 * len(shared) - len(asked) + 1


@given(st.lists(st.text("abe", min_size=1, max_size=60), min_size=1, max_size=5))
def test_sharing_changes_no_probability(questions: list[str]) -> None:
    letters, prompts = Letters(next_logits=_count_vowels), [letters_prompt("", question=q) for q in questions]
    together = _generator(letters).choose(prompts, ["y", "n"], Halt())
    for prompt, got in zip(prompts, together, strict=True):
        (alone,) = _generator(Letters(next_logits=_count_vowels)).choose([prompt], ["y", "n"], Halt())
        assert got.probabilities == alone.probabilities
        assert 0 <= got.cached_tokens < got.prompt_tokens == alone.prompt_tokens


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (["y", "10"], r"choice '10': became '1' \+ '0', want one token"),
        ([""], "choice '': became no token, want one token"),
        ([], "choices: got none"),
    ],
)
def test_a_choice_is_one_token(choices: list[str], words: str) -> None:
    letters = Letters()
    with pytest.raises(InputError, match=words):
        _generator(letters).choose([letters_prompt("C")], choices, Halt())
    assert letters.evaluated == 0


def test_a_judged_prompt_may_fill_the_context_and_no_more() -> None:
    def filling(n: int) -> Prompt:
        return letters_prompt("C" * (n - 4 - 1 - 2))

    assert _generator(Letters(n_ctx=30)).choose([filling(30)], ["a"], Halt())[0].prompt_tokens == 30
    with pytest.raises(TooLargeError, match="got 31 tokens"):
        _generator(Letters(n_ctx=30)).choose([filling(31)], ["a"], Halt())


# -- how sure


def test_an_answer_says_how_sure_the_model_was_where_it_is_asked() -> None:
    """By hand: of 128 letters one has logit 3 and the others 0; two tokens are made, and the end."""
    letters = Letters(next_logits=lambda tokens: 3 * _says("ok")(tokens))
    scored = _generator(letters).generate(letters_prompt("C"), Sampling(max_tokens=9, scored=True), Halt())
    assert scored.text == "ok"
    assert scored.certainty == pytest.approx(np.exp(3) / (np.exp(3) + 127), rel=1e-6)
    plain = _generator(Letters(next_logits=_says("ok"))).generate(letters_prompt("C"), Sampling(max_tokens=9), Halt())
    assert plain.certainty is None


def test_how_sure_is_the_geometric_mean_over_an_answer() -> None:
    """The first token is likelier than the second: the mean of logarithms, not of probabilities."""
    weights = {0: 5.0, 1: 1.0, 2: 2.0}

    def logits(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        place = len(tokens) - 1 - max(i for i, token in enumerate(tokens) if token == ord("Q"))
        return np.float32(weights[place]) * _says("ok")(tokens)

    made = _generator(Letters(next_logits=logits)).generate(
        letters_prompt("C"), Sampling(max_tokens=9, scored=True), Halt()
    )
    chances = [np.exp(weight) / (np.exp(weight) + 127) for weight in weights.values()]
    assert made.certainty == pytest.approx(np.prod(chances) ** (1 / 3), rel=1e-6)
