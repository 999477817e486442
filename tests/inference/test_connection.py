"""The parent's end of a connection, the test itself being the process at the other end."""

from __future__ import annotations

import math
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ruvllm.errors import InferenceError, OverloadedError, WorkerDiedError
from ruvllm.inference.connection import Connection, Patience
from ruvllm.inference.framing import Channel
from ruvllm.inference.limits import Growth
from ruvllm.inference.wire import generation_from_wire, shaped


class Process:
    """Dies when it is killed or its socket closes."""

    pid, returncode = 0, -9

    def __init__(self) -> None:
        self.killed = threading.Event()

    def poll(self) -> int | None:
        return -9 if self.killed.is_set() else None

    def kill(self) -> None:
        self.killed.set()

    def wait(self, timeout: float | None = None) -> int:
        return -9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def connected(patience: Patience | None = None, clock: Any = None) -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    growth = Growth(2**40, 2.0)
    process: Any = Process()
    more = {"clock": clock} if clock else {}
    connection = Connection(Channel(ours), process, "m", "log", growth, patience, **more)
    with theirs:
        yield connection, theirs
    connection.close()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(["id", "beat", "say", "ok", "error", "message", "rss", "steps", "x"])
_MAPS = st.dictionaries(_NAMES, _JSON | st.sampled_from([0, 1]), max_size=5)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.binary(max_size=40).map(framed)
        | _MAPS.map(lambda message: framed(msgpack.packb(message, use_bin_type=True))),
        max_size=4,
    )
)
@example([framed(msgpack.packb({"error": 0, "id": 0}))])  # an error without a message
def test_whatever_a_process_sends_its_request_ends_in_an_answer_or_one_typed_error(parts: list[bytes]) -> None:
    with connected() as (connection, theirs):
        call = connection.open({"op": "generate"}, 5.0)
        theirs.sendall(b"".join(parts))
        theirs.shutdown(socket.SHUT_RDWR)
        with suppress(InferenceError):
            while "ok" not in (reply := call.next()):
                assert isinstance(reply["say"], str)
            shaped(lambda: generation_from_wire(reply["ok"]))


def test_signs_of_life_and_steps_keep_a_slow_process_and_their_absence_ends_it() -> None:
    clock = Clock()
    with connected(Patience(silence=15.0, hang=60.0), clock) as (connection, theirs):
        there = Channel(theirs)
        call = connection.open({"op": "generate"}, math.inf)
        for step in range(20):  # 200 s of work, which is longer than any patience
            clock.now += 10.0
            there.send({"id": 0, "say": "x"} if step % 2 else {"beat": 0, "steps": step, "rss": 1})
            if step % 2:
                assert call.next()["say"] == "x"
            _wait_for(lambda: call.heard == clock.now)
        assert connection.alive
        clock.now += 61.0
        with pytest.raises(WorkerDiedError, match="no sign of life for 60 s"):  # the first request is given more
            call.next()


def test_what_comes_late_of_an_earlier_request_is_not_the_next_one_s() -> None:
    with connected() as (connection, theirs):
        there = Channel(theirs)
        first = connection.open({"op": "a"}, 5.0)
        there.send({"id": 0, "ok": "first"})
        assert first.next()["ok"] == "first"
        second = connection.open({"op": "b"}, 5.0)
        there.send({"id": 0, "say": "late"})
        there.send({"id": 1, "ok": "second"})
        assert second.next()["ok"] == "second"


def test_a_second_request_waits_for_the_first_or_is_refused() -> None:
    with connected() as (connection, theirs):
        connection.open({"op": "a"}, 5.0)
        with pytest.raises(OverloadedError, match=r"not free within 0\.05 s"):
            connection.open({"op": "b"}, 0.05)
        Channel(theirs).send({"id": 0, "ok": 1})
        assert connection.open({"op": "b"}, 5.0).number == 1


def test_a_closed_connection_ends_the_open_request_and_blames_no_prompt() -> None:
    with connected() as (connection, _):
        call = connection.open({"op": "a"}, 5.0)
        threading.Thread(target=connection.close).start()
        with pytest.raises(WorkerDiedError, match="ended by its owner") as caught:
            call.next()
        assert not caught.value.working
        with pytest.raises(WorkerDiedError):
            connection.open({"op": "b"}, 5.0)


def _wait_for(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("did not happen in time")
