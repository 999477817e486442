"""Answers over HTTP: chat and text completions, whole and streamed, and routing alone.

Knows nothing of how an answer is made: requests are put into a question, and what is told of its answer into the shapes
that OpenAI's clients expect.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ruvllm.answering.answer import Answer, Ask
from ruvllm.answering.recall import CACHE
from ruvllm.errors import CancelledError, InferenceError, InputError
from ruvllm.serving import errors, replies, sse
from ruvllm.serving.callers import Callers, json_only
from ruvllm.serving.documents import ANSWERS
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.journal import Journal
from ruvllm.serving.keys import Caller
from ruvllm.serving.replies import CHAT, TEXT, Chunks, Shape
from ruvllm.serving.schemas import ChatRequest, CompletionRequest, Generating
from ruvllm.serving.service import GatewayService
from ruvllm.serving.telling import Telling

PING_S = 15.0


def add_answers(routes: APIRouter, service: GatewayService, callers: Callers, journal: Journal) -> None:
    replying = _Replying(service, callers, journal)
    takes_json = [Depends(json_only)]

    @routes.post("/v1/chat/completions", dependencies=takes_json, responses=ANSWERS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer with the tier, context and sampling that the router chooses, or with the model that is named."""
        caller = callers.of(request, "ask")
        return await replying.to(request, caller, CHAT, body, body.to_ask(callers.asked(request, caller)))

    @routes.post("/v1/completions", dependencies=takes_json, responses=ANSWERS)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """The same for a prompt without turns."""
        caller = callers.of(request, "ask")
        return await replying.to(request, caller, TEXT, body, body.to_ask(callers.asked(request, caller)))

    @routes.post("/v1/route", dependencies=takes_json, responses=ANSWERS)
    async def route(body: ChatRequest, request: Request) -> Response:
        """The decision and its reasons, without an answer and without a trace in memory."""
        caller = callers.of(request, "ask")
        ask = body.to_ask(callers.asked(request, caller))
        (decision, hits), excluded = await service.run(caller, lambda of: (of.route(ask), of.excluded(ask)))
        tier = request.state.model = service.tiers[decision.tier]
        content = {
            "request_id": ask.request_id,
            **replies.decision_object(decision, tier),
            **replies.routing(decision, service.tiers, excluded),
            "hits": [replies.hit_object(hit) for hit in hits],
            "versions": replies.versions(decision, service.answerer.encoder),
        }
        return JsonResponse(content, headers=replies.decision_headers(decision, tier, hits))


class _Replying:
    """One request's way from its question to its reply."""

    def __init__(self, service: GatewayService, callers: Callers, journal: Journal) -> None:
        self._service, self._callers, self._journal = service, callers, journal

    async def to(self, request: Request, caller: Caller, shape: Shape, body: Generating, ask: Ask) -> Response:
        if body.stream_options is not None and not body.stream:
            raise InputError("stream_options: got it without stream, want stream true beside it")
        telling = self._service.tell(caller, ask)
        reply = _Reply(self, request, caller, shape, body, ask, telling)
        try:
            return await (reply.streamed() if body.stream else reply.whole())
        except sse.GoneError:
            telling.cancel()
            return errors.error_response(errors.kind_of(CancelledError()), "who asked has hung up")
        except BaseException as error:
            telling.cancel()
            self.failed(ask, time.perf_counter() - reply.began, error)
            raise

    def failed(self, ask: Ask, seconds: float, error: BaseException) -> None:
        if isinstance(error, (InferenceError, TimeoutError)):
            self._service.ended(ask, seconds, failed=True)

    def ended(
        self, request: Request, caller: Caller, ask: Ask, telling: Telling, answer: Answer, began: float
    ) -> _Times:
        """Count, trace and log an answer that is whole."""
        times = _Times.of(answer, telling.waited_s, time.perf_counter() - began)
        request.state.model = answer.tier
        self._service.metrics.answered(answer, times.queue_s, times.overhead_s)
        if answer.decision.decided_by != CACHE:  # neither router of a trial made it
            self._service.ended(ask, times.total_s, failed=False)
        self._journal.answered(ask, answer, caller, times.total_s)
        return times

    def decision(self, answer: Answer, body: Generating) -> dict[str, Any]:
        """The `ruvllm` object, where it was asked for."""
        if not body.ruvllm.return_decision:
            return {}
        return {"ruvllm": replies.decision_of(answer, self._service.answerer.encoder)}


