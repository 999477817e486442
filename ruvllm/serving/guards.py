"""What stands before the application: bounded headers and body, request id, measured time. Plain ASGI, no routing."""

from __future__ import annotations

import re
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ruvllm.serving.errors import Kind, error_response
from ruvllm.serving.metrics import Metrics

MAX_BODY = 1024 * 1024
MAX_HEADERS = 16 * 1024
BODY_TIMEOUT_S = 15.0
REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

_TOO_LARGE = Kind(413, "invalid_request_error", "request_too_large")
_TOO_MUCH = Kind(431, "invalid_request_error", "headers_too_large")
_TOO_SLOW = Kind(408, "invalid_request_error", "request_timeout")


class HeaderLimit:
    """Refuses a request whose header names and values have more than `limit` bytes together."""

    def __init__(self, app: ASGIApp, limit: int = MAX_HEADERS) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = sum(len(name) + len(value) for name, value in scope["headers"])
            if size > self.limit:
                message = f"headers: got {size} bytes, want at most {self.limit}"
                await error_response(_TOO_MUCH, message)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Reads the whole body before the application sees it: at most `limit` bytes, within `timeout_s`."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self.app, self.limit, self.timeout_s = app, limit, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body: bytes | None = b""
        if not self._declares_too_much(Headers(scope=scope)):
            with anyio.move_on_after(self.timeout_s) as waiting:
                body = await self._read(receive)
            if waiting.cancelled_caught:
                await error_response(_TOO_SLOW, f"body: not whole after {self.timeout_s:.0f} s")(scope, receive, send)
                return
        else:
            body = None
        if body is None:
            await error_response(_TOO_LARGE, f"body: over the limit of {self.limit} bytes")(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _declares_too_much(self, headers: Headers) -> bool:
        declared = headers.get("content-length", "")
        return declared.isdigit() and int(declared[:20]) > self.limit

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or None as soon as it is over the limit."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.limit:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class RequestId:
    """Echoes the client's x-request-id where it is a plain one, else makes one; it is in every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class Measured:
    """Counts every request by route, model and status, and takes its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # the route's own path: a label of what clients invent would grow without bound
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, scope.get("state", {}).get("model", ""), str(status)).inc()
            self.metrics.request.labels(route).observe(time.perf_counter() - began)
