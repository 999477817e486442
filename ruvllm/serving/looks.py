"""What generates nothing, over HTTP: embeddings, feedback, models. Knows nothing of how vectors are made."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ruvllm.answering.perception import count_words
from ruvllm.errors import InputError, UnknownTierError
from ruvllm.memory.records import Vector
from ruvllm.serving import replies
from ruvllm.serving.callers import Callers, json_only
from ruvllm.serving.documents import LOOKS, NAMED
from ruvllm.serving.errors import JsonResponse
from ruvllm.serving.schemas import AUTO, EmbeddingRequest, FeedbackRequest
from ruvllm.serving.service import GatewayService


def add_looks(routes: APIRouter, service: GatewayService, callers: Callers) -> None:
    takes_json = [Depends(json_only)]

    @routes.post("/v1/embeddings", dependencies=takes_json, responses=NAMED)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Unit vectors of the encoder that memory uses; the usage counts words and marks, not the encoder's tokens."""
        caller = callers.of(request, "ask")
        _check_model(body.model, service.answerer.encoder)
        vectors = await service.run(caller, lambda of: of.embed(body.texts))
        _check_dimensions(body.dimensions, vectors)
        request.state.model = service.answerer.encoder
        return JsonResponse(_embeddings(body, vectors, service.answerer.encoder))

    @routes.post("/v1/feedback", dependencies=takes_json, responses=NAMED)
    async def feedback(body: FeedbackRequest, request: Request) -> Response:
        """Rate or correct an earlier answer; it is scored again, and a correction becomes a Fact of the user's."""
        caller = callers.of(request, "feedback")
        request_id = _request_id(body.request_id)
        writer = callers.asked(request, caller).writer_of(body.user)
        await service.run(
            caller, lambda of: of.feedback(request_id, body.rating, body.correction, body.task_success, writer)
        )
        return JsonResponse({"request_id": request_id, "stored": True})

    @routes.get("/v1/models", responses=LOOKS)
    async def models(request: Request) -> Response:
        """`auto`, every tier of the active ladder, and the encoder."""
        callers.of(request)
        return JsonResponse(replies.models(service.tiers, service.answerer.encoder))

    @routes.get("/v1/models/{model:path}", responses=NAMED)
    async def model(model: str, request: Request) -> Response:
        """One of them."""
        callers.of(request)
        listed = replies.models(service.tiers, service.answerer.encoder)["data"]
        found = next((each for each in listed if each["id"] == model), None)
        if found is None:
            raise UnknownTierError(f"model {model[:200]!r}: not served here; GET /v1/models lists what is")
        return JsonResponse(found)


def _check_model(model: str, encoder: str) -> None:
    if model not in (AUTO, encoder):
        raise UnknownTierError(f"model {model!r}: does not embed here, want {AUTO} or {encoder}")


def _check_dimensions(wanted: int | None, vectors: Vector) -> None:
    if wanted is not None and wanted != vectors.shape[1]:
        raise InputError(f"dimensions: got {wanted}, want {vectors.shape[1]}: this encoder's vectors are not cut")


def _embeddings(body: EmbeddingRequest, vectors: Vector, encoder: str) -> dict[str, Any]:
    words = sum(count_words(text) for text in body.texts)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ],
        "model": encoder,
        "usage": {"prompt_tokens": words, "total_tokens": words},
    }


def _encoded(vector: Vector, form: str) -> str | list[float]:
    """base64 is of little-endian float32, as OpenAI's clients read it."""
    if form == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]


def _request_id(name: str) -> str:
    return name.removeprefix(replies.ID_PREFIX).removeprefix(replies.TEXT_ID_PREFIX)
