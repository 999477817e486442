"""Both packaged models in this process, through llama.cpp itself; states are test_restore.py's."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from inference_prompts import short_prompt

from ruvllm.errors import CancelledError, DeadlineError, InferenceError, InputError, TooLargeError
from ruvllm.inference.engine import Engine
from ruvllm.inference.generation import Generator
from ruvllm.inference.halt import Halt
from ruvllm.inference.snapshots import Snapshots
from ruvllm.inference.types import Prompt, Sampling, Segment

TEXT = "The harbour of Velm was opened in 1911 and has fourteen piers; its lighthouse stands on the rock of Aro. " * 4
GREEDY = Sampling(max_tokens=6)


def _generator(engine: Engine, *stop: str) -> Generator:
    return Generator(engine, stop, Snapshots(2**26))


@pytest.fixture(scope="module", params=["chat", "few-shot"])
def engine(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Iterator[Engine]:
    made = Engine(paths[request.param], n_ctx=1024)
    made.set_threads(1, 1)  # two would spin for each other: this process does not wait passively
    yield made
    made.close()


@pytest.mark.parametrize(
    "marker", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "<start_of_turn>", "<eos>"]
)
def test_a_special_token_in_untrusted_text_stays_plain_characters(engine: Engine, marker: str) -> None:
    plain = engine.tokenise_segments([Segment(f"a {marker} b", trusted=False)])
    control = {token for token in range(engine.n_vocab) if engine.is_control(token)}
    assert not control & set(plain)
    assert b"".join(engine.piece(token) for token in plain).decode() == f"a {marker} b"


def test_a_special_token_in_trusted_text_acts(engine: Engine) -> None:
    ends = [engine.tokenise(marker, special=True) for marker in ("<|im_end|>", "<end_of_turn>")]
    assert [engine.is_end(tokens[0]) for tokens in ends if len(tokens) == 1] == [True]


def _nested_prompts() -> list[tuple[int, Prompt]]:
    passages = ("Velm has 14 piers.\n", "Its light is 41 m high.\n", "Ida Torsen built the light.\n")
    static = "Answer from the text.\n"
    return [(256 * 2**i, short_prompt("How many piers?", passages[: i + 1], static)) for i in range(3)]


def test_nested_answers_are_those_of_single_requests(engine: Engine) -> None:
    prompts = _nested_prompts()
    single = [_generator(engine, "\n").generate(prompt, GREEDY, Halt()) for _, prompt in prompts]
    nested = _generator(engine, "\n").generate_nested(prompts[::-1], GREEDY, Halt())
    assert [n.context_bin for n in nested] == [256, 512, 1024]
    assert [n.generation.text for n in nested] == [s.text for s in single]
    assert [n.generation.prompt_tokens for n in nested] == [s.prompt_tokens for s in single]
    # Each bin finds everything before its own passage evaluated, and no answer of a smaller bin in its state.
    questions = len(engine.tokenise("How many piers?", False)) + len(engine.tokenise("\nAnswer:", True))
    kept = [n.generation.prompt_tokens - questions for n in nested]
    assert [n.generation.cached_tokens for n in nested] == [0, *kept[:-1]]


def test_identical_bins_are_answered_once(engine: Engine) -> None:
    prompt = short_prompt("How many piers?", ("Velm has 14 piers.\n",))
    once, again = _generator(engine).generate_nested([(256, prompt), (512, prompt)], GREEDY, Halt())
    assert again.generation == once.generation
    assert (again.context_bin, again.spent_s, again.cold_prefill_s) == (512, 0.0, once.cold_prefill_s)


def test_a_context_that_does_not_extend_the_smaller_one_is_evaluated_in_full(engine: Engine) -> None:
    small, large = (short_prompt("How many?", (text,)) for text in ("Velm has 14 piers.\n", "Aro has 3 rocks.\n"))
    generator = _generator(engine, "\n")
    nested = generator.generate_nested([(256, small), (512, large)], GREEDY, Halt())
    assert nested[1].generation.text == generator.generate(large, GREEDY, Halt()).text
    static = len(engine.begin_tokens()) + len(engine.tokenise_segments(large.static))
    assert nested[1].generation.cached_tokens == static


def test_the_static_prefix_is_evaluated_once(engine: Engine) -> None:
    generator = _generator(engine)
    static = len(engine.begin_tokens()) + len(engine.tokenise_segments(short_prompt("x").static))
    cached = [generator.generate(short_prompt(q), GREEDY, Halt()).cached_tokens for q in ("Who?", "When?")]
    assert cached == [0, static]


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_evaluated(engine: Engine) -> None:
    engine.clear()
    long = short_prompt("Which?", ("word " * 1100,))
    with pytest.raises(TooLargeError, match="want at most 1024 together"):
        _generator(engine).generate(long, GREEDY, Halt())
    assert engine.tokens == ()


class _Waited(Halt):
    """Says when the model first asks whether to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    @property
    def passed(self) -> bool:
        self.asked.set()
        return super().passed


