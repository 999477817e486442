from __future__ import annotations

import contextlib
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruvllm.inference.framing import MAX_FRAME, Channel, FrameError, pack, unpack

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_MESSAGES = st.dictionaries(st.text(), _VALUES, max_size=5)


def _texts_without_surrogates(message: object) -> bool:
    try:
        pack({"m": message})
    except UnicodeEncodeError:
        return False
    return True


@given(st.lists(_MESSAGES.filter(_texts_without_surrogates), min_size=1, max_size=3), st.integers(1, 9))
def test_messages_survive_any_way_the_bytes_are_split(messages: list[dict[str, object]], step: int) -> None:
    stream = b"".join(pack(message) for message in messages)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=_trickle, args=(theirs, stream, step))
        writer.start()
        channel = Channel(ours)
        assert [channel.receive() for _ in messages] == messages
        assert not channel.waiting
        writer.join()


def _trickle(sock: socket.socket, stream: bytes, step: int) -> None:
    for start in range(0, len(stream), step):
        sock.sendall(stream[start : start + step])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_map_or_a_frame_error(body: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert isinstance(unpack(body), dict)


def test_an_end_within_a_frame_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(pack({"op": "generate"})[:-1])
        with pytest.raises(EOFError, match="closed after"):
            Channel(ours).receive()


def test_an_announced_length_over_the_limit_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack(">I", MAX_FRAME + 1))
        with pytest.raises(FrameError, match="want at most"):
            Channel(ours).receive()


def test_a_message_over_the_limit_is_not_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FrameError, match="want at most"):
        Channel(ours).send({"text": "x" * MAX_FRAME})


def test_a_time_out_within_a_frame_loses_nothing() -> None:
    frame = pack({"say": "half"})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        theirs.sendall(frame[:7])
        with pytest.raises(TimeoutError):
            channel.receive(0.01)
        theirs.sendall(frame[7:])
        assert channel.waiting
        assert channel.receive(5) == {"say": "half"}


@pytest.mark.parametrize("message", [{"x": object()}, {"x": 2**70}, {"x": {1, 2}}], ids=["object", "number", "set"])
def test_what_msgpack_cannot_say_is_no_message(message: dict[str, object]) -> None:
    with pytest.raises(FrameError):
        pack(message)
