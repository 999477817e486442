"""One vLLM server over HTTP: connections, time-outs, and one typed error for whatever goes wrong. Knows no model.

Every exchange runs in a thread of its own and hands over what comes, so that its caller waits on a queue and is never
held beyond its deadline, even by a server that says one byte a second. A thread that nobody listens to any more closes
its connection, which is how a vLLM server learns that it can stop.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from ruvllm.errors import (
    BackendError,
    CancelledError,
    DeadlineError,
    InferenceError,
    InputError,
    OverloadedError,
    RuvllmError,
    UnreachableError,
)
from ruvllm.inference.sse import EventReader

MAX_ANSWER = 32 * 1024 * 1024  # bytes of one answer
_MESSAGE = 300  # characters of a server's own words in an error of ours
_GRACE_S = 2.0
_DONE = "[DONE]"
Item = bytes | RuvllmError | None  # what came | what went wrong | the end


@dataclass(frozen=True)
class Times:
    """Seconds; the request's deadline bounds each of them and their sum."""

    connect_s: float = 3.0
    first_s: float = 120.0  # until an answer begins: a queue and a prefill lie before it
    between_s: float = 20.0  # between two pieces of it


class Server:
    """`url` is one vLLM server; at most `limit` exchanges with it at a time. Safe to use from several threads."""

    def __init__(self, url: str, key: str = "", times: Times | None = None, limit: int = 32) -> None:
        self.url, self.times, self.limit = url, times or Times(), limit
        self._slots = threading.BoundedSemaphore(limit)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._kept = _client(url, headers, keep=limit)
        # A connection that may be cut in the middle belongs to one exchange alone.
        self._once = _client(url, headers, keep=0)

    def get(self, path: str, deadline: float) -> Any:
        """What the JSON at `path` says; `deadline` is in time.monotonic's seconds."""
        return self._json(Exchange(self, self._kept, path, None, deadline, severable=False))

    def post(self, path: str, body: Mapping[str, object], deadline: float) -> Any:
        """The JSON answer to `body`. Raises what `Exchange` raises."""
        return self._json(Exchange(self, self._kept, path, body, deadline, severable=False))

    def events(self, path: str, body: Mapping[str, object], deadline: float) -> Events:
        """The answer to `body` event by event; who leaves it stops the server's work."""
        return Events(Exchange(self, self._once, path, body, deadline, severable=True))

    def _json(self, exchange: Exchange) -> Any:
        with exchange:
            return _parsed(b"".join(exchange.pieces()), self.url)

    def healthy(self, deadline: float) -> bool:
        """Whether /health answers 200 within the time."""
        try:
            with Exchange(self, self._kept, "/health", None, deadline, severable=False) as exchange:
                for _ in exchange.pieces():
                    pass
        except RuvllmError:
            return False
        return True

    def close(self) -> None:
        self._kept.close()
        self._once.close()


