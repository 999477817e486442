"""Both packaged models in this process, through llama.cpp itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from inference_prompts import short_prompt

from ruvllm.errors import InferenceError, TooLargeError
from ruvllm.inference.engine import Engine
from ruvllm.inference.generation import Generator
from ruvllm.inference.types import Prompt, Sampling, Segment

FOREVER = math.inf
TEXT = "The harbour of Velm was opened in 1911 and has fourteen piers; its lighthouse stands on the rock of Aro. " * 4
GREEDY = Sampling(max_tokens=6)


@pytest.fixture(scope="module", params=["chat", "few-shot"])
def engine(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Iterator[Engine]:
    made = Engine(paths[request.param], n_ctx=1024)
    made.set_threads(1, 1)  # two would spin for each other: this process does not wait passively
    yield made
    made.close()


@pytest.mark.parametrize("cut", [16, 60, -2])
def test_logits_after_a_restore_are_those_of_a_full_evaluation_bit_by_bit(engine: Engine, cut: int) -> None:
    tokens = engine.begin_tokens() + engine.tokenise(TEXT, special=False)
    engine.clear()
    engine.evaluate(tokens)
    full = engine.logits().copy()
    engine.clear()
    engine.evaluate(tokens[:cut])
    snapshot = engine.snapshot()
    engine.evaluate(engine.tokenise("Something else altogether.", special=False))
    engine.restore(snapshot)
    engine.evaluate(tokens[cut:])
    assert engine.tokens == tuple(tokens)
    np.testing.assert_array_equal(engine.logits(), full)


def test_a_state_longer_than_the_attention_window_restores(engine: Engine) -> None:
    tokens = (engine.tokenise(TEXT, special=False) * 8)[:540]  # Gemma's window is 512
    engine.clear()
    engine.evaluate(tokens[:520])
    snapshot = engine.snapshot()
    engine.evaluate(tokens[520:])
    straight = engine.logits().copy()
    engine.restore(snapshot)
    engine.evaluate(tokens[520:])
    restored = engine.logits().copy()
    engine.restore(snapshot)
    engine.evaluate(tokens[520:])
    np.testing.assert_array_equal(engine.logits(), restored)
    # Cells that left the window are not restored, so sums are rounded otherwise than without a restore.
    assert restored.argmax() == straight.argmax()
    assert np.corrcoef(restored, straight)[0, 1] > 0.99


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
    single = [Generator(engine, ("\n",)).generate(prompt, GREEDY, FOREVER) for _, prompt in prompts]
    nested = Generator(engine, ("\n",)).generate_nested(prompts[::-1], GREEDY, FOREVER)
    assert [n.context_bin for n in nested] == [256, 512, 1024]
    assert [n.generation.text for n in nested] == [s.text for s in single]
    assert [n.generation.prompt_tokens for n in nested] == [s.prompt_tokens for s in single]
    # Each bin finds everything before its own passage evaluated, and no answer of a smaller bin in its state.
    questions = len(engine.tokenise("How many piers?", False)) + len(engine.tokenise("\nAnswer:", True))
    kept = [n.generation.prompt_tokens - questions for n in nested]
    assert [n.generation.cached_tokens for n in nested] == [0, *kept[:-1]]


def test_identical_bins_are_answered_once(engine: Engine) -> None:
    prompt = short_prompt("How many piers?", ("Velm has 14 piers.\n",))
    once, again = Generator(engine, ()).generate_nested([(256, prompt), (512, prompt)], GREEDY, FOREVER)
    assert again.generation == once.generation
    assert (again.context_bin, again.spent_s, again.cold_prefill_s) == (512, 0.0, once.cold_prefill_s)


def test_a_context_that_does_not_extend_the_smaller_one_is_evaluated_in_full(engine: Engine) -> None:
    small, large = (short_prompt("How many?", (text,)) for text in ("Velm has 14 piers.\n", "Aro has 3 rocks.\n"))
    generator = Generator(engine, ("\n",))
    nested = generator.generate_nested([(256, small), (512, large)], GREEDY, FOREVER)
    assert nested[1].generation.text == generator.generate(large, GREEDY, FOREVER).text
    static = len(engine.begin_tokens()) + len(engine.tokenise_segments(large.static))
    assert nested[1].generation.cached_tokens == static


def test_the_static_prefix_is_evaluated_once(engine: Engine) -> None:
    generator = Generator(engine, ())
    static = len(engine.begin_tokens()) + len(engine.tokenise_segments(short_prompt("x").static))
    cached = [generator.generate(short_prompt(q), GREEDY, FOREVER).cached_tokens for q in ("Who?", "When?")]
    assert cached == [0, static]


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_evaluated(engine: Engine) -> None:
    engine.clear()
    long = short_prompt("Which?", ("word " * 1100,))
    with pytest.raises(TooLargeError, match="want at most 1024 together"):
        Generator(engine, ()).generate(long, GREEDY, FOREVER)
    assert engine.tokens == ()


def test_the_deadline_stops_a_prefill_in_the_middle(engine: Engine) -> None:
    generator = Generator(engine, ())
    before = generator.generate(short_prompt("Who?"), GREEDY, FOREVER)
    began = time.monotonic()
    with pytest.raises(InferenceError, match="deadline passed"):
        generator.generate(short_prompt("Which?", ("word " * 900,)), GREEDY, began + 0.15)
    assert time.monotonic() - began < 1.5
    assert generator.generate(short_prompt("Who?"), GREEDY, FOREVER).text == before.text


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    free = Generator(engine, ()).generate(short_prompt("Count: 1, 2, 3,"), Sampling(max_tokens=12), FOREVER)
    stop = free.text[3:5]
    stopped = Generator(engine, ()).generate(
        short_prompt("Count: 1, 2, 3,"), Sampling(max_tokens=12, stop=(stop,)), FOREVER
    )
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)].strip()