def test_another_thread_stops_a_prefill_in_the_middle(engine: Engine) -> None:
    generator = _generator(engine)
    before = generator.generate(short_prompt("Who?"), GREEDY, Halt())
    halt = _Waited()
    caller = threading.Thread(target=lambda: halt.asked.wait(60) and halt.cancel())
    caller.start()
    with pytest.raises(CancelledError, match="cancelled by its caller"):
        generator.generate(short_prompt("Which?", ("word " * 400,)), GREEDY, halt)
    caller.join()
    static = engine.begin_tokens() + engine.tokenise_segments(short_prompt("").static)
    assert engine.tokens in ((), tuple(static))  # of the long piece not a token was done
    assert generator.generate(short_prompt("Who?"), GREEDY, Halt()).text == before.text


def test_the_deadline_stops_a_prefill_and_leaves_nothing_to_build_on(engine: Engine) -> None:
    asked = itertools.count()
    words = engine.tokenise("word " * 100, special=False)
    engine.clear()
    with pytest.raises(DeadlineError, match="deadline passed"):
        engine.evaluate(words, Halt(20.0, lambda: float(next(asked))))
    assert next(asked) < 40  # nodes of the graph; a prefill has several hundred
    with pytest.raises(InferenceError, match="want a clear or a restore first"):
        engine.evaluate(words)
    engine.clear()
    engine.evaluate(words)
    assert engine.tokens == tuple(words)


def test_what_is_heard_of_an_answer_is_its_text(engine: Engine) -> None:
    heard: list[str] = []
    prompt, sampling = short_prompt("Count: 1, 2, 3,"), Sampling(max_tokens=12)
    answer = _generator(engine).generate(prompt, sampling, Halt(), heard.append)
    assert "".join(heard) == answer.text
    assert len(heard) > 3


def test_probabilities_are_the_softmax_of_a_full_evaluation(engine: Engine) -> None:
    static, text = "You answer questions about harbours in a few words.\n", ("Velm has 14 piers and a light.\n" * 2,)
    prompts = [short_prompt(f"How many piers has Velm? {n}", text, static) for n in "12"]
    first, second = _generator(engine).choose(prompts, ["1", "5"], Halt())
    assert first.cached_tokens == 0
    # The second begins with all that the first had up to the number in its question.
    assert second.cached_tokens > second.prompt_tokens / 2
    for prompt, got in zip(prompts, (first, second), strict=True):
        parts = (*prompt.static, *prompt.context, *prompt.question)
        engine.clear()
        engine.evaluate(engine.begin_tokens() + engine.tokenise_segments(parts))
        weights = np.exp(engine.logits().astype(np.float64))
        ids = [engine.tokenise(choice, special=False)[0] for choice in ("1", "5")]
        assert got.probabilities == pytest.approx([float(weights[i] / weights.sum()) for i in ids], rel=1e-9)


def test_a_choice_of_several_tokens_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"choice 'harbour 10': became '.+' \+ '.+', want one token"):
        _generator(engine).choose([short_prompt("x")], ["harbour 10"], Halt())


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    free = _generator(engine).generate(short_prompt("Count: 1, 2, 3,"), Sampling(max_tokens=12), Halt())
    stop = free.text[3:5]
    stopped = _generator(engine).generate(
        short_prompt("Count: 1, 2, 3,"), Sampling(max_tokens=12, stop=(stop,)), Halt()
    )
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)].strip()
