"""An evaluator by hand: a token is a letter, evaluating takes 1 s a token, restoring 0.5 s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ruvllm.inference.halt import Halt
from ruvllm.inference.snapshots import Snapshot
from ruvllm.inference.types import Prompt, Segment

END, RESTORE_S = 0, 0.5
BYTES_A_TOKEN = 100


def always_a(tokens: tuple[int, ...]) -> NDArray[np.float32]:
    return np.eye(128, dtype=np.float32)[ord("a")]


@dataclass
class Letters:
    """The model says by `next_logits` what comes next, always `a` unless told otherwise."""

    n_ctx: int = 200
    now: float = 0.0
    tokens: tuple[int, ...] = ()
    evaluated: int = 0
    copied: int = 0
    next_logits: Callable[[tuple[int, ...]], NDArray[np.float32]] = always_a
    pieces: dict[int, bytes] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def begin_tokens(self) -> list[int]:
        return []

    def tokenise(self, text: str, special: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def tokenise_segments(self, segments: Sequence[Segment]) -> list[int]:
        return [token for segment in segments for token in self.tokenise(segment.text, segment.trusted)]

    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int) -> bytes:
        return self.pieces.get(token, bytes([token]))

    def evaluate(self, tokens: Sequence[int], halt: Halt) -> None:
        for token in tokens:
            self.now += 1
            self.evaluated += 1
            self.tokens += (token,)
            halt.check("letters were read")

    def logits(self) -> NDArray[np.float32]:
        return self.next_logits(self.tokens)

    @property
    def state_bytes(self) -> int:
        return BYTES_A_TOKEN * len(self.tokens)

    def snapshot(self) -> Snapshot:
        self.copied += 1
        return Snapshot(self.tokens, b"x" * self.state_bytes)

    def restore(self, snapshot: Snapshot) -> None:
        self.tokens = snapshot.tokens
        self.now += RESTORE_S if snapshot.tokens else 0.0


def letters_prompt(context: str, static: str = "SSSS", history: str = "H", question: str = "QQ") -> Prompt:
    return Prompt(*((Segment(text, False),) for text in (static, history, context, question)))