class _Times:
    """Seconds of waiting (for a thread, then for the model), of everything but the model and that, and of all."""

    def __init__(self, queue_s: float, overhead_s: float, total_s: float) -> None:
        self.queue_s, self.overhead_s, self.total_s = queue_s, overhead_s, total_s

    @classmethod
    def of(cls, answer: Answer, waited: float, total: float) -> _Times:
        generate = answer.stage_ms.get("generate", 0.0) / 1000
        queue = waited + max(0.0, generate - answer.generation.seconds)
        return cls(queue, max(0.0, total - waited - generate), total)


class _Reply:
    def __init__(
        self,
        of: _Replying,
        request: Request,
        caller: Caller,
        shape: Shape,
        body: Generating,
        ask: Ask,
        telling: Telling,
    ) -> None:
        self._of, self._request, self._caller, self._shape = of, request, caller, shape
        self._body, self._ask, self._telling = body, ask, telling
        self.began = time.perf_counter()

    async def whole(self) -> Response:
        answer = await sse.unless_gone(self._request, self._telling.whole())
        times = self._ended(answer)
        headers = {**replies.answer_headers(answer, times.queue_s, times.overhead_s), **self._telling.ticket.headers()}
        return JsonResponse(
            replies.completion(self._shape, answer, self._of.decision(answer, self._body)), headers=headers
        )

    async def streamed(self) -> Response:
        """Errors before the first piece have a status of their own; behind it they stand in the stream."""
        first = await sse.unless_gone(self._request, self._telling.next(PING_S))
        headers = {**self._headers(), **self._telling.ticket.headers()}
        return sse.EventStream(self._events(first), headers, over=self._telling.cancel)

    def _headers(self) -> dict[str, str]:
        speech = self._telling.speech
        return {} if speech is None else replies.decision_headers(speech.decision, speech.tier, speech.hits)

    async def _events(self, said: str | Answer | None) -> AsyncIterator[bytes]:
        chunks = Chunks(self._shape, self._ask.request_id, self._body.usage_in_stream, int(time.time()))
        opened = False
        try:
            while not isinstance(said, Answer):
                if said is None:
                    yield sse.PING
                else:
                    if not opened and self._shape.chat:
                        yield sse.event(chunks.piece(self._tier, "", first=True))
                    opened = True
                    yield sse.event(chunks.piece(self._tier, said))
                said = await self._telling.next(PING_S)
        except Exception as error:  # the status has gone out: whatever it is, the reader hears of it here
            self._of.failed(self._ask, time.perf_counter() - self.began, error)
            yield sse.event(errors.told(error))
            return
        for content in self._closing(chunks, said, opened):
            yield sse.event(content)
        yield sse.DONE

    def _closing(self, chunks: Chunks, answer: Answer, opened: bool) -> list[dict[str, Any]]:
        self._ended(answer)
        first = [] if opened or not self._shape.chat else [chunks.piece(answer.tier, "", first=True)]
        spent = [chunks.spent(answer)] if self._body.usage_in_stream else []
        return [*first, chunks.last(answer, self._of.decision(answer, self._body)), *spent]

    @property
    def _tier(self) -> str:
        speech = self._telling.speech
        return speech.tier if speech is not None else ""

    def _ended(self, answer: Answer) -> _Times:
        return self._of.ended(self._request, self._caller, self._ask, self._telling, answer, self.began)
