"""Messages between a model's process and its parent: a 4-byte length, then msgpack; knows nothing of what they say."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Mapping

import msgpack  # type: ignore[import-untyped]

Message = Mapping[str, object]
MAX_FRAME = 8 * 1024 * 1024  # bytes; above any prompt that fits a context
_LENGTH = struct.Struct(">I")
_READ = 65536  # bytes asked of the socket at once


class FrameError(Exception):
    """The bytes are not a message: too long, not msgpack, or not a map with string keys."""


def pack(message: Message) -> bytes:
    """One frame.

    Raises:
        FrameError: the message is over MAX_FRAME bytes, or holds what msgpack has no form for.
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True)
    except UnicodeEncodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"message: {error}") from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"message: got {len(body)} bytes, want at most {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, object]:
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"message: got {len(body)} bytes that are not msgpack: {error}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise FrameError(f"message: got {type(message).__name__}, want a map with names as keys")
    return message


class Channel:
    """One end of a stream socket. Any thread may send; one alone receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Re-entrant: a stream that is collected while this thread is about to send cancels itself here.
        self._sending = threading.RLock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._come = bytearray()

    def send(self, message: Message) -> None:
        """Raises OSError when the other side is gone, and what `pack` raises."""
        self.send_packed(pack(message))

    def send_packed(self, frame: bytes) -> None:
        with self._sending:
            self._socket.sendall(frame)

    def receive(self, timeout_s: float | None = None) -> dict[str, object]:
        """The next message.

        Raises:
            EOFError: the other side is gone, between frames or within one.
            FrameError: what came is not a message.
            TimeoutError: nothing came for `timeout_s`; what came of a frame is kept.
        """
        while (size := self._complete()) is None:
            if not self._readable(timeout_s):
                raise TimeoutError(f"no message in {timeout_s:g} s")
            part = self._socket.recv(_READ)
            if not part:
                raise EOFError(f"the other side closed after {len(self._come)} bytes of a message")
            self._come += part
        body = bytes(self._come[_LENGTH.size : size])
        del self._come[:size]
        return unpack(body)

    @property
    def waiting(self) -> bool:
        """Whether something came that was not received yet."""
        return self._complete() is not None or self._readable(0)

    def _readable(self, timeout_s: float | None) -> bool:
        return bool(self._poll.poll(None if timeout_s is None else timeout_s * 1000))

    def _complete(self) -> int | None:
        """Bytes of the first frame, once it is whole."""
        if len(self._come) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._come)
        if length > MAX_FRAME:
            raise FrameError(f"message: announced {length} bytes, want at most {MAX_FRAME}")
        size = _LENGTH.size + int(length)
        return size if len(self._come) >= size else None

    def hang_up(self) -> None:
        """Wakes whoever receives here or there; the socket itself stays open until `close`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side was faster
            return

    def close(self) -> None:
        self.hang_up()
        self._socket.close()
