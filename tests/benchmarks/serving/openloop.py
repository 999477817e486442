"""Requests over plain sockets, and on a schedule: an open loop, timed from when each was due. Knows no gateway.

A closed loop waits for an answer before it asks again, so it asks less of a server that is slow and shows less of it
(coordinated omission). Here a request is due when the schedule says so, whatever became of those before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reply:
    """Seconds from when it was due, and from when it was sent; status 0: no answer. Header names are lower-case."""

    due_s: float  # since the start of the run
    seconds: float
    sent_s: float
    status: int
    headers: dict[str, str]

    @property
    def ok(self) -> bool:
        return self.status == 200


class Connections:
    """Keep-alive connections to one server; as many as are under way at once."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, str]]:
        """Raises OSError or asyncio.IncompleteReadError where the server hung up on a new connection.

        An idle one may have been closed meanwhile, as keep-alive allows: then the request is sent again, on another.
        """
        while self._idle:
            try:
                return await self._sent(*self._idle.pop(), path, body)
            except (OSError, asyncio.IncompleteReadError):
                continue
        return await self._sent(*await asyncio.open_connection(self._host, self._port), path, body)

    async def _sent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
    ) -> tuple[int, dict[str, str]]:
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(lines[0].split(" ")[1]), headers

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def on_schedule(to: Connections, path: str, bodies: Sequence[bytes], rate: float, seconds: float) -> list[Reply]:
    """`rate` requests a second, evenly, for `seconds`; `bodies` in turn. Ends when the last has its answer."""
    began = time.perf_counter()
    tasks = []
    for n in range(int(rate * seconds)):
        due = n / rate
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(to, path, bodies[n % len(bodies)], began, due)))
    return list(await asyncio.gather(*tasks))


async def _one(to: Connections, path: str, body: bytes, began: float, due: float) -> Reply:
    sent = time.perf_counter()
    try:
        status, headers = await to.post(path, body)
    except (OSError, asyncio.IncompleteReadError):
        status, headers = 0, {}
    done = time.perf_counter()
    return Reply(due, done - began - due, done - sent, status, headers)


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p90 and p99 in milliseconds; nan of nothing."""
    if not seconds:
        return (float("nan"),) * 3
    low, middle, high = np.percentile(np.array(seconds) * 1000, (50, 90, 99))
    return float(low), float(middle), float(high)
