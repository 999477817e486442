"""Speculative decoding as an experiment: drafts looked up in the prompt, verified in one batch. No part of the package.

It needs what the package's engine has no door for: logits of every token of a batch, and undoing rejected tokens. On
models of attention alone llama.cpp takes them back; LFM2's convolutions cannot be taken back, so the state before the
batch is restored and the accepted tokens are evaluated again.
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ruvllm.inference.snapshots import Snapshot
from tests.benchmarks.inference.counted import Counting

LONGEST = 15  # tokens of a draft
Draft = Callable[[Sequence[int]], list[int]]


class Drafting(Counting):
    """An engine that can also say what it would have said behind each token of a batch."""

    n_outputs = LONGEST + 1
    _every = False
    _body = Snapshot((), b"")

    def best_after_each(self, tokens: Sequence[int]) -> list[int]:
        self._every = True
        try:
            self.evaluate(tokens)
        finally:
            self._every = False
        return [self._best(i) for i in range(len(tokens))]

    def stand_behind(self, prompt: Sequence[int]) -> None:
        """The last eight tokens are always evaluated, for their logits; the rest only if it is another prompt's."""
        body = tuple(prompt[:-8])
        if self._body.tokens != body:
            self.clear()
            self.evaluate(body)
            self._body = self.snapshot()
        self.restore(self._body)
        self.evaluate(prompt[-8:])

    def best(self) -> int:
        return int(self.logits().argmax())

    def _fill(self, chunk: Sequence[int]) -> None:
        super()._fill(chunk)
        for i in range(len(chunk) if self._every else 0):
            self._batch.logits[i] = 1

    def _best(self, place: int) -> int:
        pointer = self._api.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).argmax())

    def take_back(self, count: int) -> bool:
        """Whether llama.cpp forgot the last `count` tokens; it refuses for LFM2."""
        left = len(self._tokens) - count
        done = bool(self._api.llama_memory_seq_rm(self._memory, 0, ctypes.c_int32(left), ctypes.c_int32(-1)))
        if done:
            del self._tokens[left:]
        return done


@dataclass
class Decoded:
    """An answer's tokens, the CPU seconds behind its prompt, and what drafting came to."""

    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0
    batches: int = 0
    drafted: int = 0
    accepted: int = 0


def lookup(longest: int, grams: Sequence[int] = (3, 2)) -> Draft:
    """What followed the last time that the text's last three (or two) tokens were seen: prompt-lookup decoding."""

    def draft(tokens: Sequence[int]) -> list[int]:
        found = next((place for n in grams if (place := _last_seen(tokens, n)) is not None), len(tokens))
        return list(tokens[found : found + longest])

    return draft


def _last_seen(tokens: Sequence[int], n: int) -> int | None:
    """The place behind the last earlier occurrence of the last `n` tokens."""
    raw, width = array("i", tokens).tobytes(), array("i").itemsize
    end = raw[-n * width :]
    place = raw.rfind(end, 0, len(raw) - width)
    while place > 0 and place % width:  # across two tokens
        place = raw.rfind(end, 0, place + len(end) - 1)
    return place // width + n if place >= 0 else None


def foresight(prompt: Sequence[int], answer: Sequence[int], longest: int) -> Draft:
    """A draft model that is wrong in every fifth token: it knows the answer. What is gained with it is a bound."""

    def draft(tokens: Sequence[int]) -> list[int]:
        place = len(tokens) - len(prompt)
        known = [token if i % 5 < 4 else token + 1 for i, token in enumerate(answer)]
        return known[place : place + longest]

    return draft


def no_draft(tokens: Sequence[int]) -> list[int]:
    return []


def decode(engine: Drafting, prompt: Sequence[int], count: int, draft: Draft) -> Decoded:
    """Greedy, up to `count` tokens or the model's end."""
    engine.stand_behind(prompt)
    began = time.process_time()
    made = Decoded([engine.best()])
    while len(made.tokens) < count and not engine.is_end(made.tokens[-1]):
        proposed = draft([*prompt, *made.tokens])[: count - len(made.tokens) - 1]
        made.tokens += _step(engine, made, proposed)
        made.tokens = _up_to_end(engine, made.tokens)
    made.seconds = time.process_time() - began
    return made


def _step(engine: Drafting, made: Decoded, proposed: list[int]) -> list[int]:
    """The proposed tokens that the model would have said, and the one that it says behind them."""
    batch = [made.tokens[-1], *proposed]
    before = engine.snapshot() if proposed and not _can_take_back(engine) else None
    best = engine.best_after_each(batch)
    good = next((i for i, token in enumerate(proposed) if token != best[i]), len(proposed))
    made.batches, made.drafted, made.accepted = made.batches + 1, made.drafted + len(proposed), made.accepted + good
    if good < len(proposed):
        _undo(engine, before, batch[: 1 + good], len(proposed) - good)
    return [*proposed[:good], best[good]]


def _undo(engine: Drafting, before: Snapshot | None, right: list[int], wrong: int) -> None:
    if before is None:
        assert engine.take_back(wrong)
    else:
        engine.restore(before)
        engine.evaluate(right)


def _can_take_back(engine: Drafting) -> bool:
    return not engine._api.llama_model_is_hybrid(engine._model)


def _up_to_end(engine: Drafting, tokens: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if engine.is_end(token)]
    return tokens[: ends[0] + 1] if ends else tokens


def expected_speedup(alpha: float, drafted: int, draft: float, verify: float, redo: float = 0.0) -> float:
    """Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with what a batch costs here and what undoing costs.

    alpha: a drafted token is accepted with this probability, each independently; the costs are in plain tokens:
    `draft` of drafting one, `verify` of the batch, `redo` of what follows a rejection.
    """
    tokens = (1 - alpha ** (drafted + 1)) / (1 - alpha)
    return tokens / (drafted * draft + verify + (1 - alpha**drafted) * redo)
