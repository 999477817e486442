"""Clients that hang up in the middle of a streamed answer, or with their half of the connection. Judges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time

import httpx

HOW = ("reset", "closed", "half-closed")  # a lost client, one that left, one that has no more to say
_STREAM = json.dumps(
    {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "What is the capital of Ghana?"}]}
).encode()
_PATIENCE_S = 20.0


async def hang_up(host: str, port: int, count: int, at_once: int) -> int:
    """`count` clients, one way after the other; how many of those that half-closed still got an answer's end."""
    free, answered = asyncio.Semaphore(at_once), 0

    async def one(number: int) -> None:
        nonlocal answered
        async with free:
            answered += await _client(host, port, HOW[number % len(HOW)])

    await asyncio.gather(*(one(number) for number in range(count)))
    return answered


async def _client(host: str, port: int, how: str) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(_STREAM)}\r\n\r\n".encode() + _STREAM)
    await writer.drain()
    if how == "half-closed":
        writer.write_eof()
        with contextlib.suppress(ConnectionError, TimeoutError):
            got = await asyncio.wait_for(reader.read(), _PATIENCE_S)
            writer.close()
            return b"[DONE]" in got
        return False
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE_S)  # the head is there, the answer is not
    if how == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    return False


def seconds_until_free(url: str) -> float:
    """Until the gateway says that it has no request any more; infinite where it does not say so in time."""
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE_S:
        text = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text
        if "\nruvllm_inflight 0.0" in text:
            return time.monotonic() - began
    return float("inf")
