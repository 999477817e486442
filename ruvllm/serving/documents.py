"""What the OpenAPI document says of replies: the body of each 200, the error envelope, the statuses of each family.

Knows nothing of how a reply is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ruvllm.serving.reply_schemas import (
    AddedReply,
    ChatReply,
    DeletedReply,
    EmbeddingsReply,
    ErrorReply,
    FeedbackReply,
    FoundReply,
    HealthReply,
    ModelReply,
    ModelsReply,
    NeighboursReply,
    NodeReply,
    ReadyReply,
    RouteReply,
    StateReply,
    TextReply,
)

_WHY = {
    400: "The request is unacceptable; the message says what is wanted.",
    401: "No API key, or none that is known.",
    403: "The key lacks the scope.",
    404: "What is named is not there.",
    408: "The body did not arrive in time.",
    413: "The body is over the limit.",
    415: "The body is no JSON.",
    429: "This key's own limits are reached; Retry-After says when to come again.",
    431: "The headers are over the limit.",
    500: "The gateway failed.",
    502: "A model server failed.",
    503: "This machine is overloaded, or a part of it is away; Retry-After says when to come again.",
    504: "The deadline has passed.",
}
Responses = dict[int | str, dict[str, Any]]


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorReply, "description": _WHY[status]} for status in statuses}


_ANY = (400, 401, 403, 408, 413, 415, 429, 431, 500, 503, 504)
LOOKS: Responses = _errors(*_ANY)
NAMED: Responses = _errors(*_ANY, 404)
ANSWERS: Responses = {
    200: {"description": "The answer: an object or, streamed, server-sent events."},
    **_errors(*_ANY, 404, 502),
}

# The body of each 200, and of what stands beside it, by method and path.
REPLIES: Mapping[tuple[str, str], type[BaseModel]] = {
    ("post", "/v1/chat/completions"): ChatReply,
    ("post", "/v1/completions"): TextReply,
    ("post", "/v1/route"): RouteReply,
    ("post", "/v1/embeddings"): EmbeddingsReply,
    ("post", "/v1/feedback"): FeedbackReply,
    ("get", "/v1/models"): ModelsReply,
    ("get", "/v1/models/{model}"): ModelReply,
    ("post", "/v1/memory/search"): FoundReply,
    ("post", "/v1/memory"): AddedReply,
    ("get", "/v1/memory/{id}"): NodeReply,
    ("delete", "/v1/memory/{id}"): DeletedReply,
    ("get", "/v1/memory/{id}/neighbours"): NeighboursReply,
    ("get", "/v1/state"): StateReply,
    ("get", "/healthz"): HealthReply,
    ("get", "/readyz"): ReadyReply,
}
_BEFORE = (408, 413, 431, 500)  # what stands before every endpoint, and what is behind them all
_STREAMED = ("/v1/chat/completions", "/v1/completions")
_TEXT = {"schema": {"type": "string"}}
_DATA = {"type": "string", "description": "A chunk as JSON; an error as JSON, then the last; or [DONE]."}
_EVENT = {"schema": {"type": "object", "properties": {"data": _DATA}, "required": ["data"]}}  # of each event
# Without a key: where the gateway is open to its own machine (RUVLLM_ACCESS).
_KEYS = {"key": {"type": "http", "scheme": "bearer", "description": "An API key; ruvllm keys create makes one."}}
_WITH_OR_WITHOUT: list[dict[str, list[str]]] = [{"key": []}, {}]
_REF = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
    """Give each 200 its body, and leave out 422, which FastAPI declares and this gateway never sends."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            _add_schemas(document["components"]["schemas"])
            document["components"]["securitySchemes"] = _KEYS
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _describe_replies(operation["responses"], method, path)
                    if path.startswith("/v1/"):
                        operation["security"] = _WITH_OR_WITHOUT
        assert app.openapi_schema is not None  # FastAPI keeps what it made there
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _add_schemas(schemas: dict[str, Any]) -> None:
    wanted = [(model, "validation") for model in REPLIES.values()]
    _, made = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]  # a literal, in a list
    schemas.update(made["$defs"])
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def _error(status: int) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=ErrorReply.__name__)}
    return {"description": _WHY[status], "content": {"application/json": {"schema": schema}}}


def _describe_replies(responses: dict[str, Any], method: str, path: str) -> None:
    responses.pop("422", None)
    for status in _BEFORE:
        responses.setdefault(str(status), _error(status))
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": _TEXT}
    if (model := REPLIES.get((method, path))) is not None:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
        responses["200"]["content"] = content | ({"text/event-stream": _EVENT} if path in _STREAMED else {})
    if path == "/readyz":
        responses["503"]["content"] = responses["200"]["content"]
