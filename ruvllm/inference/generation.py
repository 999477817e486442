"""Answers from one engine: kept prefixes restored, nested contexts evaluated once. Knows nothing of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.errors import InputError, TooLargeError
from ruvllm.inference.copying import Ends, Limit, ends_of, spans_of
from ruvllm.inference.halt import Halt
from ruvllm.inference.prefix import MIN_PIECE, Start, Stateful, Tokens, departures, reach
from ruvllm.inference.sampling import certainty, log_probability, pick, probabilities
from ruvllm.inference.snapshots import Snapshot, Snapshots
from ruvllm.inference.speech import Speech
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling, Segment

MIN_SHARED = 16  # tokens that two prompts must share behind their history for a state to be worth taking

MAX_SHARED = 3  # such states taken in one prompt


class Evaluator(Stateful, Protocol):
    """What a generator needs of `Engine`."""

    n_ctx: int
    n_vocab: int

    def begin_tokens(self) -> list[int]: ...
    def tokenise(self, text: str, special: bool) -> list[int]: ...
    def tokenise_segments(self, segments: Sequence[Segment]) -> list[int]: ...
    def is_end(self, token: int) -> bool: ...
    def piece(self, token: int) -> bytes: ...
    def logits(self) -> NDArray[np.float32]: ...


class Checkpoint(NamedTuple):
    """A state to start from, and the seconds that a request which starts at the static prefix needs to reach it."""

    snapshot: Snapshot
    seconds: float


class Answer(NamedTuple):
    text: str
    completion_tokens: int
    finish_reason: str
    certainty: float | None


def ignore(_: str) -> None:
    """Says nothing."""


class Generator:
    """`stop` belongs to the tier's prompt style, beside what a request asks for; `clock` counts an answer's seconds."""

    def __init__(
        self,
        engine: Evaluator,
        stop: tuple[str, ...],
        snapshots: Snapshots,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._stop, self._snapshots, self._clock = engine, stop, snapshots, clock
        self._ends: Ends | None = None  # known from the first copied answer on: it takes a look at every token

    def generate(
        self, prompt: Prompt, sampling: Sampling, halt: Halt, say: Callable[[str], None] = ignore
    ) -> Generation:
        """One answer. `say` gets its text in pieces as soon as they stand; joined they are `Generation.text`.

        Raises:
            TooLargeError: prompt and max_tokens do not fit the context; nothing was evaluated.
            InputError: an answer is to be copied and there is nothing to copy from; nothing was evaluated.
            DeadlineError, CancelledError: `halt` said stop.
        """
        tokens, limit = self._tokenise(prompt, sampling.max_tokens), self._limit(prompt, sampling)
        began = self._clock()
        start = self._reach_conversation(tokens, halt)
        self._evaluate_up_to(tokens.all, halt)
        prefilled = self._clock()
        answer = self._decode(sampling, halt, say, limit)
        return _generation(answer, tokens, start.cached, prefilled - began, self._clock() - prefilled)

    def _reach_conversation(self, tokens: Tokens, halt: Halt) -> Start:
        return reach(self._engine, self._snapshots, (tokens.static, tokens.conversation), halt)

    def _evaluate_up_to(self, tokens: tuple[int, ...], halt: Halt) -> None:
        """Append what of `tokens` is missing; they begin with what was evaluated."""
        self._engine.evaluate(tokens[len(self._engine.tokens) :], halt)

    # -- several bins of one question

    def generate_nested(
        self, prompts: Sequence[tuple[int, Prompt]], sampling: Sampling, halt: Halt
    ) -> list[NestedGeneration]:
        """An answer per (bin, prompt), smallest bin first; what one bin evaluated is not evaluated for the next."""
        by_bin = sorted(prompts, key=lambda pair: pair[0])
        tokenised = [(each, self._tokenise(p, sampling.max_tokens), self._limit(p, sampling)) for each, p in by_bin]
        return list(self._nested(tokenised, sampling, halt))

    def _nested(
        self, prompts: Sequence[tuple[int, Tokens, Limit | None]], sampling: Sampling, halt: Halt
    ) -> Iterator[NestedGeneration]:
        known: dict[Tokens, NestedGeneration] = {}
        last: Checkpoint | None = None
        for i, (context_bin, tokens, limit) in enumerate(prompts):
            if tokens in known:
                yield replace(known[tokens], context_bin=context_bin, spent_s=0.0)
                continue
            keep = any(later != tokens for _, later, _ in prompts[i + 1 :])
            known[tokens], last = self._one_bin(context_bin, tokens, last, keep, sampling, halt, limit)
            yield known[tokens]

    def _one_bin(
        self, context_bin: int, tokens: Tokens, last: Checkpoint | None, keep: bool, sampling: Sampling, halt: Halt,
        limit: Limit | None,
    ) -> tuple[NestedGeneration, Checkpoint | None]:  # fmt: skip
        began = self._clock()
        seconds, cached = self._start(tokens, last, halt)
        at_start = self._clock()
        self._evaluate_up_to(tokens.before_question, halt)
        at_question = self._clock()
        body_s = seconds + at_question - at_start
        reached = Checkpoint(self._engine.snapshot(), body_s) if keep else None
        asked = self._clock()
        self._evaluate_up_to(tokens.all, halt)
        prefilled = self._clock()
        answer = self._decode(sampling, halt, ignore, limit)
        done = self._clock()
        question_s = prefilled - asked
        generation = _generation(answer, tokens, cached, at_question - began + question_s, done - prefilled)
        return NestedGeneration(context_bin, generation, body_s + question_s, done - began), reached

    def _start(self, tokens: Tokens, last: Checkpoint | None, halt: Halt) -> tuple[float, int]:
        """Where the last bin's context ended, if this one extends it, else at the static prefix.

        Returns the seconds that a request needs to come here from a kept static prefix, and how many tokens were not
        evaluated now.
        """
        if last and _begins(tokens.before_question, last.snapshot.tokens):
            self._engine.restore(last.snapshot)
            return last.seconds, len(last.snapshot.tokens)
        return self._start_at_static(tokens, halt)

    def _start_at_static(self, tokens: Tokens, halt: Halt) -> tuple[float, int]:
        """Not at a kept history: `cold_prefill_s` is of a request that finds the static prefix and nothing more."""
        began = self._clock()
        start = reach(self._engine, self._snapshots, (tokens.static,), halt)
        if start.kept:
            # A later request finds the static prefix kept, so what it waits for is the restore, not the evaluation.
            began = self._clock()
            self._engine.restore(start.kept)
        return self._clock() - began, start.cached

    # -- probabilities of given next tokens

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], halt: Halt) -> list[Choice]:
        """How likely each choice is as the next token, per prompt; what two in a row share is evaluated once.

        Raises:
            InputError: a choice is not exactly one token, or there is none.
            TooLargeError: a prompt does not fit the context; nothing was evaluated.
            DeadlineError, CancelledError: `halt` said stop.
        """
        ids = [self._single(choice) for choice in choices]
        if not ids:
            raise InputError("choices: got none, want at least one")
        tokenised = [self._tokenise(prompt, 0) for prompt in prompts]
        return list(self._chosen(tokenised, ids, halt))

    def _single(self, choice: str) -> int:
        tokens = self._engine.tokenise(choice, special=False)
        if len(tokens) != 1:
            became = " + ".join(repr(self._engine.piece(token).decode(errors="replace")) for token in tokens)
            raise InputError(f"choice {choice!r}: became {became or 'no token'}, want one token of this model")
        return tokens[0]

    def _chosen(self, prompts: Sequence[Tokens], ids: Sequence[int], halt: Halt) -> Iterator[Choice]:
        shared: list[Snapshot] = []  # held for this call only, shortest first
        whole = [tokens.all for tokens in prompts]
        for i, tokens in enumerate(prompts):
            began = self._clock()
            shared = [state for state in shared if _begins(whole[i][:-MIN_PIECE], state.tokens)]
            cached = self._start_shared(tokens, shared, halt)
            shared += self._shared_states(whole[i:], halt)
            self._evaluate_up_to(whole[i], halt)
            probs = probabilities(self._engine.logits())
            yield Choice(tuple(float(probs[i]) for i in ids), len(tokens), cached, self._clock() - began)

    def _start_shared(self, tokens: Tokens, shared: Sequence[Snapshot], halt: Halt) -> int:
        if not shared:
            return self._reach_conversation(tokens, halt).cached
        self._engine.restore(shared[-1])
        return len(shared[-1].tokens)

    def _shared_states(self, prompts: Sequence[tuple[int, ...]], halt: Halt) -> list[Snapshot]:
        """States on the way through the first prompt, where those behind it will depart."""
        states = []
        for place in departures(prompts, len(self._engine.tokens) + MIN_SHARED)[-MAX_SHARED:]:
            if place >= len(self._engine.tokens) + MIN_SHARED:
                self._evaluate_up_to(prompts[0][:place], halt)
                states.append(self._engine.snapshot())
        return states

    # -- one prompt, one answer

    def _tokenise(self, prompt: Prompt, max_tokens: int) -> Tokens:
        of = self._engine.tokenise_segments
        static = (*self._engine.begin_tokens(), *of(prompt.static))
        tokens = Tokens(static, tuple(of(prompt.history)), tuple(of(prompt.context)), tuple(of(prompt.question)))
        if not tokens.question:
            raise InputError("prompt: got an empty question, want text to answer")
        if len(tokens) + max_tokens > self._engine.n_ctx:
            raise TooLargeError(
                f"prompt: got {len(tokens)} tokens and max_tokens {max_tokens}, want at most "
                f"{self._engine.n_ctx} together; ask for a smaller context bin or a shorter answer"
            )
        return tokens

    def _limit(self, prompt: Prompt, sampling: Sampling) -> Limit | None:
        """What a copied answer may say: runs of the context's passages, which is what is untrusted there."""
        if not sampling.copying:
            return None
        if self._ends is None:
            self._ends = ends_of(self._engine, self._engine.n_vocab)
        return Limit(spans_of((each.text for each in prompt.context if not each.trusted), self._engine), self._ends)

    def _decode(self, sampling: Sampling, halt: Halt, say: Callable[[str], None], limit: Limit | None) -> Answer:
        speech = Speech((*(() if sampling.lines else self._stop), *sampling.stop))
        said: list[str] = []
        made, reason = 0, "length"
        sure: list[float] = []
        for token in self._next_tokens(sampling, halt, limit, sure):
            made += 1
            if self._engine.is_end(token):
                reason = "stop"
                break
            _say(speech.push(self._engine.piece(token)), said, say)
            if speech.stopped:
                reason = "stop"
                break
        _say(speech.finish(), said, say)
        return Answer("".join(said), made, reason, certainty(sure) if sure else None)

    def _next_tokens(self, sampling: Sampling, halt: Halt, limit: Limit | None, sure: list[float]) -> Iterator[int]:
        """Up to max_tokens; a token is evaluated when the one after it is asked for.

        Where the sampling is scored, `sure` gets each token's log-probability as the model itself has it.
        """
        rng = np.random.default_rng(sampling.seed)
        for made in range(1, sampling.max_tokens + 1):
            logits = self._engine.logits()
            token = pick(limit(logits) if limit else logits, sampling, rng)
            if sampling.scored:
                sure.append(log_probability(logits, token))
            yield token
            if limit:
                limit.said(token)
            halt.check(f"token {made} of its answer was made")
            if made < sampling.max_tokens:
                self._engine.evaluate([token], halt)


def _say(piece: str, said: list[str], say: Callable[[str], None]) -> None:
    if piece:
        said.append(piece)
        say(piece)


def _begins(tokens: tuple[int, ...], beginning: tuple[int, ...]) -> bool:
    return tokens[: len(beginning)] == beginning


def _generation(answer: Answer, tokens: Tokens, cached: int, prefill_s: float, decode_s: float) -> Generation:
    return Generation(
        text=answer.text,
        prompt_tokens=len(tokens),
        completion_tokens=answer.completion_tokens,
        cached_tokens=cached,
        prefill_s=prefill_s,
        decode_s=decode_s,
        finish_reason=answer.finish_reason,
        certainty=answer.certainty,
    )
