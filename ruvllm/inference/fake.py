"""A `Model` without a model, for unit tests only: a token is a word, an answer is looked up in the prompt's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ruvllm.errors import CancelledError, InferenceError, InputError, TooLargeError, WorkerDiedError
from ruvllm.inference.sampling import check_sampling
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling, Segment


def prompt_text(prompt: Prompt) -> str:
    """What the prompt says, trusted or not."""
    return _text(prompt.static + prompt.history + prompt.context + prompt.question)


def _text(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def _nothing_known(text: str) -> str:
    return "unknown"


def _no_opinion(text: str, choice: str) -> float:
    return 1.0


class FakeStream:
    """A whole answer, handed out word by word."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._left = re.findall(r"\S+\s*", generation.text)
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        while self._left:
            if self.closed:
                raise CancelledError("fake model: its stream was closed")
            yield self._left.pop(0)

    @property
    def generation(self) -> Generation:
        if self._left:
            raise InferenceError("fake model: the stream has pieces left, want it read to its end")
        return self._generation

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class FakeModel:
    """`answer` maps the whole prompt's text to the reply; a second is 1,000 tokens of prompt or 10 of reply.

    `weigh` maps the prompt's text and a choice to its weight among the choices. While `deaths` is positive, each call
    lowers it by one and raises WorkerDiedError.
    """

    answer: Callable[[str], str] = _nothing_known
    weigh: Callable[[str, str], float] = _no_opinion
    n_ctx: int = 2048
    deaths: int = 0
    sure: float = 1.0  # of every answer, where a request asks for it
    alive: bool = True
    asked: list[Prompt] = field(default_factory=list)
    statics: set[str] = field(default_factory=set)

    def count_tokens(self, texts: list[str]) -> list[int]:
        self._perhaps_die()
        return [len(text.split()) for text in texts]

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        self._perhaps_die()
        check_sampling(sampling)
        self.asked.append(prompt)
        tokens = len(prompt_text(prompt).split())
        if tokens + sampling.max_tokens > self.n_ctx:
            raise TooLargeError(f"prompt: got {tokens} tokens, want at most {self.n_ctx} with max_tokens")
        made = self._generation(prompt, tokens, sampling.max_tokens)
        return replace(made, certainty=self.sure) if sampling.scored else made

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> FakeStream:
        return FakeStream(self.generate(prompt, sampling, deadline_s))

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        self._perhaps_die()
        for choice in choices:
            if len(choice.split()) != 1:
                raise InputError(f"choice {choice!r}: became {choice.split()}, want one token of this model")
        self.asked.extend(prompts)
        return [self._choice(prompt_text(prompt), choices) for prompt in prompts]

    def _choice(self, text: str, choices: Sequence[str]) -> Choice:
        weights = [self.weigh(text, choice) for choice in choices]
        tokens = len(text.split())
        return Choice(tuple(weight / sum(weights) for weight in weights), tokens, 0, tokens / 1000)

    def _generation(self, prompt: Prompt, tokens: int, max_tokens: int) -> Generation:
        static = _text(prompt.static)
        cached = len(static.split()) if static in self.statics else 0
        self.statics.add(static)
        words = self.answer(prompt_text(prompt)).split()
        said = words[:max_tokens]
        reason = "stop" if len(words) <= max_tokens else "length"
        return Generation(" ".join(said), tokens, len(said), cached, (tokens - cached) / 1000, len(said) / 10, reason)

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        done: dict[Prompt, NestedGeneration] = {}
        answers: list[NestedGeneration] = []
        for context_bin, prompt in sorted(prompts.items()):
            if prompt in done:
                answers.append(replace(done[prompt], context_bin=context_bin, spent_s=0.0))
                continue
            generation = self.generate(prompt, sampling, deadline_s)
            done[prompt] = NestedGeneration(context_bin, generation, generation.prefill_s, generation.seconds)
            answers.append(done[prompt])
        return answers

    def _perhaps_die(self) -> None:
        if not self.alive:
            raise WorkerDiedError("fake model: it is closed")
        if self.deaths > 0:
            self.deaths -= 1
            raise WorkerDiedError("fake model: told to die")

    def close(self) -> None:
        self.alive = False
