"""Messages between a model's process and its parent: a 4-byte length, then msgpack; knows nothing of what they say."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import msgpack  # type: ignore[import-untyped]

Message = Mapping[str, object]
MAX_FRAME = 8 * 1024 * 1024  # bytes; above any prompt that fits a context
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The bytes are not a message: too long, not msgpack, or not a map with string keys."""


def pack(message: Message) -> bytes:
    """One frame.

    Raises:
        FrameError: the message is over MAX_FRAME bytes.
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > MAX_FRAME:
        raise FrameError(f"message: got {len(body)} bytes, want at most {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, object]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"message: got {len(body)} bytes that are not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise FrameError(f"message: got {type(message).__name__}, want a map")
    return message


def send(sock: socket.socket, message: Message) -> None:
    sock.sendall(pack(message))


def receive(sock: socket.socket) -> dict[str, object]:
    """The next message.

    Raises:
        EOFError: the other side is gone, between frames or within one.
        FrameError: what came is not a message.
        TimeoutError: the socket's time-out passed.
    """
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if length > MAX_FRAME:
        raise FrameError(f"message: announced {length} bytes, want at most {MAX_FRAME}")
    return unpack(_exactly(sock, length))


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise EOFError(f"the other side closed after {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)