class Exchange:
    """One request and its answer.

    Raises (on creation and while it is read):
        UnreachableError: no connection was made; nothing was sent.
        DeadlineError: the deadline passed.
        OverloadedError: the server is busy (429, 503), or this client is with it.
        InputError: the server finds fault with what was asked (400), or it holds text that UTF-8 cannot.
        CancelledError: it was closed while somebody read it.
        BackendError: anything else that is no answer.
    """

    def __init__(
        self,
        server: Server,
        client: httpx.Client,
        path: str,
        body: Mapping[str, object] | None,
        deadline: float,
        severable: bool,
    ) -> None:
        self._server, self._client, self._path, self._deadline = server, client, path, deadline
        self._content = None if body is None else _packed(body)
        self._severable = severable
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._guard, self._left = threading.Lock(), False
        self._socket: socket.socket | None = None
        self._take_slot()
        threading.Thread(target=self._run, name="vllm-exchange", daemon=True).start()

    def _take_slot(self) -> None:
        slots = self._server._slots
        if not slots.acquire(timeout=max(0.0, self._deadline - time.monotonic())):
            raise OverloadedError(f"{self._server.url}: all {self._server.limit} connections are in use; ask again")

    def pieces(self) -> Iterator[bytes]:
        """The answer's bytes as they come."""
        wait, begun = self._server.times.first_s, False
        while (item := self._next(wait, begun)) is not None:
            wait, begun = self._server.times.between_s, True
            yield item

    def _next(self, wait: float, begun: bool) -> bytes | None:
        left = self._deadline - time.monotonic()
        if left <= 0:  # however much has come: a server that never ends would be read for ever
            raise self._silence(wait, left, begun)
        try:
            item = self._items.get(timeout=min(wait, left))
        except queue.Empty:
            raise self._silence(wait, left, begun) from None
        if isinstance(item, RuvllmError):
            raise item
        return item

    def _silence(self, wait: float, left: float, begun: bool) -> InferenceError:
        where = "in the middle of its answer" if begun else "before its answer began"
        if left <= wait:
            return DeadlineError(f"{self._server.url}: deadline passed {where}; ask for less or give more time")
        return BackendError(f"{self._server.url}: silent for {wait:g} s {where}; its log may say why")

    def close(self) -> None:
        """Nobody listens any more; the server is told by the end of the connection."""
        with self._guard:
            self._left = True
            self._items.put(CancelledError(f"{self._server.url}: cancelled by its caller"))  # wakes another thread
            if self._socket is not None:
                with suppress(OSError):  # it may be gone already
                    self._socket.shutdown(socket.SHUT_RDWR)  # close() would not wake the thread that reads

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        """In the exchange's own thread: every outcome becomes one item, and the slot is given back."""
        try:
            self._talk()
            self._items.put(None)
        except RuvllmError as error:
            self._items.put(error)
        except Exception as error:  # a thread has nobody else to tell: httpx's errors, a closed client, a bad address
            self._items.put(_typed(error, self._server.url))
        finally:
            self._hold(None)
            self._server._slots.release()

    def _talk(self) -> None:
        response = self._client.send(self._request(), stream=True)
        try:
            if response.status_code != httpx.codes.OK:
                raise _refusal(self._server.url, response.status_code, _start_of(response))
            size = 0
            for piece in response.iter_raw():
                if self._left:
                    return
                size += len(piece)
                if size > MAX_ANSWER:
                    raise BackendError(f"{self._server.url}: got more than {MAX_ANSWER} bytes, want an answer")
                self._items.put(piece)
        finally:
            self._hold(None)
            response.close()

    def _request(self) -> httpx.Request:
        # The caller's own waits end first and say what they waited for; these end a thread that nobody waits for.
        left = max(0.0, self._deadline - time.monotonic()) + _GRACE_S
        times = self._server.times
        read = min(left, max(times.first_s, times.between_s) + _GRACE_S)
        limits = httpx.Timeout(connect=min(left, times.connect_s), read=read, write=read, pool=left)
        method, kind = ("GET", {}) if self._content is None else ("POST", {"Content-Type": "application/json"})
        request = self._client.build_request(method, self._path, content=self._content, headers=kind, timeout=limits)
        if self._severable:
            request.extensions = {**request.extensions, "trace": self._trace}
        return request

    def _trace(self, event: str, told: Mapping[str, Any]) -> None:
        """Every severable exchange has a connection of its own, so it is told of its socket when that is made."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._hold(told["return_value"])

    def _hold(self, stream: Any) -> None:
        """Remembers the socket that `close` cuts from another thread; None forgets it."""
        with self._guard:
            self._socket = None if stream is None else stream.get_extra_info("socket")
            if self._left and stream is not None:
                stream.close()  # nobody else holds it yet: it would stay open until it is collected
                raise CancelledError(f"{self._server.url}: nobody waits for this answer any more")


class Events:
    """The JSON of each server-sent event, until `[DONE]`. Close it, or use it as a context manager."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            BackendError: the connection ended before `[DONE]`, or an event holds an error or no JSON.
        """
        reader, url = EventReader(), self._exchange._server.url
        for raw in self._exchange.pieces():
            for data in reader.push(raw):
                if data == _DONE:
                    return
                yield _event(data, url)
        how = "in the middle of an event" if reader.unfinished else "before [DONE]"
        raise BackendError(f"{url}: it closed the stream {how}; the answer is not whole")

    def close(self) -> None:
        """Safe from any thread: one that reads gets CancelledError."""
        self._exchange.close()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _client(url: str, headers: dict[str, str], keep: int) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers=headers,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=keep, keepalive_expiry=4.0),
        trust_env=False,  # no proxy between us and a server that a setting names
        follow_redirects=False,  # a prompt goes where the setting says and nowhere else
    )


def _packed(body: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt: got a lone surrogate at {error.start}, want text that UTF-8 can hold") from error


def _parsed(raw: bytes, url: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{url}: got {_shown(raw)!r}, want JSON; is it a vLLM server?") from error


def _event(data: str, url: str) -> dict[str, Any]:
    event = _parsed(data.encode(), url)
    if not isinstance(event, dict):
        raise BackendError(f"{url}: got the event {_shown(data.encode())!r}, want an object")
    if event.get("error"):
        raise BackendError(f"{url}: it gave up in the middle of its answer: {_shown(str(event['error']).encode())}")
    return event


def _typed(error: Exception, url: str) -> InferenceError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UnreachableError(f"{url}: no connection ({error or type(error).__name__}); is the server running?")
    if isinstance(error, httpx.TimeoutException):
        return BackendError(f"{url}: it took a connection and then neither read nor answered")
    if isinstance(error, httpx.TransportError):
        return BackendError(f"{url}: the connection broke: {_shown(str(error).encode())}")
    return BackendError(f"{url}: the exchange failed: {error!r}")


def _start_of(response: httpx.Response) -> bytes:
    """Enough of an error's body to quote; a server that streams without end is not read to it."""
    start = b""
    for piece in response.iter_raw():
        start += piece
        if len(start) > 4 * _MESSAGE:
            break
    return start


def _refusal(url: str, status: int, body: bytes) -> InferenceError | InputError:
    said = _message(body)
    if status in (429, 503):
        return OverloadedError(f"{url}: it is busy ({status}): {said}")
    if status in (401, 403):
        return BackendError(f"{url}: it refused our key ({status}); RUVLLM_VLLM_KEY_FILE names the file that holds it")
    if status == httpx.codes.NOT_FOUND:
        return BackendError(f"{url}: it does not serve what was asked for (404): {said}")
    if status in (400, 413, 422):  # the request's fault, not the server's: it stays among those to ask
        return InputError(f"{url}: it finds fault with what was asked ({status}): {said}")
    return BackendError(f"{url}: got status {status}, want 200: {said}")


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)["error"]
        return _shown(str(found["message"] if isinstance(found, dict) else found).encode())
    except (ValueError, KeyError, TypeError, RecursionError):
        return _shown(body)


def _shown(raw: bytes) -> str:
    """The beginning of what a server said, on one line and printable."""
    text = " ".join(raw[: 4 * _MESSAGE].decode(errors="replace").split())
    return "".join(c for c in text if c.isprintable())[:_MESSAGE]
