"""What is evaluated, and how its seconds are counted, on an evaluator that takes 1 s a token and 0.5 s a restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm.errors import InferenceError
from ruvllm.inference.engine import Snapshot
from ruvllm.inference.generation import MAX_STATICS, Generator
from ruvllm.inference.types import Prompt, Sampling, Segment

END, RESTORE_S = 0, 0.5
TWO = Sampling(max_tokens=2)


@dataclass
class Letters:
    """A token is a letter; the model always says `a` next."""

    n_ctx: int = 100
    now: float = 0.0
    tokens: tuple[int, ...] = ()
    evaluated: int = 0

    def clock(self) -> float:
        return self.now

    def begin_tokens(self) -> list[int]:
        return []

    def tokenise_segments(self, segments: Sequence[Segment]) -> list[int]:
        return [ord(letter) for segment in segments for letter in segment.text]

    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def evaluate(self, tokens: Sequence[int], deadline: float) -> None:
        self.now += len(tokens)
        self.evaluated += len(tokens)
        self.tokens += tuple(tokens)
        if self.now > deadline:
            raise InferenceError("deadline passed")

    def logits(self) -> NDArray[np.float32]:
        return np.eye(128, dtype=np.float32)[ord("a")]

    def snapshot(self) -> Snapshot:
        return Snapshot(self.tokens, b"")

    def restore(self, snapshot: Snapshot) -> None:
        self.tokens = snapshot.tokens
        self.now += RESTORE_S if snapshot.tokens else 0.0


def _prompt(context: str, static: str = "SSSS", question: str = "QQ") -> Prompt:
    of = lambda text: (Segment(text, False),)  # noqa: E731
    return Prompt(of(static), of("H"), of(context), of(question))


def test_seconds_of_nested_bins_by_hand() -> None:
    """static 4, history 1, contexts 3 and 3 + 5, question 2, answer 1 evaluated token."""
    letters = Letters()
    small, large = Generator(letters, (), letters.clock).generate_nested(
        [(512, _prompt("CCCDDDDD")), (256, _prompt("CCC"))], TWO, 1e9
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


def test_an_identical_bin_costs_nothing() -> None:
    letters = Letters()
    once, again = Generator(letters, (), letters.clock).generate_nested(
        [(256, _prompt("CCC")), (512, _prompt("CCC"))], TWO, 1e9
    )
    assert (again.spent_s, again.cold_prefill_s) == (0.0, once.cold_prefill_s)
    assert again.generation is once.generation


def test_static_states_are_few() -> None:
    letters = Letters()
    generator = Generator(letters, (), letters.clock)
    statics = [letter * 4 for letter in "VWXYZ"[: MAX_STATICS + 1]]
    cached = [generator.generate(_prompt("C", static), TWO, 1e9).cached_tokens for static in [*statics, *statics[1:]]]
    assert cached == [0] * len(statics) + [4] * MAX_STATICS
    assert generator.generate(_prompt("C", statics[0]), TWO, 1e9).cached_tokens == 0


def test_the_deadline_counts_between_tokens() -> None:
    letters = Letters()
    with pytest.raises(InferenceError, match="deadline passed"):
        Generator(letters, (), letters.clock).generate(_prompt("C"), Sampling(max_tokens=50), 20.0)
    assert letters.now <= 22


def test_an_answer_ends_at_the_earliest_stop() -> None:
    letters = Letters()
    generator = Generator(letters, ("aaaa",), letters.clock)
    assert generator.generate(_prompt("C"), Sampling(max_tokens=9), 1e9).text == ""
    free = Generator(letters, ("z",), letters.clock).generate(_prompt("C"), Sampling(max_tokens=9), 1e9)
    assert (free.text, free.completion_tokens, free.finish_reason) == ("a" * 9, 9, "length")
