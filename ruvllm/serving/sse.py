"""Server-sent events, and noticing that who asked has gone. Knows nothing of what is said.

The reader of an event stream sees pings while nothing is said, and an error in the stream itself once it has begun.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class GoneError(Exception):
    """Who asked has hung up."""


def event(content: Mapping[str, Any]) -> bytes:
    """JSON in ASCII, so that no text can break out of its line."""
    return b"data: " + json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends `events` until they end or the reader leaves; `over` is called once, however it ended."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str], over: Callable[[], object]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events, self._over = events, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_gone(receive, self._send(send))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except GoneError:
            pass
        finally:
            self._over()

    async def _send(self, send: Send) -> None:
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives.

    Raises:
        GoneError: who asked hung up before; the work was cancelled.
    """
    return await until_gone(request.receive, work)


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """As `unless_gone`, of an ASGI connection whose body was read."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
