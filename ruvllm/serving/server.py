"""uvicorn as this gateway runs it: headers have to come in time, and on SIGTERM it says so before it closes its door.

Knows nothing of what is served. uvicorn itself waits for ever for the rest of a request's headers, and closes its door
with the signal, so that who balances load would see a dead gateway instead of one that is not ready.
"""

from __future__ import annotations

import asyncio
import threading
from types import FrameType
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 10.0  # from the connection, or a request's first byte, to its last header
_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Draining(Protocol):
    """What serves; `ruvllm.serving.service.GatewayService` is one."""

    def refuse(self) -> None: ...

    def drained(self, timeout_s: float) -> bool: ...


class TimelyHeaders(HttpToolsProtocol):
    """A connection that is closed where its headers take longer than `headers_s`."""

    headers_s = HEADERS_S
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._wait_no_more()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self.headers_s, self._late)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the answer before it is still being told
            self._wait()
            return
        self._waiting = None
        self.transport.write(_LATE)
        self.transport.close()


class GatewayServer(uvicorn.Server):
    """On a signal it stays open, not ready, until who is inside is answered or `drain_s` are over; a second ends it."""

    def __init__(self, config: uvicorn.Config, service: Draining, drain_s: float) -> None:
        super().__init__(config)
        self._service, self._drain_s = service, drain_s
        self._leaving = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._leaving:
            super().handle_exit(sig, frame)
            return
        self._leaving = True
        self._service.refuse()
        threading.Thread(target=self._leave, args=(sig, frame), name="drain", daemon=True).start()

    def _leave(self, *signal: Any) -> None:
        self._service.drained(self._drain_s)
        super().handle_exit(*signal)
