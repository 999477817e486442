"""Server-sent events out of bytes as they come, however a network cut them; knows nothing of HTTP or of what they say.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html, of which only `data:` matters here.
"""

from __future__ import annotations

from ruvllm.errors import BackendError

MAX_LINE = 1024 * 1024  # bytes; a line that goes on beyond it is no answer


class EventReader:
    """`push` bytes and get the data of every event that is whole by now; half a line or event is kept for later."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    @property
    def unfinished(self) -> bool:
        """Whether an event has begun and not ended: where the bytes end here, something was lost."""
        return bool(self._rest or self._data)

    def push(self, raw: bytes) -> list[str]:
        """
        Raises:
            BackendError: a line is too long, or is not UTF-8.
        """
        *lines, self._rest = (self._rest + raw).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise BackendError(f"model server: got a line of more than {MAX_LINE} bytes, want server-sent events")
        return [event for line in lines if (event := self._line(line.removesuffix(b"\r"))) is not None]

    def _line(self, line: bytes) -> str | None:
        if line:
            self._field(line)
            return None
        event, self._data = "\n".join(self._data), []
        return event or None

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":  # any other field, and a comment, whose name is empty, says nothing that we want
            self._data.append(_text(value.removeprefix(b" ")))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BackendError(f"model server: got an event that is not UTF-8 at byte {error.start}") from error
