"""The gateway's HTTP, put together: answers, looks, memory, health, metrics. Knows nothing of how answers are made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ruvllm import __version__
from ruvllm.serving import documents, errors, replies
from ruvllm.serving.callers import Callers
from ruvllm.serving.chat import add_answers
from ruvllm.serving.console.pages import add_pages
from ruvllm.serving.console.running import add_state
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.guards import BodyLimit, HeaderLimit, Measured, RequestId
from ruvllm.serving.journal import Journal
from ruvllm.serving.looks import add_looks
from ruvllm.serving.remembering import add_memory
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings


def create_app(settings: Settings, service: GatewayService, journal: Journal | None = None) -> FastAPI:
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
    app.add_middleware(HeaderLimit)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_middleware(RequestId)  # the last that is added is the first to see a request
    routes, callers = APIRouter(), Callers(service)
    add_answers(routes, service, callers, journal or Journal(settings.log_prompts))
    add_looks(routes, service, callers)
    add_memory(routes, service, callers)
    add_state(routes, service, callers)
    if settings.console:
        add_pages(routes)
    _add_health(routes, service)
    app.include_router(routes)
    documents.describe(app)
    return app


def _add_health(routes: APIRouter, service: GatewayService) -> None:
    """Open to who reaches the port: they say nothing of what is asked."""

    @routes.get("/healthz")
    async def healthz() -> Response:
        """The process lives; says nothing of what it depends on."""
        return JsonResponse({"status": "ok"})

    @routes.get("/readyz", responses={503: {"description": "It cannot answer; the reasons are in the body."}})
    async def readyz() -> Response:
        """Whether it can answer, and what is missing."""
        state = service.state()
        return JsonResponse(replies.readiness(state), 200 if state.ready else 503)

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
