"""Errors as OpenAI's clients expect them; the one table from our error tree to HTTP. Knows nothing of the endpoints."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ruvllm.errors import (
    AccessError,
    AuthenticationError,
    BackendError,
    CancelledError,
    DatabaseError,
    DeadlineError,
    ForbiddenError,
    InferenceError,
    InputError,
    NotFoundError,
    OverloadedError,
    RateLimitedError,
    RuvllmError,
    TooLargeError,
    UnknownTierError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """How an error looks from outside. `retry_after` in seconds, None where trying again would not help."""

    status: int
    type: str
    code: str | None = None
    retry_after: int | None = None


GONE = 499  # nobody reads it: who asked hung up. For metrics and logs

# The first class that fits counts, so a subclass stands before its base.
KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (TooLargeError, Kind(400, "invalid_request_error", "context_length_exceeded")),
    (UnknownTierError, Kind(404, "invalid_request_error", "model_not_found")),
    (NotFoundError, Kind(404, "invalid_request_error", "not_found")),
    (InputError, Kind(400, "invalid_request_error")),
    (AuthenticationError, Kind(401, "authentication_error", "invalid_api_key")),
    (ForbiddenError, Kind(403, "permission_error", "insufficient_scope")),
    (RateLimitedError, Kind(429, "rate_limit_error", "rate_limit_exceeded", retry_after=1)),
    (AccessError, Kind(403, "permission_error")),
    (CancelledError, Kind(GONE, "client_closed_request", "client_closed_request")),
    (OverloadedError, Kind(503, "server_overloaded", "server_overloaded", retry_after=1)),
    (DeadlineError, Kind(504, "server_error", "deadline_exceeded")),
    (TimeoutError, Kind(504, "server_error", "deadline_exceeded")),
    (BackendError, Kind(502, "server_error", "model_unavailable", retry_after=2)),
    (InferenceError, Kind(503, "server_error", "model_unavailable", retry_after=2)),
    (DatabaseError, Kind(503, "server_error", "database_unavailable", retry_after=2)),
    (RuvllmError, Kind(500, "server_error", "internal_error")),
)
_CODES = {415: "unsupported_media_type"}
_INTERNAL = Kind(500, "server_error", "internal_error")
_LATE = "the deadline of the request has passed"
_UNEXPECTED = "the gateway failed in a way that was not foreseen; its log names the request"


class JsonResponse(Response):
    """JSON in ASCII: a lone surrogate in a text that is quoted back cannot break the encoding of the answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def kind_of(error: Exception) -> Kind:
    """How an error of our tree, or a TimeoutError, looks from outside."""
    return next(kind for cls, kind in KINDS if isinstance(error, cls))


def error_response(
    kind: Kind, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """`{"error": {message, type, param, code}}` with Retry-After where trying again helps."""
    retry = _retry(kind.retry_after) if kind.retry_after is not None else {}
    return JsonResponse(error_object(kind, message, param), kind.status, {**retry, **(headers or {})})


def error_object(kind: Kind, message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}


def told(error: Exception) -> dict[str, Any]:
    """What a stream says of an error once it has begun; what was not foreseen keeps its text to the log."""
    if isinstance(error, (RuvllmError, TimeoutError)):
        return error_object(kind_of(error), str(error) or _LATE)
    log.error("%s: %s", type(error).__name__, error)
    return error_object(_INTERNAL, _UNEXPECTED)


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def _headers_of(error: Exception) -> dict[str, str]:
    """What an error says of when to come again, and with what."""
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, RateLimitedError):
        return {**_retry(error.retry_after_s), **error.headers}
    return _retry(error.retry_after_s) if isinstance(error, OverloadedError) else {}


def install(app: FastAPI) -> None:
    """Give `app` the handlers for every way in which a request can fail."""
    app.add_exception_handler(RuvllmError, _ours)
    app.add_exception_handler(TimeoutError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, error: Exception) -> Response:
    kind = kind_of(error)
    if kind.status >= 500:
        log.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return error_response(kind, str(error) or _LATE, headers=_headers_of(error))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return error_response(Kind(400, "invalid_request_error"), f"{place[:200]}: {first['msg']}", place[:200])


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = Kind(error.status_code, "invalid_request_error", _CODES.get(error.status_code))
    methods = _methods(request) if error.status_code == 405 else []
    return error_response(kind, str(error.detail), headers={"allow": ", ".join(methods)} if methods else error.headers)


def _methods(request: Request) -> list[str]:
    """What a path of the document takes: it may have a route a method, and the one that refused knows its own alone."""
    path = request.url.path
    declared = request.app.openapi()["paths"].items()
    fits = [methods for known, methods in declared if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path)]
    return sorted({method.upper() for methods in fits[:1] for method in methods})


async def _unexpected(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "")
    log.error("request %s: %s: %s", request_id, type(error).__name__, error)
    return error_response(_INTERNAL, _UNEXPECTED, headers={"x-request-id": request_id})
