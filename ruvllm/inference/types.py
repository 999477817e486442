"""What goes to a model and what comes back: frozen records, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

BINS = (256, 512, 1024, 2048, 4096)  # context bins in tokens of retrieved text, specification 5.2
ROUTED_BINS = (256, 512, 1024)  # those that the oracle runs so far; a wider one has no outcomes to learn from yet


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt. In trusted text special tokens act; in any other they are plain characters."""

    text: str
    trusted: bool


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    max_tokens: int = 48
    seed: int = 0
    stop: tuple[str, ...] = ()
    lines: bool = False  # several: what ends a fact's line in the tier's style does not end the answer
    copying: bool = False  # only a run of words of the prompt's passages may be said; see copying.py
    scored: bool = False  # the answer says how sure the model was of it


@dataclass(frozen=True)
class Prompt:
    """[static][history][context][question]: `static` never changes for a tier, so its state is kept."""

    static: tuple[Segment, ...]
    history: tuple[Segment, ...]
    context: tuple[Segment, ...]
    question: tuple[Segment, ...]


@dataclass(frozen=True)
class Generation:
    """An answer. Seconds are the worker's own; `prefill_s` is what this call evaluated, cached tokens left out."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_s: float
    decode_s: float
    finish_reason: str  # stop | length
    certainty: float | None = None  # geometric mean of the tokens' probabilities, where it was asked for

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(frozen=True)
class Choice:
    """What a model thinks of a few given next tokens: `probabilities` (n_choices,) among all tokens, not only these."""

    probabilities: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    seconds: float


@dataclass(frozen=True)
class NestedGeneration:
    """One bin of an oracle query.

    `cold_prefill_s` is the prefill that a user of this bin alone would have waited for, with the static prefix kept.
    """

    context_bin: int
    generation: Generation
    cold_prefill_s: float
    spent_s: float


class Stream(Protocol):
    """An answer while it is made: iterate over its pieces, then read `generation`, whose text is all pieces joined.

    Closing it before its end stops the work, prefill too. Errors of the model come out of the iteration.
    """

    def __iter__(self) -> Iterator[str]: ...

    @property
    def generation(self) -> Generation:
        """Raises InferenceError while pieces are left."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Stream: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Model(Protocol):
    """A tier that answers. One request at a time; a second waits.

    Raises (all calls): WorkerDiedError, InferenceError, OverloadedError, DeadlineError, TooLargeError (prompt +
    max_tokens > n_ctx).
    """

    def count_tokens(self, texts: list[str]) -> list[int]: ...

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation: ...

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Stream: ...

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        """Answer one question at several context bins; a larger bin's context extends a smaller one's."""
        ...

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        """How likely each of `choices` is as the next token, per prompt, in order. Nothing is generated.

        Raises:
            InputError: a choice is not one token of this model.
        """
        ...
