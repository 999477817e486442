"""One completion as vLLM streams it: what is asked, what each event says. Knows nothing of servers or of replicas."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruvllm.errors import BackendError, InputError
from ruvllm.inference.sampling import certainty
from ruvllm.inference.types import Choice, Generation, Sampling
from ruvllm.inference.vllm_tokens import Ids

PATH = "/v1/completions"
_ENDINGS = ("stop", "length")
# Stated, because a server takes its defaults from the checkpoint's generation_config.json.
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}


def completion(model: str, ids: Ids, sampling: Sampling, stops: Sequence[str]) -> dict[str, object]:
    """The request for an answer; a greedy one where nothing may be drawn.

    `sampling.seed` stays here: a seeded request whose prefill is cut in two ends vLLM 0.32's engine on a CPU ("CPU
    Generator does not use offset"), with every other request in it, and a server does not say what it runs on. So what
    is drawn differs from call to call.

    Raises:
        InputError: the answer is to be copied from the passages.
    """
    if sampling.copying:
        raise InputError(
            "copying: vLLM cannot hold an answer to its passages; ask a llama.cpp tier, or without copying"
        )
    greedy = sampling.temperature == 0.0 or sampling.top_p == 0.0
    return {
        **_request(model, ids, sampling.max_tokens),
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "stop": [*(() if sampling.lines else stops), *sampling.stop],
        **({"logprobs": 0} if sampling.scored else {}),  # of the tokens said alone
    }


def comparison(model: str, ids: Ids, wanted: Sequence[int]) -> dict[str, object]:
    """The request for the probabilities of `wanted` as the next token. One token is made too: vLLM makes no fewer."""
    return {
        **_request(model, ids, 1),
        "temperature": 0.0,
        "logprobs": 1,
        "logprob_token_ids": list(wanted),
        "return_tokens_as_token_ids": True,
    }


def _request(model: str, ids: Ids, max_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "prompt": list(ids),
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_NEUTRAL,
    }


@dataclass
class Reading:
    """What the events of one answer have said so far; `url` is named in errors."""

    url: str
    clock: Callable[[], float] = time.monotonic
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    logprobs: dict[str, Any] = field(default_factory=dict)
    sure: list[float] = field(default_factory=list)  # log-probabilities of the tokens said, where they were asked for
    began: float = 0.0
    first: float = 0.0  # when the first token came; 0 before
    last: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    def take(self, event: dict[str, Any]) -> str:
        """The text that this event adds.

        Raises:
            BackendError: it is no event of a completion.
        """
        try:
            self.usage = event.get("usage") or self.usage
            self.metrics = event.get("metrics") or self.metrics
            return "".join(self._choice(choice) for choice in event["choices"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BackendError(f"{self.url}: got an event that is no completion's: {error!r}") from error

    def _choice(self, choice: dict[str, Any]) -> str:
        self.last = self.clock()
        self.first = self.first or self.last
        self.finish = choice.get("finish_reason") or self.finish
        self.logprobs = choice.get("logprobs") or self.logprobs
        self.sure += [float(said) for said in (choice.get("logprobs") or {}).get("token_logprobs") or ()]
        text = choice["text"]
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}")
        return text

    def generation(self, text: str) -> Generation:
        """
        Raises:
            BackendError: the answer did not end, or its tokens were not counted.
        """
        if self.finish not in _ENDINGS:
            raise BackendError(f"{self.url}: the answer ended with {self.finish!r}, want one of {', '.join(_ENDINGS)}")
        return Generation(
            text=text,
            prompt_tokens=self._count("prompt_tokens"),
            completion_tokens=self._count("completion_tokens"),
            cached_tokens=self.cached,
            prefill_s=self._seconds("time_to_first_token_ms", self.first - self.began),
            decode_s=self._seconds("generation_time_ms", self.last - self.first),
            finish_reason=self.finish,
            certainty=self._certainty(),
        )

    def _certainty(self) -> float | None:
        try:
            return certainty(self.sure) if self.sure else None
        except InputError as error:
            raise BackendError(f"{self.url}: got log-probabilities that are none: {error}") from error

    def choice(self, wanted: Sequence[int]) -> Choice:
        """
        Raises:
            BackendError: a wanted token's probability is not there.
        """
        return Choice(
            probabilities=tuple(self._probability(token) for token in wanted),
            prompt_tokens=self._count("prompt_tokens"),
            cached_tokens=self.cached,
            seconds=self._seconds("time_to_first_token_ms", self.first - self.began),
        )

    @property
    def cached(self) -> int:
        """Prompt tokens that were not evaluated; 0, too, where the server does not say."""
        details = self.usage.get("prompt_tokens_details")
        found = details.get("cached_tokens") if isinstance(details, dict) else None
        return found if isinstance(found, int) else 0

    def _count(self, name: str) -> int:
        found = self.usage.get(name)
        if not isinstance(found, int) or found < 0:
            raise BackendError(f"{self.url}: got {name} {found!r} in the usage, want a count")
        return found

    def _seconds(self, name: str, else_: float) -> float:
        found = self.metrics.get(name)
        stated = isinstance(found, int | float) and math.isfinite(found) and found >= 0
        return found / 1000 if stated else max(0.0, else_)  # type: ignore[operator]  # `stated` says it is a number

    def _probability(self, token: int) -> float:
        try:
            logprob = self.logprobs["top_logprobs"][0][f"token_id:{token}"]
            return math.exp(min(0.0, float(logprob)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"{self.url}: it did not say the probability of token {token}; want vLLM 0.32 or newer, which knows "
                "logprob_token_ids (the best few alone would hide how unlikely the others are)"
            ) from error
