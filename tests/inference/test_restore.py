"""A restored state is the state: on LFM2's hybrid of convolutions and attention and on both packaged models.

And what looks like the same thing, cutting a state back, is not: that is why the engine has no door for it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inference_prompts import short_prompt
from numpy.typing import NDArray

import ruvllm.inference
from ruvllm.inference.engine import Engine
from ruvllm.inference.generation import Generator
from ruvllm.inference.halt import Halt
from ruvllm.inference.prefix import MIN_PIECE
from ruvllm.inference.snapshots import Snapshots
from ruvllm.inference.types import Prompt, Sampling, Segment

Open = Callable[[str], Engine]
TEXT = "The harbour of Velm was opened in 1911 and has fourteen piers; its lighthouse stands on the rock of Aro. " * 20
GREEDY = Sampling(max_tokens=6)
MODELS = ("lfm2", "chat", "few-shot")


@pytest.fixture(scope="module")
def open_engine(paths: dict[str, Path], tiny_lfm2: Path) -> Iterator[Open]:
    """Each model once; two threads would spin for each other, as this process does not wait passively."""
    opened: dict[str, Engine] = {}

    def of(name: str) -> Engine:
        if name not in opened:
            opened[name] = Engine(tiny_lfm2 if name == "lfm2" else paths[name], n_ctx=1024)
            opened[name].set_threads(1, 1)
        return opened[name]

    yield of
    for engine in opened.values():
        engine.close()


def _text(engine: Engine, n: int) -> list[int]:
    return (engine.begin_tokens() + engine.tokenise(TEXT, special=False))[:n]


def _logits(engine: Engine, *pieces: list[int], leave: bool = False) -> NDArray[np.float32]:
    """Of the last of `pieces`, evaluated in turn; `leave`: other text in between, and back by a snapshot."""
    engine.clear()
    for i, piece in enumerate(pieces):
        if leave and i > 0:
            snapshot = engine.snapshot()
            engine.evaluate(engine.tokenise("Something else altogether, said in between.", special=False))
            engine.restore(snapshot)
        engine.evaluate(piece)
    return engine.logits().copy()


@given(st.integers(2 * MIN_PIECE, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_lfm2_restored_at_any_cut_is_a_full_evaluation_bit_by_bit(
    open_engine: Open, n: int, data: st.DataObject
) -> None:
    engine = open_engine("lfm2")
    tokens = _text(engine, n)
    cut = data.draw(st.integers(MIN_PIECE, n - MIN_PIECE))
    np.testing.assert_array_equal(_logits(engine, tokens[:cut], tokens[cut:], leave=True), _logits(engine, tokens))


@given(st.integers(1, 90), st.integers(1, 40))
@example(1, 1)
@example(1, 30)
@example(30, 1)
@settings(max_examples=30, deadline=None)
def test_lfm2_does_not_notice_that_it_was_left_and_restored(open_engine: Open, cut: int, rest: int) -> None:
    """Even where a piece is so short that other kernels compute it."""
    engine = open_engine("lfm2")
    tokens = _text(engine, cut + rest)
    there, back = (_logits(engine, tokens[:cut], tokens[cut:], leave=leave) for leave in (False, True))
    np.testing.assert_array_equal(back, there)


@pytest.mark.parametrize("model", ["chat", "few-shot"])
@pytest.mark.parametrize("cut", [MIN_PIECE, 17, 52])
def test_packaged_models_restored_are_a_full_evaluation_bit_by_bit(open_engine: Open, model: str, cut: int) -> None:
    engine = open_engine(model)
    tokens = _text(engine, 60)
    np.testing.assert_array_equal(_logits(engine, tokens[:cut], tokens[cut:], leave=True), _logits(engine, tokens))


@pytest.mark.parametrize("model", ["lfm2", "few-shot"])
def test_a_prompt_of_several_batches_and_beyond_a_window_restores(open_engine: Open, model: str) -> None:
    """Gemma attends to 512 tokens; cells behind the window are not restored, so its sums are rounded otherwise."""
    engine = open_engine(model)
    tokens = _text(engine, 540)
    straight = _logits(engine, tokens[:520], tokens[520:])
    restored = _logits(engine, tokens[:520], tokens[520:], leave=True)
    if model == "lfm2":
        np.testing.assert_array_equal(restored, straight)
    assert restored.argmax() == straight.argmax()
    assert np.corrcoef(restored, straight)[0, 1] > 0.99


def _cut_back(engine: Engine, kept: list[int], tail: list[int], other: list[int]) -> NDArray[np.float32] | None:
    """The tempting way: evaluate a tail, take it back, evaluate another. None: llama.cpp refuses to take it back."""
    engine.clear()
    engine.evaluate(kept)
    engine.evaluate(tail)
    position = ctypes.c_int32(len(kept))
    if not engine._api.llama_memory_seq_rm(engine._memory, 0, position, ctypes.c_int32(-1)):
        return None
    engine._tokens = list(kept)
    engine.evaluate(other)
    return engine.logits().copy()


@pytest.mark.parametrize("tail", [1, 2, 12, 40])
def test_rollback_is_refused_or_wrong_on_lfm2(open_engine: Open, tail: int) -> None:
    engine = open_engine("lfm2")
    tokens = _text(engine, 200)
    kept, other = tokens[:100], tokens[150:170]
    got = _cut_back(engine, kept, tokens[100 : 100 + tail], other)
    want = _logits(engine, kept, other)
    assert got is None or not np.array_equal(got, want)


def test_rollback_is_right_where_there_is_attention_only(open_engine: Open) -> None:
    """The control: on SmolLM2 the same steps do work, so that the test above is about LFM2 and not about the steps."""
    engine = open_engine("chat")
    tokens = _text(engine, 80)
    got = _cut_back(engine, tokens[:40], tokens[40:52], tokens[60:72])
    assert got is not None
    np.testing.assert_array_equal(got, _logits(engine, tokens[:40], tokens[60:72]))


def test_no_code_of_ours_cuts_a_state_back() -> None:
    folder = Path(ruvllm.inference.__path__[0])
    doors = re.compile(r"memory_seq_rm|kv_cache_seq_rm|n_rs_seq|LlamaRAMCache")
    assert [path.name for path in folder.rglob("*.py") if doors.search(path.read_text(encoding="utf-8"))] == []


def _prompt(history: str, question: str) -> Prompt:
    of = lambda text: (Segment(text, True),)  # noqa: E731
    context = "Velm has fourteen piers and its light stands on the rock of Aro.\n"
    return Prompt(of("You answer questions about harbours from the text.\n"), of(history), of(context), of(question))


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_is_answered_as_if_nothing_had_been_kept(open_engine: Open, model: str) -> None:
    engine = open_engine(model)
    keeping, forgetting = (Generator(engine, ("\n",), Snapshots(budget)) for budget in (2**26, 0))
    histories = ["", "Question: How many piers has Velm?\nAnswer: fourteen\n"]
    histories.append(histories[1] + "Question: Where does its light stand?\nAnswer: on the rock\n")
    got = [keeping.generate(_prompt(h, "Question: Is that high?\nAnswer:"), GREEDY, Halt()) for h in histories]
    want = [forgetting.generate(_prompt(h, "Question: Is that high?\nAnswer:"), GREEDY, Halt()) for h in histories]
    assert [g.text for g in got] == [w.text for w in want]
    assert [w.cached_tokens for w in want] == [0, 0, 0]
    static = len(engine.begin_tokens()) + len(engine.tokenise_segments(_prompt("", "x").static))
    first_turn = len(engine.tokenise(histories[1], special=True))
    assert [g.cached_tokens for g in got] == [0, static, static + first_turn]


def test_the_bytes_of_a_state_are_those_of_the_shape(open_engine: Open) -> None:
    """What is counted against the budget is what the hybrid holds: keys and values by the token, convolutions once."""
    engine = open_engine("lfm2")
    sizes = {}
    for n in (64, 128, 192):
        engine.clear()
        engine.evaluate(_text(engine, n))
        snapshot = engine.snapshot()
        assert engine.state_bytes == len(snapshot.state)
        sizes[n] = len(snapshot.state)
    assert sizes[192] - sizes[128] == sizes[128] - sizes[64] > 0


def test_a_state_is_not_made_where_it_would_not_fit(open_engine: Open) -> None:
    engine, snapshots = open_engine("lfm2"), Snapshots(10_000)
    generator = Generator(engine, (), snapshots)
    twice = [generator.generate(short_prompt("Who?"), GREEDY, Halt()) for _ in range(2)]
    assert twice[0].text == twice[1].text
    assert (snapshots.count, snapshots.bytes, twice[1].cached_tokens) == (0, 0, 0)
