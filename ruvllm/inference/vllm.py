"""A tier behind vLLM servers, as a `Model`: token ids in, streamed text out. Knows nothing of how servers are started.

Prompts travel as token ids (vllm_tokens.py), so the fence of prompt.py holds: text of users cannot act. Every answer is
read as a stream, so that leaving it stops the server's work, the prefill too, and a server that falls silent is found.
Seconds are the server's own where it states them (`--enable-per-request-metrics`), else what passed here, queue too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

from ruvllm.errors import (
    BackendError,
    CancelledError,
    InferenceError,
    InputError,
    TooLargeError,
    UnreachableError,
    WorkerDiedError,
)
from ruvllm.inference.replicas import CHECK_S, Replicas
from ruvllm.inference.sampling import check_sampling
from ruvllm.inference.speech import Speech
from ruvllm.inference.tiers import Tier
from ruvllm.inference.types import Choice, Generation, NestedGeneration, Prompt, Sampling
from ruvllm.inference.vllm_answer import PATH, Reading, comparison, completion
from ruvllm.inference.vllm_http import Events, Server, Times
from ruvllm.inference.vllm_settings import key_for
from ruvllm.inference.vllm_tokens import Ids, Tokeniser
from ruvllm.settings import Settings

MAX_CHOICES = 128  # vLLM's own bound on the tokens whose probabilities one request may ask for
AT_ONCE = 8  # prompts of one `choose` in flight: vLLM batches them
T = TypeVar("T")
Pieces = Generator[str, None, Generation]


@dataclass(frozen=True)
class Asking:
    """A prompt in token ids."""

    static: Ids
    body: Ids  # history and context
    question: Ids

    @property
    def before_question(self) -> Ids:
        return self.static + self.body

    @property
    def ids(self) -> Ids:
        return self.static + self.body + self.question


class VllmModel:
    """`tier`, answered by the vLLM servers at `urls`, which serve it under the tier's name. Safe for threads: unlike a
    worker it answers as many requests at a time as its servers take, since vLLM batches them.

    Opening it asks nobody; the first request does. Close it, or use it as a context manager.

    Raises (all calls, beside what `Model` names):
        OverloadedError: no server answers, or they are busy.
        BackendError: a server answered with an error, with what is no answer, or fell silent.
    """

    def __init__(
        self, tier: Tier, urls: Sequence[str], settings: Settings, times: Times | None = None, check_s: float = CHECK_S
    ) -> None:
        self.tier = tier
        self._wait_s = settings.deadline_s
        self._servers = [Server(url, key_for(url, settings), times) for url in urls]
        self.replicas = Replicas(tier.name, self._servers, check_s)
        self._tokeniser = Tokeniser(tier.name)
        self._windows: dict[str, int] = {}
        self._closed = False
        self.replicas.watch()

    @property
    def alive(self) -> bool:
        """Whether it can be asked: servers that do not answer come back by themselves, so only closing ends it."""
        return not self._closed

    @property
    def ready(self) -> bool:
        """Whether a server of it answers its health checks."""
        return self.alive and self.replicas.healthy > 0

    def count_tokens(self, texts: list[str]) -> list[int]:
        deadline = _deadline(self._wait_s)
        return self._run(lambda server: [len(self._plain(server, text, deadline)) for text in texts])

    def generate(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> Generation:
        with self.stream(prompt, sampling, deadline_s) as stream:
            for _ in stream:
                pass
            return stream.generation

    def stream(self, prompt: Prompt, sampling: Sampling, deadline_s: float) -> VllmStream:
        """Asks when it is first read. A server that cannot be connected to is passed over then; once a request was
        sent, it is never sent again.
        """
        check_sampling(sampling)
        deadline = _deadline(deadline_s)
        return VllmStream(lambda opened: self._say(prompt, sampling, deadline, opened))

    def generate_nested(
        self, prompts: dict[int, Prompt], sampling: Sampling, deadline_s: float
    ) -> list[NestedGeneration]:
        """All bins go to one server, smallest first, whose prefix cache keeps what they share.

        For LFM2's convolutions vLLM keeps a state where a prompt ends, not wherever another one leaves it. So a bin's
        context is evaluated by a request of its own, which ends there; the question and the next bin go on from it.

        `cold_prefill_s` is an estimate, since nobody asked for the bin alone: the prefill seconds up to this bin, times
        the share of the tokens evaluated in them that the bin needs with the static prefix kept. It leaves out that
        later tokens cost a little more than earlier ones.
        """
        check_sampling(sampling)
        deadline = _deadline(deadline_s)
        return self._run(lambda server: list(self._nested(server, prompts, sampling, deadline)))

    def choose(self, prompts: Sequence[Prompt], choices: Sequence[str], deadline_s: float) -> list[Choice]:
        """Exact probabilities among all tokens (vLLM's `logprob_token_ids`), not what is left of the best few.

        Raises:
            InputError: a choice is not one token of this model, or they are more than MAX_CHOICES.
        """
        deadline = _deadline(deadline_s)
        wanted = self._run(lambda server: self._choice_tokens(server, choices, deadline))
        with ThreadPoolExecutor(AT_ONCE, "vllm-choose") as pool:
            asked = [pool.submit(self._choose, prompt, wanted, deadline) for prompt in prompts]
            try:
                return [each.result() for each in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what was not begun is not begun
                raise

    def _run(self, ask: Callable[[Server], T]) -> T:
        if self._closed:
            raise WorkerDiedError(f"model {self.tier.name}: it is closed")
        return self.replicas.run(ask)

    def _say(self, prompt: Prompt, sampling: Sampling, deadline: float, opened: Callable[[Events], None]) -> Pieces:
        if self._closed:
            raise WorkerDiedError(f"model {self.tier.name}: it is closed")
        last: UnreachableError | None = None
        for replica in self.replicas.candidates():
            try:
                with self.replicas.borrowed(replica) as server:
                    asking = self._asking(server, prompt, sampling.max_tokens, deadline)
                    return (yield from self._answer(server, asking, sampling, deadline, opened))
            except UnreachableError as error:
                last = error
        raise self.replicas.nobody(last)

    def _answer(
        self,
        server: Server,
        asking: Asking,
        sampling: Sampling,
        deadline: float,
        opened: Callable[[Events], None] = lambda _: None,
    ) -> Pieces:
        """Yields text as it comes; returns the whole."""
        reading, speech, said = Reading(server.url), Speech(), []
        body = completion(self.tier.name, asking.ids, sampling, self.tier.stop)
        with server.events(PATH, body, deadline) as events:
            opened(events)
            for event in events:
                if piece := speech.push(reading.take(event).encode()):
                    said.append(piece)
                    yield piece
        if piece := speech.finish():
            said.append(piece)
            yield piece
        return reading.generation("".join(said))

    def _asking(self, server: Server, prompt: Prompt, max_tokens: int, deadline: float) -> Asking:
        asking = Asking(*self._tokeniser.prompt(server, prompt, deadline))
        if not asking.question:
            raise InputError("prompt: got an empty question, want text to answer")
        size, window = len(asking.ids), self._window(server, deadline)
        if size + max_tokens > window:
            raise TooLargeError(
                f"prompt: got {size} tokens and max_tokens {max_tokens}, want at most {window} together; ask for a "
                "smaller context bin or a shorter answer"
            )
        return asking

    def _window(self, server: Server, deadline: float) -> int:
        """Tokens of prompt and answer together, as the server was started; it must serve this tier."""
        if server.url not in self._windows:
            found = _served(server.get("/v1/models", deadline))
            if self.tier.name not in found:
                raise BackendError(
                    f"{server.url}: serves {', '.join(found) or 'nothing'}, want {self.tier.name}; start it with "
                    f"--served-model-name {self.tier.name}, or correct RUVLLM_VLLM"
                )
            self._windows[server.url] = min(found[self.tier.name], self.tier.n_ctx)
        return self._windows[server.url]

    def _nested(
        self, server: Server, prompts: dict[int, Prompt], sampling: Sampling, deadline: float
    ) -> Iterator[NestedGeneration]:
        known: dict[Ids, NestedGeneration] = {}
        spent = Spent()
        for context_bin, prompt in sorted(prompts.items()):
            asking = self._asking(server, prompt, sampling.max_tokens, deadline)
            if asking.ids not in known:
                more = len(known) + 1 < len(prompts)
                known[asking.ids] = self._bin(server, context_bin, asking, sampling, deadline, spent, more)
                yield known[asking.ids]
            else:
                yield replace(known[asking.ids], context_bin=context_bin, spent_s=0.0)

    def _bin(
        self,
        server: Server,
        context_bin: int,
        asking: Asking,
        sampling: Sampling,
        deadline: float,
        spent: Spent,
        more: bool,
    ) -> NestedGeneration:
        began = time.monotonic()
        if more:  # bins may follow that go on from this context
            only = Asking(asking.static, asking.body, ())
            spent.add(_drained(self._answer(server, only, Sampling(max_tokens=1), deadline)))
        generation = _drained(self._answer(server, asking, sampling, deadline))
        spent.add(generation)
        cold = spent.cold(generation.prompt_tokens - len(asking.static))
        return NestedGeneration(context_bin, generation, cold, time.monotonic() - began)

    def _choice_tokens(self, server: Server, choices: Sequence[str], deadline: float) -> list[int]:
        if not 1 <= len(choices) <= MAX_CHOICES:
            raise InputError(f"choices: got {len(choices)}, want 1 to {MAX_CHOICES}")
        found = [self._plain(server, choice, deadline) for choice in choices]
        for choice, ids in zip(choices, found, strict=True):
            if len(ids) != 1:
                raise InputError(f"choice {choice!r}: is {len(ids)} tokens of model {self.tier.name}, want one")
        return [ids[0] for ids in found]

    def _choose(self, prompt: Prompt, wanted: Sequence[int], deadline: float) -> Choice:
        return self._run(lambda server: self._compare(server, prompt, wanted, deadline))

    def _compare(self, server: Server, prompt: Prompt, wanted: Sequence[int], deadline: float) -> Choice:
        asking = self._asking(server, prompt, 1, deadline)
        reading = Reading(server.url)
        with server.events(PATH, comparison(self.tier.name, asking.ids, wanted), deadline) as events:
            for event in events:
                reading.take(event)
        return reading.choice(wanted)

    def _plain(self, server: Server, text: str, deadline: float) -> Ids:
        return self._tokeniser.ids(server, text, trusted=False, deadline=deadline)

    def close(self) -> None:
        self._closed = True
        self.replicas.close()
        for server in self._servers:
            server.close()

    def __enter__(self) -> VllmModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VllmStream:
    """A `Stream`. `close` may be called from any thread; one that reads gets CancelledError then."""

    def __init__(self, say: Callable[[Callable[[Events], None]], Pieces]) -> None:
        self._pieces = say(self._opened)
        self._events: Events | None = None
        self._generation: Generation | None = None
        self._closed = False

    def _opened(self, events: Events) -> None:
        self._events = events
        if self._closed:
            events.close()

    def __iter__(self) -> Iterator[str]:
        while self._generation is None:
            if self._closed:
                raise CancelledError("stream: it was closed before its end")
            try:
                piece = next(self._pieces)
            except StopIteration as end:
                self._generation = end.value
                return
            yield piece

    @property
    def generation(self) -> Generation:
        if self._generation is None:
            raise InferenceError("stream: pieces are left; read it to its end first")
        return self._generation

    def cancel(self) -> None:
        """Cuts the connection and waits for nothing; the reader gets CancelledError."""
        self._closed = True
        if self._events is not None:
            self._events.close()

    def close(self) -> None:
        self.cancel()
        try:
            self._pieces.close()
        except ValueError:  # another thread reads it, and is woken by what was closed above
            return

    def __enter__(self) -> VllmStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Spent:
    """Prefill of the bins of one query so far: what they evaluated together, and in how many seconds."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def add(self, generation: Generation) -> None:
        self._tokens += generation.prompt_tokens - generation.cached_tokens
        self._seconds += generation.prefill_s

    def cold(self, needed: int) -> float:
        """Seconds that evaluating `needed` tokens would have taken, at the pace so far."""
        return self._seconds * min(1.0, needed / max(self._tokens, 1))


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds


def _drained(pieces: Pieces) -> Generation:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            generation: Generation = end.value
            return generation


def _served(listing: Any) -> dict[str, int]:
    """Name and context of each model that /v1/models lists."""
    try:
        return {str(each["id"]): int(each["max_model_len"]) for each in listing["data"] if each.get("max_model_len")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BackendError(f"/v1/models: got no list of models with max_model_len ({error!r}); is it vLLM?") from error
