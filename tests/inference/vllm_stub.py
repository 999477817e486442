"""A server that speaks vLLM's HTTP on a real socket, well or as badly as told; its model repeats the prompt's tokens.

A token is a character, but `<|…|>` is one token wherever it stands in a text, as in vLLM.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

SPECIAL = ("<|startoftext|>", "<|im_start|>", "<|im_end|>", "BOOM")  # the last is no tag: only tokenizer_info tells it
BEGIN = 0
_CUT = re.compile(f"({'|'.join(map(re.escape, SPECIAL))})")
_STATUS = {"500": 500, "429": 429, "503": 503, "401": 401, "404": 404, "400": 400, "302": 302}


def token_ids(text: str) -> list[int]:
    parts = [part for part in _CUT.split(text) if part]
    return [i for part in parts for i in ([SPECIAL.index(part)] if part in SPECIAL else [100 + ord(c) for c in part])]


def token_text(token: int) -> str:
    return SPECIAL[token] if token < 100 else chr(token - 100)


@dataclass
class StubVllm:
    """`behave` maps a path to how it answers; anything else is answered well. Use it as a context manager."""

    model: str = "lfm2-tiny"
    window: int = 2048
    says: str = "forty two"
    cached: int = 3
    tokenizer_info: bool = True
    port: int = 0
    behave: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # a client closed in the middle of an answer
    release: threading.Event = field(default_factory=threading.Event)  # ends a `hang`

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def completions(self) -> list[Any]:
        return [body for path, body in self.asked if path == "/v1/completions"]

    def __enter__(self) -> StubVllm:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        body = json.loads(await reader.readexactly(int(length[1]))) if length else None
        path = head.split(" ")[1]
        self.headers.append(head)
        self.asked.append((path, body))
        return await self._answer(path, body, self.behave.get(path, "well"), reader, writer)

    async def _answer(
        self, path: str, body: Any, how: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if how == "close":
            return False
        if how == "hang":
            await self._wait(reader)
            return False
        if how == "drip":
            return await self._drip(reader, writer)
        if how in _STATUS:
            return await self._send(writer, {"error": {"message": f"told to\n{how}"}}, _STATUS[how])
        if how == "garbage":
            return await self._send(writer, "<html>not what you want</html>")
        if path == "/v1/completions":
            return await self._complete(body, how, reader, writer)
        return await self._send(writer, *self._well(path, body))

    def _well(self, path: str, body: Any) -> tuple[Any, int]:
        if path == "/v1/models":
            return {"data": [{"id": self.model, "max_model_len": self.window}]}, 200
        if path == "/tokenizer_info" and self.tokenizer_info:
            return {"bos_token": SPECIAL[0], "added_tokens_decoder": dict(enumerate(SPECIAL))}, 200
        if path == "/tokenize":
            ids = ([BEGIN] if body["add_special_tokens"] else []) + token_ids(body["prompt"])
            return {"tokens": ids, "token_strs": [token_text(i) for i in ids], "count": len(ids)}, 200
        return ({}, 200) if path == "/health" else ({"error": "Not Found"}, 404)

    async def _complete(self, body: Any, how: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        gone = asyncio.create_task(reader.read(1))
        try:
            async for raw in self._events(body, how):
                if gone.done():
                    self.left.set()
                    return False
                writer.write(b"%x\r\n%s\r\n" % (len(raw), raw))
                await writer.drain()
            if how in ("stop-mid", "half-line"):
                return False
            if how in ("hang-first", "hang-mid"):
                await gone
                self.left.set()
                return False
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return False
        finally:
            gone.cancel()

    async def _events(self, body: Any, how: str) -> AsyncIterator[bytes]:
        if how == "hang-first":
            return
        pieces = re.findall(r"\S+\s*", self.says)[: body["max_tokens"]]
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            yield _event(self._chunk(body, piece, "stop" if last and how != "no-finish" else None))
            if how == "endless":
                while True:
                    yield _event(self._chunk(body, "more ", None))
                    await asyncio.sleep(0.005)
            if how == "hang-mid" or how == "stop-mid":
                return
            if how == "half-line":
                yield b'data: {"choices": [{"te'
                return
            if how == "bad-event":
                yield b"data: {not json\n\n"
            if how == "odd-event":
                yield b'data: {"choices": 7}\n\n'
            if how == "error-event":
                yield _event({"error": {"message": "engine died"}})
        if how != "no-usage":
            yield _event({"choices": [], "usage": self._usage(body, len(pieces)), "metrics": _metrics()})
        if how != "no-done":
            yield b"data: [DONE]\n\n"

    def _chunk(self, body: Any, text: str, finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
        wanted = body.get("logprob_token_ids")
        if wanted and self.behave.get("logprobs") != "top":
            found = {f"token_id:{token}": -float(place + 1) for place, token in enumerate(wanted)}
            choice["logprobs"] = {"top_logprobs": [found]}
        return {"choices": [choice]}

    def _usage(self, body: Any, made: int) -> dict[str, Any]:
        count = len(body["prompt"])
        return {
            "prompt_tokens": count,
            "completion_tokens": made,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    async def _wait(self, reader: asyncio.StreamReader) -> None:
        """Until the client leaves, or the test lets go."""
        gone = asyncio.create_task(reader.read(1))
        while not gone.done() and not self.release.is_set():
            await asyncio.sleep(0.01)
        gone.cancel()
        self.left.set()

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """A header that never ends, one byte at a time: no single read waits long."""
        writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        gone = asyncio.create_task(reader.read(1))
        while not gone.done():
            writer.write(b"z")
            await writer.drain()
            await asyncio.sleep(0.02)
        return False

    async def _send(self, writer: asyncio.StreamWriter, body: Any, status: int = 200) -> bool:
        raw = (body if isinstance(body, str) else json.dumps(body)).encode()
        where = "location: http://127.0.0.1:1/\r\n" if status == 302 else ""
        writer.write(f"HTTP/1.1 {status} Told\r\n{where}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        await writer.drain()
        return True


def _event(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _metrics() -> dict[str, float]:
    return {"time_to_first_token_ms": 25.0, "generation_time_ms": 50.0}
