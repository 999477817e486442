"""An answer that memory gives in a tier's place: what is asked of who holds such answers, and which requests allow it.

Knows nothing of how close a question has to be (ruvllm/serving/cache.py), nor of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from ruvllm.answering.asking import Ask
from ruvllm.answering.perception import count_words
from ruvllm.inference.types import Generation
from ruvllm.memory.records import Hit

CACHE = "cache"  # decided_by and tier of such an answer: no model spoke


class Recalled(Protocol):
    """An answer that was given before; `ruvllm.serving.cache.Cached` is one."""

    @property
    def node(self) -> int: ...

    @property
    def text(self) -> str: ...


class Recall(Protocol):
    """Where answers are looked for; `ruvllm.serving.cache.FollowedCache` is one."""

    def look(self, question: str, hits: Sequence[Hit]) -> Recalled | None: ...

    def refresh_if_old(self) -> None:
        """Read anew what counts, out of every request's way. Raises DatabaseError where Postgres is away."""
        ...


def may_recall(ask: Ask) -> bool:
    """Whether an answer that was given to another may do: not where the request says how, or by whom, it is made.

    A follow-up means what its history says, so it is never looked up by its own words.
    """
    sampled = ask.temperature or ask.seed or (ask.top_p is not None and ask.top_p < 1)
    said_how = sampled or ask.instructions or ask.stop or ask.forced_tier or ask.forced_bin
    return not (said_how or ask.history)


def fits(ask: Ask, text: str) -> bool:
    """Whether `text` is within the length that was asked for, by its words and marks."""
    return ask.max_tokens is None or count_words(text) <= ask.max_tokens


class Recited:
    """A stream of one piece; nothing is generated, so there are no tokens to count."""

    def __init__(self, text: str) -> None:
        self.generation = Generation(text, 0, 0, 0, 0.0, 0.0, "stop")

    def __iter__(self) -> Iterator[str]:
        yield self.generation.text

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
