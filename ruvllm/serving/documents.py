"""What the OpenAPI document says of replies: the error envelope and the statuses of each family of endpoints."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail


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
_STREAM = {"text/event-stream": {"schema": {"type": "string"}}, "application/json": {"schema": {"type": "object"}}}
ANSWERS: Responses = {
    200: {"description": "The answer: an object or, streamed, server-sent events.", "content": _STREAM},
    **_errors(*_ANY, 404, 502),
}


def describe(app: FastAPI) -> None:
    """Leave out 422, which FastAPI declares of every endpoint and this gateway never sends."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document
