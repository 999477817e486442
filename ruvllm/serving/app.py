"""The gateway's HTTP: OpenAI's chat completions, routing alone, feedback, health, metrics. Knows nothing of how answers
are made: it validates, hands over to the service, and puts the result into the shapes that clients expect.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ruvllm import __version__
from ruvllm.answer import Answer
from ruvllm.serving import errors, replies
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.guards import BodyLimit, Measured, RequestId
from ruvllm.serving.schemas import ChatRequest, FeedbackRequest
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


def create_app(settings: Settings, service: GatewayService) -> FastAPI:
    """The application; its lifespan starts and stops `service`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(service.start)
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(service.stop)

    app = FastAPI(title="RuvLLM", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.service = settings, service
    errors.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(RequestId)  # the last that is added is the first to see a request
    _add_answers(app, service)
    _add_health(app, service)
    return app


def _add_answers(app: FastAPI, service: GatewayService) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer with the tier, context and sampling that the router chooses, or with the model that is named."""
        began = time.perf_counter()
        ask = body.to_ask(request.state.request_id, service.tiers)
        answer, waited = await service.run(lambda: service.answerer.answer(ask))
        queue_s, overhead_s = _times(answer, waited, time.perf_counter() - began)
        request.state.model = answer.tier
        service.metrics.answered(answer, queue_s, overhead_s)
        headers = {
            **replies.decision_headers(answer.decision, answer.tier, answer.hits),
            **replies.time_headers(answer, queue_s, overhead_s),
        }
        return JsonResponse(replies.completion(answer, body.ruvllm.return_decision), headers=headers)

    @app.post("/v1/route")
    async def route(body: ChatRequest, request: Request) -> Response:
        """The decision alone, without an answer and without a trace in memory."""
        ask = body.to_ask(request.state.request_id, service.tiers)
        (decision, hits), _ = await service.run(lambda: service.answerer.route(ask))
        tier = request.state.model = service.tiers[decision.tier]
        content = {
            "request_id": request.state.request_id,
            **replies.decision_object(decision, tier),
            "hits": [replies.hit_object(hit) for hit in hits],
        }
        return JsonResponse(content, headers=replies.decision_headers(decision, tier, hits))

    @app.post("/v1/feedback")
    async def feedback(body: FeedbackRequest, request: Request) -> Response:
        """Rate or correct an earlier answer; it is scored again, and written back if it is now good enough."""
        request_id = body.request_id.removeprefix(replies.ID_PREFIX)
        await service.run(
            lambda: service.answerer.feedback(
                request_id, body.rating, body.correction, body.task_success, body.user or ""
            )
        )
        return JsonResponse({"request_id": request_id, "stored": True})


def _add_health(app: FastAPI, service: GatewayService) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        """`auto` and every tier of the active ladder."""
        return JsonResponse(replies.models(service.tiers))

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process lives; says nothing of what it depends on."""
        return JsonResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether it can answer, and what is missing."""
        state = service.state()
        return JsonResponse(replies.readiness(state), 200 if state.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _times(answer: Answer, waited: float, total: float) -> tuple[float, float]:
    """Seconds of waiting (for a thread, then for the model), and of everything but the model and that."""
    generate = answer.stage_ms.get("generate", 0.0) / 1000
    queue = waited + max(0.0, generate - answer.generation.seconds)
    return queue, max(0.0, total - waited - generate)
