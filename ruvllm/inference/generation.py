"""Answers from one engine: static prefix kept, nested contexts evaluated once. Knows nothing of processes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import DeadlineError, InputError, TooLargeError
from ruvllm.inference.engine import Snapshot
from ruvllm.inference.sampling import pick
from ruvllm.inference.types import Generation, NestedGeneration, Prompt, Sampling, Segment

MAX_STATICS = 4  # snapshots kept: answering, judging and a few to come; 1 to 10 MB each


class Evaluator(Protocol):
    """What a generator needs of `Engine`."""

    n_ctx: int

    @property
    def tokens(self) -> tuple[int, ...]: ...
    def begin_tokens(self) -> list[int]: ...
    def tokenise_segments(self, segments: Sequence[Segment]) -> list[int]: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...
    def evaluate(self, tokens: Sequence[int], deadline: float) -> None: ...
    def logits(self) -> NDArray[np.float32]: ...
    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True)
class Tokens:
    """A prompt in token ids; `body` is history and context."""

    static: tuple[int, ...]
    body: tuple[int, ...]
    question: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.static) + len(self.body) + len(self.question)

    @property
    def before_question(self) -> tuple[int, ...]:
        return self.static + self.body


class Checkpoint(NamedTuple):
    """A state to start from, and the seconds that a request which starts at the static prefix needs to reach it."""

    snapshot: Snapshot
    seconds: float


class Answer(NamedTuple):
    text: str
    completion_tokens: int
    finish_reason: str


class Generator:
    """`stop` belongs to the tier's prompt style, beside what a request asks for. Deadlines are in `clock`'s seconds."""

    def __init__(self, engine: Evaluator, stop: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._stop = stop
        self._statics: OrderedDict[tuple[int, ...], Snapshot] = OrderedDict()

    def generate(self, prompt: Prompt, sampling: Sampling, deadline: float) -> Generation:
        """One answer.

        Raises:
            TooLargeError: prompt and max_tokens do not fit the context; nothing was evaluated.
            DeadlineError: the deadline passed.
        """
        tokens = self._tokenise(prompt, sampling)
        began = self._clock()
        cached = self._restore_static(tokens.static, deadline)
        self._engine.evaluate(tokens.body + tokens.question, deadline)
        prefilled = self._clock()
        answer = self._decode(sampling, deadline)
        return _generation(answer, tokens, cached, prefilled - began, self._clock() - prefilled)

    def generate_nested(
        self, prompts: Sequence[tuple[int, Prompt]], sampling: Sampling, deadline: float
    ) -> list[NestedGeneration]:
        """An answer per (bin, prompt), smallest bin first; what one bin evaluated is not evaluated for the next."""
        tokenised = [(context_bin, self._tokenise(prompt, sampling)) for context_bin, prompt in _by_bin(prompts)]
        return list(self._nested(tokenised, sampling, deadline))

    def _nested(
        self, prompts: Sequence[tuple[int, Tokens]], sampling: Sampling, deadline: float
    ) -> Iterator[NestedGeneration]:
        known: dict[Tokens, NestedGeneration] = {}
        reached: list[Checkpoint] = []
        for i, (context_bin, tokens) in enumerate(prompts):
            if tokens not in known:
                keep = any(later != tokens for _, later in prompts[i + 1 :])
                known[tokens] = self._one_bin(context_bin, tokens, reached, keep, sampling, deadline)
                yield known[tokens]
            else:
                yield replace(known[tokens], context_bin=context_bin, spent_s=0.0)

    def _one_bin(
        self,
        context_bin: int,
        tokens: Tokens,
        reached: list[Checkpoint],
        keep: bool,
        sampling: Sampling,
        deadline: float,
    ) -> NestedGeneration:
        began = self._clock()
        start, cached = self._start(tokens, reached, deadline)
        at_start = self._clock()
        self._engine.evaluate(tokens.before_question[len(start.snapshot.tokens) :], deadline)
        at_question = self._clock()
        body_s = start.seconds + at_question - at_start
        if keep:
            reached.append(Checkpoint(self._engine.snapshot(), body_s))
        asked = self._clock()
        self._engine.evaluate(tokens.question, deadline)
        prefilled = self._clock()
        answer = self._decode(sampling, deadline)
        done = self._clock()
        question_s = prefilled - asked
        generation = _generation(answer, tokens, cached, at_question - began + question_s, done - prefilled)
        return NestedGeneration(context_bin, generation, body_s + question_s, done - began)

    def _start(self, tokens: Tokens, reached: Sequence[Checkpoint], deadline: float) -> tuple[Checkpoint, int]:
        """Restores the longest state that the prompt begins with; the count is of tokens not evaluated now."""
        wanted = tokens.before_question
        fitting = [c for c in reached if wanted[: len(c.snapshot.tokens)] == c.snapshot.tokens]
        if fitting:
            best = max(fitting, key=lambda checkpoint: len(checkpoint.snapshot.tokens))
            self._engine.restore(best.snapshot)
            return best, len(best.snapshot.tokens)
        cached = self._restore_static(tokens.static, deadline)
        # A later request finds the static prefix kept, so what it waits for is the restore, not the evaluation.
        began = self._clock()
        self._engine.restore(self._statics[tokens.static])
        return Checkpoint(self._statics[tokens.static], self._clock() - began), cached

    def _restore_static(self, static: tuple[int, ...], deadline: float) -> int:
        """The engine stands right after `static`; returns how many tokens of it were not evaluated now."""
        known = self._statics.get(static)
        if known is not None:
            self._statics.move_to_end(static)
            self._engine.restore(known)
            return len(static)
        self._engine.restore(Snapshot((), b""))
        self._engine.evaluate(static, deadline)
        self._statics[static] = self._engine.snapshot()
        if len(self._statics) > MAX_STATICS:
            self._statics.popitem(last=False)
        return 0

    def _tokenise(self, prompt: Prompt, sampling: Sampling) -> Tokens:
        of = self._engine.tokenise_segments
        static = (*self._engine.begin_tokens(), *of(prompt.static))
        tokens = Tokens(static, (*of(prompt.history), *of(prompt.context)), tuple(of(prompt.question)))
        if not tokens.question:
            raise InputError("prompt: got an empty question, want text to answer")
        if len(tokens) + sampling.max_tokens > self._engine.n_ctx:
            raise TooLargeError(
                f"prompt: got {len(tokens)} tokens and max_tokens {sampling.max_tokens}, want at most "
                f"{self._engine.n_ctx} together; ask for a smaller context bin or a shorter answer"
            )
        return tokens

    def _decode(self, sampling: Sampling, deadline: float) -> Answer:
        stops = [stop.encode() for stop in (*self._stop, *sampling.stop)]
        rng = np.random.default_rng(sampling.seed)
        raw = bytearray()
        for made in range(1, sampling.max_tokens + 1):
            token = pick(self._engine.logits(), sampling, rng)
            if self._engine.is_end(token):
                return Answer(_text(raw), made, "stop")
            raw += self._engine.piece(token)
            cut = _first_stop(raw, stops)
            if cut is not None:
                return Answer(_text(raw[:cut]), made, "stop")
            if self._clock() > deadline:
                raise DeadlineError(f"deadline passed after {made} tokens of the answer; ask for fewer or more time")
            if made < sampling.max_tokens:
                self._engine.evaluate([token], deadline)
        return Answer(_text(raw), sampling.max_tokens, "length")


def _by_bin(prompts: Sequence[tuple[int, Prompt]]) -> list[tuple[int, Prompt]]:
    return sorted(prompts, key=lambda pair: pair[0])


def _first_stop(raw: bytearray, stops: Sequence[bytes]) -> int | None:
    """Where the earliest stop string begins."""
    found = [raw.find(stop) for stop in stops]
    return min((place for place in found if place >= 0), default=None)


def _text(raw: bytes | bytearray) -> str:
    """A character cut by max_tokens is left out, and the colon with which a model may close the prompt's lead-in."""
    return raw.decode(errors="ignore").strip().removeprefix(":").strip()


def _generation(answer: Answer, tokens: Tokens, cached: int, prefill_s: float, decode_s: float) -> Generation:
    return Generation(
        text=answer.text,
        prompt_tokens=len(tokens),
        completion_tokens=answer.completion_tokens,
        cached_tokens=cached,
        prefill_s=prefill_s,
        decode_s=decode_s,
        finish_reason=answer.finish_reason,
    )
